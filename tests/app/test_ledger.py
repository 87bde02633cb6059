from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.demo.ledger import Ledger


def deliver_all(path: Path, keys: list[str], results: multiprocessing.Queue[int]) -> None:
    ledger = Ledger(path)
    results.put(sum(ledger.deliver(key) for key in keys))


def test_of_many_processes_that_deliver_the_same_keys_each_key_is_applied_by_one(tmp_path: Path) -> None:
    path, keys = tmp_path / "ledger", [f"key-{n}" for n in range(2000)]
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    processes = [context.Process(target=deliver_all, args=(path, keys, results)) for _ in range(4)]
    for process in processes:
        process.start()
    applied = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sum(applied) == len(keys)
    assert Ledger(path).summary("", 0)[:2] == (len(keys), 4 * len(keys))


def test_what_was_delivered_is_known_after_the_process_is_gone(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "ledger")
    assert first.deliver("a")
    second = Ledger(tmp_path / "ledger")
    assert not second.deliver("a")
    assert (second.deliveries("a"), first.deliveries("a"), second.deliveries("b")) == (2, 2, 0)
    assert second.summary("", 10) == (1, 2, {"a": 2})
    assert second.summary("b", 10) == (0, 0, {})


def test_a_line_that_is_not_whole_yet_is_read_later(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    with path.open("ab", buffering=0) as other:
        other.write(b"torn other:1:1")
        assert ledger.deliveries("torn") == 0
        other.write(b"\n")
        assert ledger.deliveries("torn") == 1


def test_a_ledger_longer_than_one_read_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_text("".join(f"key-{n} old:1:{n}\n" for n in range(100_000)))
    assert path.stat().st_size > 1 << 20
    assert Ledger(path).summary("", 0) == (100_000, 100_000, {})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_volume_is_an_error_and_nothing_is_applied() -> None:
    with pytest.raises(OSError, match="No space left"):
        Ledger(Path("/dev/full")).deliver("a")


@contextmanager
def space_for(size: int) -> Iterator[None]:
    """Files of this process may not grow past `size` bytes: what is written across it is written in part."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", range(1, 41))
def test_a_line_for_which_there_is_not_all_the_space_is_an_error_and_costs_no_other(tmp_path: Path, room: int) -> None:
    """Wherever it is torn; the next line may be another process's."""
    path = tmp_path / "ledger"
    ours, theirs = Ledger(path), Ledger(path)
    assert ours.deliver("before")
    with space_for(path.stat().st_size + room):
        with pytest.raises(OSError, match="No space left"):
            ours.deliver("torn")
        with pytest.raises(OSError, match="File too large"):
            ours.deliver("torn")
    assert theirs.deliver("next"), "a whole line was lost behind a torn one"
    assert ours.deliver("torn"), "what was never applied counts as a repeat"
    assert not theirs.deliver("torn")
    for ledger in (ours, theirs, Ledger(path)):
        assert ledger.summary("", 10) == (3, 4, {"torn": 2})
