"""The proofs of one stack run in one process of pytest-xdist: else each process would start a stack of its own."""

import subprocess
import sys
from pathlib import Path

TESTS = """
import os
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(20))
def test(number):
    with open("processes", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""


def test_the_tests_of_a_group_run_in_one_process(tmp_path: Path) -> None:
    """pytest-xdist 3.8 ignores groups with pytest 9.2, and says nothing."""
    (tmp_path / "test_group.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "--quiet", "--numprocesses=2", "--dist=loadgroup", "test_group.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    processes = (tmp_path / "processes").read_text().split()
    assert (len(processes), len(set(processes))) == (20, 1), f"20 tests of one group ran in {sorted(set(processes))}"
