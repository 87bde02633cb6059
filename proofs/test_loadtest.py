"""make loadtest against the running stack: its exit status, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proofs.conftest import require_engine
from proofs.stack import PATIENT_BUDGET, ROOT, Stack
from proofs.test_loadtest_run import held_back

REPORTS = ROOT / "reports"
SMALL = {"LOADTEST_SECONDS": "6", "LOADTEST_WARMUP_SECONDS": "1", "LOADTEST_USERS": "10", "LOADTEST_RATE": "20"}
# The deadline of the tests' stack is 2 s: a machine that stands still for so long costs an answer or two.
EASY = {
    "SLO_P50_MS": "60000",
    "SLO_P95_MS": "60000",
    "SLO_P99_MS": "60000",
    "SLO_ERROR_SHARE": "0.1",
    "SLO_MIN_RPS": "1",
}


@pytest.fixture
def report() -> Iterator[dict[str, Path]]:
    """Where the test puts the report's folder; it is removed afterwards."""
    found: dict[str, Path] = {}
    yield found
    if "folder" in found:
        shutil.rmtree(found["folder"])


def left_by(done: subprocess.CompletedProcess[str]) -> Path:
    """The folder of a run's report."""
    said = (done.stdout + done.stderr).strip()
    assert "report: " in done.stdout, f"make loadtest left no report: {said.splitlines()[-1]}\n{said}"
    return REPORTS / done.stdout.rpartition("report: ")[2].split()[0].rpartition("/")[2]


@pytest.mark.parametrize("shape", ["closed", "rate"])
def test_a_load_test_exits_0_exactly_when_its_objectives_are_met_and_leaves_a_report(
    stack: Stack, shape: str, report: dict[str, Path]
) -> None:
    done = stack.make("loadtest", LOADTEST_SHAPE=shape, **SMALL, **EASY)
    folder = report["folder"] = left_by(done)
    summary = json.loads((folder / "summary.json").read_text())
    assert (done.returncode == 0) == (not held_back(summary, done.stdout)), done.stdout + done.stderr
    assert summary["measured"]["requests"] > 0
    for name in ("report.html", "requests.csv", "history.csv", "throughput.svg", "percentiles.svg"):
        assert (folder / name).stat().st_size > 0
        assert (folder / name).stat().st_uid == os.getuid()


def test_a_load_test_that_misses_an_objective_does_not_exit_0(stack: Stack, report: dict[str, Path]) -> None:
    done = stack.make("loadtest", **SMALL, **EASY | {"SLO_MIN_RPS": "1000000"})
    report["folder"] = left_by(done)
    assert done.returncode in (1, 2), done.stdout + done.stderr  # 2: the generator itself was short of CPU
    assert "FAIL" in done.stdout


SHOP = """
from typing import Annotated
from fastapi import FastAPI, Header
from pydantic import BaseModel, Field

class Line(BaseModel):
    sku: Annotated[str, Field(pattern="^SKU-[0-9]{6}$")]
    quantity: Annotated[int, Field(gt=0)]

app = FastAPI(title="Shop", openapi_url="/schema.json")

@app.get("/goods/{number}")
async def goods(number: Annotated[int, Field(ge=1)], words: str) -> dict[str, int]:
    return {"number": number}

@app.post("/baskets", status_code=201)
async def basket(lines: Annotated[list[Line], Field(min_length=1)], key: Annotated[str, Header(min_length=8)]) -> int:
    return len(lines)

@app.delete("/goods/{number}")
async def remove(number: int) -> None:
    raise AssertionError("make loadtest has removed something")
"""


def test_make_users_writes_a_load_test_for_an_app_from_its_schema(way: str) -> None:
    if way == "compose":
        require_engine()
    stack = Stack(way, "users", files={"app/shop.py": SHOP}, **PATIENT_BUDGET, APP_MODULE="app.shop:app")
    try:
        stack.up()
        # LOCUST=off: a load test brings its own.
        assert socket.socket().connect_ex(("127.0.0.1", stack.locust_port)) != 0, "Locust's web UI is there"
        foreign = stack.make("loadtest", **SMALL, **EASY)
        assert foreign.returncode == 2, foreign
        for words in ("GET /items: status 404", "POST /orders: status 404", "make users"):
            assert words in foreign.stdout + foreign.stderr
        missed = stack.make("users")
        assert (missed.returncode, len(missed.stderr.splitlines())) == (1, 1), missed
        assert "/openapi.json: status 404; make users OPENAPI=" in missed.stderr
        written = stack.make("users", OPENAPI="/schema.json")
        assert written.returncode == 0, written
        assert "left out: DELETE /goods/{number}" in written.stdout
        again = stack.make("users", OPENAPI="/schema.json")
        assert (again.returncode, "it is yours" in again.stderr) == (1, True), again

        done = stack.make("loadtest", LOADTEST_MODULE="loadtest.users", **SMALL, **EASY)
        assert done.returncode == 0, done
        (report,) = [path for path in (stack.root / "reports").iterdir() if f"/{path.name}" in done.stdout]
        rows = (report / "requests.csv").read_text()
        for name in ("GET,/goods/{number},", "POST,/baskets,"):
            assert name in rows, rows
        assert json.loads((report / "summary.json").read_text())["measured"]["failures"] == 0
    finally:
        stack.down()


def test_workers_of_the_native_way_find_their_master_on_its_port(native_stack: Stack) -> None:
    port = native_stack.rows["LOCUST_MASTER_PORT"]
    try:
        socket.create_connection(("127.0.0.1", int(port)), timeout=10).close()
    except OSError as error:
        raise AssertionError(f"no Locust master on LOCUST_MASTER_PORT: {error.strerror}") from None
