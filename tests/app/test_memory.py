from __future__ import annotations

from pathlib import Path

from app.server import memory


def test_this_process_holds_what_a_python_process_holds() -> None:
    before = memory.resident_mb()
    ballast = b"x" * (64 << 20)
    assert 5 < before < 4096
    assert 60 <= memory.resident_mb() - before <= 80
    assert len(ballast) == 64 << 20


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert memory.resident_mb(tmp_path / "statm") == 0
