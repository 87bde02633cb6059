"""What stands behind `make check` and `make up`, without a stack that runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proofs.stack import patched_copy
from stack import check, compose
from stack.console import Failure


@pytest.mark.parametrize(
    ("workers", "usable", "words"),
    [(2, 2.0, ""), (2, 2.5, ""), (1, 0.5, ""), (4, 2.0, "set WORKERS=2"), (1, 4.0, ""),
     (2, 0.5, "set WORKERS=1")],
)  # fmt: skip
def test_workers_that_do_not_fit_the_cpus_are_refused(workers: int, usable: float, words: str) -> None:
    said = ""
    try:
        check.hold_to_cpus(workers, usable)
    except Failure as failure:
        said = str(failure)
    assert words in said
    assert bool(words) == bool(said)


def test_a_users_commands_need_no_code_of_the_tests() -> None:
    copy = patched_copy([])
    try:
        for folder in ("bench", "proofs", "tests"):
            shutil.rmtree(copy / folder)
        done = subprocess.run([sys.executable, "-m", "stack", "--help"], cwd=copy, capture_output=True, text=True)
    finally:
        shutil.rmtree(copy)
    assert done.returncode == 0, done.stderr


def test_without_nginx_a_check_says_that_it_asks_none_and_installs_none(
    apt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", os.defpath)  # of the tools; nginx and apt-get are looked for where the fixture says
    monkeypatch.setattr(compose, "engine", lambda: None)
    check.check()
    said = capsys.readouterr().out
    assert "skipped nginx -t: no nginx is installed here; make up installs it, or says how" in said
    assert "ok      gixy" in said
    assert not (apt / "calls").exists(), "make check ran apt-get"
