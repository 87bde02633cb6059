"""make capacity finds what an app can bear, for any ASGI app, and changes what it says it changes in .env. make lab
measures any ASGI app as well.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from proofs.apps import known, waiting
from proofs.database import Database, running
from proofs.stack import patched_copy

pytestmark = pytest.mark.xdist_group("load")

FOUND, COULD_NOT_RUN, TOO_NOISY = 0, 2, 3
ROWS = {
    "SLO_P50_MS": "100", "SLO_P95_MS": "300", "SLO_P99_MS": "1000", "SLO_ERROR_SHARE": "0.001", "WORKERS": "1",
    "APP_MAX_REQUESTS_IN_FLIGHT": "256", "APP_ENV_FILE": ".env.app", "TOKEN": "t0ken",
}  # fmt: skip

# An app that is made by a factory, wants a variable of its own, and knows one path.
OWN = """
import os

def create_app():
    token = os.environ["TOKEN"].encode()

    async def app(scope, receive, send):
        status = 200 if scope["path"] == "/greet" else 404
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": token})

    return app
"""
OWN_ROWS = {"APP_MODULE": "app.mine:create_app()", "PATHS": "/greet"}
# make lab with one round, of the experiments that differ in how they start an app. Its slices are longer than a machine
# stands still: one without an answer is an error.
EXPERIMENTS = ("shell", "proxy", "start")
ONE_ROUND = [(f"bench/experiments/{name}.py", "\nROUNDS = ", "\nROUNDS = 1  # ") for name in EXPERIMENTS]
LONG_SLICES = [
    ("bench/harness.py", "\nSLICE_SECONDS = 1\n", "\nSLICE_SECONDS = 4\n"),
    ("bench/harness.py", "NEW_WARM_UP_SECONDS = 2, 1\n", "NEW_WARM_UP_SECONDS = 4, 4\n"),
]


@dataclass
class Run:
    status: int
    output: str
    left: dict[str, Any]  # reports/capacity.json


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """A copy, so that the .env and the reports of a test are its own."""
    root = patched_copy(ONE_ROUND + LONG_SLICES)
    try:
        (root / "app/mine.py").write_text(OWN)
        (root / ".env.app").write_text("TOKEN=${TOKEN:?set it in the shell}\n")
        yield root
    finally:
        shutil.rmtree(root)


def capacity(tree: Path, **rows: str) -> Run:
    """What `make capacity` runs."""
    (tree / "reports/capacity.json").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "bench.capacity"],
        cwd=tree, env=os.environ | ROWS | rows, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    report = tree / "reports/capacity.json"
    left = json.loads(report.read_text()) if report.exists() else {}
    return Run(done.returncode, done.stdout + done.stderr, left)


def found(tree: Path, **rows: str) -> Run:
    """The same, of an app for which there is something to find; on a noisy machine at the second time."""
    before = (tree / ".env").read_text()
    run = capacity(tree, **rows)
    if run.status == TOO_NOISY:  # a finding too, but not this one
        assert (tree / ".env").read_text() == before, "written although it is not known"
        run = capacity(tree, **rows)
    assert run.status == FOUND, run.output
    return run


def test_the_rate_of_an_app_whose_capacity_is_known_is_found_and_its_rows_are_written(tree: Path) -> None:
    before = (tree / ".env").read_text()
    run = found(tree, APP_MODULE="proofs.apps.known:app", PROBE="1", WRITE="1")
    most = 1 / known.SECONDS
    rate = run.left["rate"]
    assert 0.6 * most < rate < 1.2 * most, (
        f"one worker bears {most:.0f} requests/s, {rate:.0f} were found\n{run.output}"
    )
    assert f"{rate:.1f} requests/s within the objectives" in run.output
    assert "the knee" in (tree / "reports/capacity.svg").read_text()
    changed = {each["row"]: each["value"] for each in run.left["recommendations"] if each["now"] != each["value"]}
    assert "APP_MAX_REQUESTS_IN_FLIGHT" in changed, f"this app bears few requests at a time\n{run.output}"
    lines = [(old, new) for old, new in zip(before.splitlines(), (tree / ".env").read_text().splitlines(), strict=True)
             if old != new]  # fmt: skip
    assert {new for _, new in lines} == {f"{row}={value}" for row, value in changed.items()}
    assert all(f"-{old}" in run.output and f"+{new}" in run.output for old, new in lines), run.output


@pytest.mark.parametrize(
    ("module", "paths"),
    [("examples.starlette_app:app", "/ /items/7"), ("examples.bare_app:app", "/"),
     (OWN_ROWS["APP_MODULE"], OWN_ROWS["PATHS"])],
)  # fmt: skip
def test_an_app_of_your_own_is_measured(tree: Path, module: str, paths: str) -> None:
    before = dotenv_values(tree / ".env")
    run = capacity(tree, APP_MODULE=module, PATHS=paths, PROBE="0.5")
    # Short probes of an app that takes all the CPU there is: on a machine that is busy otherwise nothing can be found.
    assert run.status in (FOUND, TOO_NOISY), run.output
    assert ("the machine was too noisy to tell: " in run.output) is (run.status == TOO_NOISY), run.output
    if run.status == FOUND:
        assert f"{run.left['rate']:.1f} requests/s within the objectives" in run.output
    assert run.left["target"] == {"module": module, "paths": paths.split()}
    held = [each for each in run.left["probes"] if each["held"]]
    assert held, f"not one probe of {module} held\n{run.output}"
    assert not any(each["errors"] for each in held)
    assert dotenv_values(tree / ".env") == before, "without WRITE=1 .env stays as it is"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"APP_MODULE": "nowhere:app"}, "APP_MODULE=nowhere:app cannot be loaded"),
        ({"APP_MODULE": "examples.bare_app:app", "PATHS": "items"}, "PATHS=items"),
        ({"APP_MODULE": "examples.starlette_app:app", "PATHS": "/ /nothing"}, "GET /nothing"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(tree: Path, rows: dict[str, str], said: str) -> None:
    run = capacity(tree, **rows)
    assert run.status == COULD_NOT_RUN, run.output
    faults = [line for line in run.output.splitlines() if "about" not in line]
    assert len(faults) == 1, run.output
    assert said in faults[0]
    assert "; it must be" in faults[0] or "each must" in faults[0], faults[0]


def test_a_variable_that_your_app_requires_is_named_where_it_is_missing(tree: Path) -> None:
    run = capacity(tree, **OWN_ROWS | {"TOKEN": ""})
    said = ".env.app: required variable TOKEN is missing a value: set it in the shell"
    assert (run.status, run.output.splitlines()[-1]) == (COULD_NOT_RUN, said)


def test_make_lab_measures_an_app_of_your_own(tree: Path) -> None:
    environ = os.environ | ROWS | OWN_ROWS | {"DOCKER_HOST": "unix:///nowhere"}  # else it builds images
    done = subprocess.run(
        [sys.executable, "-m", "bench", "lab", *EXPERIMENTS],
        cwd=tree, env=environ, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode != COULD_NOT_RUN, output
    # The harness accepts right answers alone, and this app has them at its own path alone.
    for name in ("shell", "proxy"):
        assert f'"GET {OWN_ROWS["PATHS"]}"' in (tree / f"reports/bench/{name}.json").read_text(), output
    assert "start to the first 200, native" in output
    assert "not measured: start: compose: no Docker engine answers" in output


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with running(max_connections=120) as database:
        yield database


@pytest.mark.parametrize(
    ("path", "size", "recommended", "more"),
    # Near its rate the first one waits long, whatever its pool: beside other proofs they decide how few are enough.
    [pytest.param("/turn", 16, {1, 2, 4}, False, marks=pytest.mark.alone), ("/wait", 2, {2}, True)],
)
def test_the_pool_that_an_app_needs_is_found(
    tree: Path, database: Database, path: str, size: int, recommended: set[int], more: bool
) -> None:
    """Of an app that does one request at a time in the database, and of one whose requests each wait there alone."""
    rows = {"APP_MODULE": "proofs.apps.waiting:app", "PATHS": path, "DATABASE_URL": database.url, "PROBE": "0.5",
            "DATABASE_POOL_SIZE": str(size), "DATABASE_MAX_CONNECTIONS": "120"}  # fmt: skip
    run = found(tree, **rows)
    (row,) = (each for each in run.left["recommendations"] if each["row"] == "DATABASE_POOL_SIZE")
    assert int(row["value"]) in recommended, run.output
    assert f"DATABASE_POOL_SIZE={row['value']}" in run.output
    assert ("DATABASE_POOL_SIZE=4 it bears more" in run.output) is more, run.output
    assert run.left["rate"] < 1.2 * (1 if path == "/turn" else size) / waiting.SECONDS, run.output
