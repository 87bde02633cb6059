"""The proofs of one stack run in one process of pytest-xdist, and some with nothing else beside them."""

import os
import re
import subprocess
import sys
from pathlib import Path

from proofs.stack import ROOT

TESTS = """
import os
import pytest

@pytest.fixture
def native_stack():
    pass

def note(name):
    with open(name, "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(20))
def test_of_a_group(number):
    note("group")

@pytest.mark.parametrize("number", range(20))
def test_of_the_stack(native_stack, number):
    note("stack")
"""


def test_the_tests_of_a_group_and_of_a_stack_run_in_one_process(tmp_path: Path) -> None:
    """Else each process would start a stack of its own. pytest-xdist 3.8 ignores groups with pytest 9.2."""
    (tmp_path / "conftest.py").write_text("from proofs.conftest import pytest_collection_modifyitems")
    (tmp_path / "test_group.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "--quiet", "--numprocesses=2", "--dist=loadgroup", "test_group.py"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for name in ("group", "stack"):
        processes = (tmp_path / name).read_text().split()
        ran = len(processes), len(set(processes))
        assert ran == (20, 1), f"20 tests of one {name} ran in {sorted(set(processes))}"


CONFTEST = """
from pathlib import Path
import proofs.conftest
from proofs.conftest import pytest_runtest_protocol

proofs.conftest.ROOT = Path(__file__).parent

def pytest_configure(config):
    config.addinivalue_line("markers", "alone")
"""
ALONE = """
import os
import time
import pytest

def note(event):
    with open("events", "a") as file:
        file.write(event)

@pytest.mark.parametrize("number", range(10))
def test_beside_others(number):
    note("(")
    time.sleep(0.1)
    note(")")

@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number):
    note("[")
    time.sleep(0.1)
    note("]")
"""


def test_nothing_runs_beside_a_test_that_is_to_be_alone(tmp_path: Path) -> None:
    for folder in ("tests", "proofs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_alone.py").write_text(ALONE)
    command = [sys.executable, "-m", "pytest", "--quiet", "--numprocesses=3", "test_alone.py"]
    environ = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    events = (tmp_path / "events").read_text()
    assert re.fullmatch(r"([()]|\[\])*", events), f"a test ran beside one in brackets: {events}"
    assert "((" in events, f"no two tests ran at once: {events}"
    assert events.count("[]") == 3
