"""examples/shop put into the stack as its README says, and its ledger: the table of orders."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from proofs.database import Database
from proofs.open_loop import OpenLoop, Outcome
from proofs.stack import PATIENT_BUDGET, ROOT, Stack

SHOP = Path("examples/shop")
ORDER = {"sku": "tea", "quantity": 2}
RATE = 150  # orders in a second
# Its README's two blocks: the commands that bring it into the stack, and the rows.
COMMANDS, TABLE = re.findall(r"^```(?:sh|ini)\n(.*?)^```", (ROOT / SHOP / "README.md").read_text(), re.M | re.S)
ROWS = dict(line.split("=", 1) for line in TABLE.splitlines()) | {"APP_ENV_FILE": ".env.app"}


# An order may wait for as long as a machine is slow, that builds an image meanwhile or stands still for some seconds.
WAITING = {
    "REQUEST_DEADLINE_SECONDS": "40",
    "PROXY_READ_TIMEOUT_SECONDS": "45",
    "WORKER_TIMEOUT_SECONDS": "45",
    "UVICORN_GRACEFUL_SECONDS": "45",
    "GUNICORN_GRACEFUL_SECONDS": "50",
    "NGINX_SHUTDOWN_SECONDS": "45",
    "STOP_GRACE_SECONDS": "60",  # a swarm adds STOP_DELAY_SECONDS
    "REPLACED_WORKER_SECONDS": "60",
}


def files() -> dict[str, str]:
    """The example as `cp` puts it into app/."""
    paths = [path.relative_to(ROOT / SHOP) for path in (ROOT / SHOP).rglob("*") if path.is_file()]
    kept = [path for path in paths if path.suffix != ".pyc"]
    return {f"app/shop/{path}": (ROOT / SHOP / path).read_text() for path in kept}


def native(name: str, database: Database, more: Mapping[str, str] | None = None, **rows: str) -> Stack:
    """The shop as plain processes, with this database."""
    own = {".env.app": f"DATABASE_URL={database.url}\n"}
    return Stack("native", name, files=files() | own | (more or {}), **PATIENT_BUDGET | ROWS | rows)


def compose(name: str, **rows: str) -> Stack:
    """The shop in containers, after the README's commands in a copy of the tree."""
    stack = Stack("compose", name, **PATIENT_BUDGET | WAITING | ROWS | rows)
    done = stack.run_in_a_copy(COMMANDS)
    if done.returncode:
        shutil.rmtree(stack.root)
    assert done.returncode == 0, done.stderr
    return stack


class ComposeDatabase:
    """The database of a stack in containers, asked as `Database` is."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def ask(self, statement: str) -> list[str]:
        psql = ["psql", "--quiet", "--tuples-only", "--no-align", "--username=shop", "--command", statement]
        return self.stack.compose("exec", "-T", "database", *psql).splitlines()


class Asked(Protocol):
    def ask(self, statement: str) -> list[str]: ...


def orders(stack: Stack, database: Asked, connections: Any = None) -> OpenLoop:
    """A load of orders alone. What it lost and doubled is counted in the database itself."""

    def ledger(_: Stack, outcome: Outcome) -> None:
        rows = database.ask(f"SELECT key, count(*) FROM orders WHERE key LIKE '{outcome.prefix}-%' GROUP BY key")
        found = {key: int(count) for key, count in (row.split("|") for row in rows)}
        lost = {key for _, _, key, _ in outcome.lost}
        # Those that were answered; an order without an answer may have been placed as well.
        outcome.applied = len(found.keys() - lost)
        outcome.doubled = {key: count for key, count in found.items() if count > 1}

    body = json.dumps(ORDER).encode()
    return OpenLoop(stack, RATE, ledger=ledger, post_share=1, body=body, connections=connections)
