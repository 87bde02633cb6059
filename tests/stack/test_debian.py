from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench import load
from stack import debian
from stack.console import Failure


def test_a_program_is_installed_after_an_update_of_the_lists(apt: Path) -> None:
    assert debian.found("wrk") is None
    debian.install("wrk")
    assert debian.found("wrk") == str(apt / "wrk")
    assert [line.split()[0] for line in (apt / "calls").read_text().splitlines()] == ["update", "install"]


def test_of_two_that_install_at_once_one_waits(apt: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        for installing in [threads.submit(debian.install, name) for name in ("wrk", "nginx-light")]:
            installing.result()
    assert debian.found("wrk")
    assert debian.found("nginx-light")


def test_what_cannot_be_installed_says_why(apt: Path) -> None:
    (apt / "broken").touch()
    with pytest.raises(Failure, match=r"apt-get update --quiet failed: E: no route to the mirror; install wrk by hand"):
        debian.install("wrk")


def test_only_root_with_apt_get_can_install(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert debian.can_install()
    monkeypatch.setattr("os.getuid", lambda: 1000)
    assert not debian.can_install()


def test_the_load_comes_from_wrk_where_it_can_be_installed(apt: Path) -> None:
    assert load.generator() == "Locust"
    assert load.prepare() == "wrk"
    assert load.generator() == "wrk"


def test_the_load_comes_from_locust_where_wrk_cannot_be_had_and_says_why(
    apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (apt / "broken").touch()
    assert load.prepare().startswith("Locust (apt-get update --quiet failed: E: no route")
    monkeypatch.setattr("os.getuid", lambda: 1000)
    assert "sudo apt-get install wrk" in load.prepare()
