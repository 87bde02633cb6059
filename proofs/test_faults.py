"""The server's own faults: what fails is tried again, what an application does wrong harms nobody else.

Most of it is seen at a master with its workers alone, as both ways of running start it; where nginx or the container
is the point, at a stack.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from proofs.conftest import require_engine, started
from proofs.stack import DEADLINE, ROOT, SMALL_BUDGET, Stack, free_ports, patched_copy, until
from proofs.test_worker import raw_get, send_get
from stack.settings import GIVEN, rows

pytestmark = pytest.mark.xdist_group("faults")
FAULTY = {"APP_MODULE": "proofs.apps.faulty:app"}
SHM = Path("/dev/shm")
INFANCY_SECONDS = 1.0  # as in app/server/arbiter.py


class Server:
    """A master with its workers, and nothing before them."""

    def __init__(self, folder: Path, *, root: Path = ROOT, before: Sequence[str] = (), **own: str) -> None:
        """`before` is what the command begins with; `folder` is RUN_DIR, and its modules can be imported."""
        self.folder = folder
        self.rows = GIVEN | rows() | SMALL_BUDGET | FAULTY | {"APP_PORT": str(free_ports(4))} | own
        self.environ = os.environ | self.rows | {"RUN_DIR": str(folder), "LEDGER_PATH": str(folder / "ledger")}
        self.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        self.root, self.port = root, int(self.rows["APP_PORT"])
        self.command = [*before, sys.executable, "-m", "app.server"]

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(self.command, cwd=self.root, env=self.environ, stdout=log, stderr=log)

    def stop(self) -> int:
        """Its exit status; what is left after the time for it is killed."""
        self.process.terminate()
        try:
            return self.process.wait(int(self.rows["STOP_GRACE_SECONDS"]) + DEADLINE)
        finally:
            for worker in (self.status() or {"workers": []})["workers"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker["pid"], signal.SIGKILL)
            self.process.kill()

    def status(self) -> dict[str, Any] | None:
        """The master's account; None while there is none."""
        with contextlib.suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads((self.folder / f"app-{self.port}.status.json").read_text())
            return found
        return None

    def pids(self) -> list[int]:
        """The workers that serve, by slot; empty while there are not as many as the row says."""
        found = self.status() or {"workers": []}
        ready = sorted((worker["slot"], worker["pid"]) for worker in found["workers"] if worker["state"] == "ready")
        return [pid for _, pid in ready] if len(ready) == int(self.rows["WORKERS"]) else []

    def until_ready(self) -> list[int]:
        def pids() -> list[int]:
            assert self.process.poll() is None, f"the master has ended:\n{self.text()}"
            return self.pids()

        found: list[int] = until("workers that serve", pids)
        return found

    def kill(self, pid: int) -> None:
        """The end of a worker that has served for a while: one that dies in its infancy is replaced later."""
        written = (self.folder / f"app-{self.port}.status.json").stat().st_mtime  # when the last one got ready, or later
        until("its infancy's end", lambda: time.time() > written + INFANCY_SECONDS + 0.2)
        os.kill(pid, signal.SIGKILL)

    def text(self) -> str:
        return (self.folder / "log").read_text()

    def log(self, level: str = "") -> list[str]:
        """The messages so far; those of one level."""
        lines = [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]
        return [line["message"] for line in lines if level in ("", line["level"])]

    def said(self, words: str, seconds: float = DEADLINE) -> str:
        """The first message with these words, waited for."""

        def find() -> str:
            return next((message for message in self.log() if words in message), "")

        found: str = until(f"a line with {words!r}", find, seconds)
        return found

    def client(self, slot: int = 0, timeout: float = DEADLINE) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port + slot}", timeout=timeout)

    def get(self, path: str, slot: int = 0) -> httpx.Response:
        """The answer on a new connection."""
        with self.client(slot) as client:
            return client.get(path)

    def connect(self, slot: int = 0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port + slot), timeout=DEADLINE)

    def refuses(self, slot: int) -> bool:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", self.port + slot)) != 0

    def metric(self, name: str, slot: int = 0) -> float:
        """The sum of a metric's values."""
        lines = self.get("/metrics", slot).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server, ready; and stopped, also where something failed."""
    server.start()
    try:
        server.until_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(Server(tmp_path_factory.mktemp("faulty"))) as server:
        yield server


def lives(pid: int) -> bool:
    """Whether there is such a process, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def no_descriptors(pid: int) -> Iterator[None]:
    """This process can open nothing more; what it has, it keeps."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


# --- nothing is left to start or to accept with ---------------------------------------------------------------


def test_a_master_without_a_descriptor_serves_on_and_replaces_a_worker_when_it_has_one(faulty: Server) -> None:
    first, second = faulty.until_ready()
    umask = Path(f"/proc/{second}/status").read_text().partition("Umask:")[2].split()[0]
    with no_descriptors(faulty.process.pid):
        faulty.kill(first)
        line = faulty.said("Slot 0 has no new worker, next try in")
        assert "Too many open files" in line, line
        until("a port that refuses", lambda: faulty.refuses(0), seconds=10)
        faulty.said("Slot 0 has no new worker, next try in 2 s")
        assert int(faulty.get("/", slot=1).text) == second
        assert faulty.process.poll() is None, "the master has ended"
    new, other = until("a new worker", lambda: first not in (pids := faulty.until_ready()) and pids)
    assert other == second, "the worker that served was replaced"
    assert int(faulty.get("/").text) == new
    now = Path(f"/proc/{new}/status").read_text().partition("Umask:")[2].split()[0]
    assert now == umask, f"the files of the new worker's application are made with umask {now}, not {umask}"
    assert not [message for message in faulty.log() if "Unhandled exception" in message]


def test_a_worker_without_a_descriptor_serves_what_it_has_and_accepts_again_when_it_has_one(faulty: Server) -> None:
    pid = faulty.until_ready()[0]
    with faulty.connect() as old, ExitStack() as opened:
        assert raw_get(old, "/livez").startswith("HTTP/1.1 200 ")
        with no_descriptors(pid):
            new = opened.enter_context(faulty.connect())  # the kernel's queue takes it
            send_get(new, "/livez")
            faulty.said("cannot accept a connection: Too many open files")
            assert raw_get(old, "/livez").startswith("HTTP/1.1 200 "), "an open connection is not served"
        new.settimeout(20)
        try:
            assert new.recv(65536).startswith(b"HTTP/1.1 200 ")
        except TimeoutError:
            raise AssertionError("20 s after a descriptor was free again, nothing is accepted") from None
    assert faulty.until_ready()[0] == pid, "the worker was replaced"
