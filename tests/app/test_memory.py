from __future__ import annotations

from pathlib import Path

import pytest
from dotenv import dotenv_values

from app.server import memory
from app.server.settings import read
from stack.settings import GIVEN, ROOT, StackSettings


def test_this_process_holds_what_a_python_process_holds() -> None:
    before = memory.resident_mb()
    ballast = b"x" * (64 << 20)
    assert 5 < before < 4096
    assert 60 <= memory.resident_mb() - before <= 80
    assert len(ballast) == 64 << 20


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert memory.resident_mb(tmp_path / "statm") == 0


@pytest.mark.parametrize(
    ("workers", "limit", "container", "fits"),
    [(2, 170, "512m", True), (2, 171, "512m", False), (4, 204, "1g", True), (4, 205, "1g", False), (9, 0, "64m", True),
     (1, 1, "2048k", True), (1, 2, "2048k", False)],
)  # fmt: skip
def test_the_workers_and_a_replacement_must_fit(workers: int, limit: int, container: str, fits: bool) -> None:
    assert (memory.advice(workers, limit, container) is None) == fits


def test_the_advice_names_the_rows_and_a_value_that_fits() -> None:
    line = memory.advice(2, 300, "512m")
    assert line is not None
    for part in ("WORKER_MEMORY_MB=300", "WORKERS=2", "APP_MEMORY=512m", "set WORKER_MEMORY_MB=170"):
        assert part in line


def test_the_committed_table_fits() -> None:
    rows = {name: value or "" for name, value in dotenv_values(ROOT / ".env").items()}
    settings = read(StackSettings, GIVEN | rows)
    assert memory.advice(settings.workers, settings.worker_memory_mb, settings.app_memory) is None
