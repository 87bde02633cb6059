"""What the master counts, on its board; and the observer, which reads all boards (observer.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from bisect import bisect_left
from contextlib import suppress
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING

from app.server.board import Board
from app.server.metrics import DRAIN_BUCKETS, EXIT_REASONS, RELOAD_RESULTS, STATES

if TYPE_CHECKING:
    from app.server.worker import Worker

MASTER = "master"
ROOT = Path(__file__).parents[2]
HEARTBEAT = "observer"
# Between two starts of the observer. One that has not moved for the second time is killed.
PAUSE_SECONDS = 2.0
SILENCE_SECONDS = 10.0


def new_board(path: Path | None) -> Board:
    """A board that the observer reads; where there is no room for its file, one that it does not."""
    try:
        return Board(path)
    except OSError:
        return Board()


class Account:
    """The master's. `folder` is for the boards of this master and its workers alone."""

    def __init__(self, folder: Path, log: Logger) -> None:
        self.folder = folder
        self.log = log
        self.board = new_board(folder / MASTER)
        for result in RELOAD_RESULTS:
            self.board.cell("app_reloads", result)
        for reason in EXIT_REASONS:
            self.board.cell("app_worker_exits", reason)
        self.drains = self.board.cell("app_drain_seconds", size=len(DRAIN_BUCKETS) + 2)
        for name in ("generation", "wanted", HEARTBEAT):  # the observer writes to the last, and must make no cell
            self.board.cell(name)
        if self.board.path is None:
            log.error("no room in %s: no metrics", folder)
        self.observer: subprocess.Popen[bytes] | None = None
        self.started = -PAUSE_SECONDS

    # --- what happens ---------------------------------------------------------------------------------------

    def board_for(self, slot: int, in_use: set[Path | None]) -> Board:
        """The first of this slot's boards that no living worker has: what was counted on it goes on."""
        number = 0
        while (path := self.folder / f"{slot}-{number}") in in_use:
            number += 1
        board = new_board(path)
        for name in ("pid", "state"):
            board.put(0, name)
        board.put(slot, "slot")
        return board

    def reloaded(self, result: str) -> None:
        self.board.add(1, "app_reloads", result)

    def ended(self, worker: Worker) -> None:
        """Count why, and how long it took to leave. The requests that it had are lost with it."""
        board = worker.board
        board.learn()  # what the worker has written
        self.board.add(1, "app_worker_exits", _why_ended(worker))
        lost = board.get("http_requests_in_flight")
        if lost:
            board.add(lost, "http_requests_cut", "killed")
            board.put(0, "http_requests_in_flight")
        if worker.leaving_since and worker.ready_at:
            seconds = time.monotonic() - worker.leaving_since
            self.board.values[self.drains + bisect_left(DRAIN_BUCKETS, seconds)] += 1
            self.board.values[self.drains + len(DRAIN_BUCKETS) + 1] += seconds

    # --- the observer ---------------------------------------------------------------------------------------

    def keep(self, generation: int, wanted: int) -> None:
        """Called once a second or more often: say what is, and see to it that the observer runs."""
        self.board.put(generation, "generation")
        self.board.put(wanted, "wanted")
        now = time.monotonic()
        if self.observer is not None and self.observer.poll() is None:
            if now - max(self.board.get(HEARTBEAT), self.started) > SILENCE_SECONDS:
                self.log.error("the observer (pid:%s) does not move: killed", self.observer.pid)
                self.observer.kill()
            return
        if now < self.started + PAUSE_SECONDS or self.board.path is None:
            return
        self.started = now
        # A process group of its own: a signal to the master's group is not for it.
        command = [sys.executable, "-S", "-m", "app.server.observer", str(os.getpid())]
        try:
            self.observer = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, process_group=0)
        except OSError as error:  # no process is to be had; nobody waits for it
            self.log.error("cannot start the observer, trying on: %s", error.strerror)

    def close(self) -> None:
        """The master ends; the observer has nothing to lose."""
        if self.observer is not None:
            self.observer.kill()
            with suppress(ChildProcessError):
                self.observer.wait()


def _why_ended(worker: Worker) -> str:
    if worker.aborted:
        return "silent"
    if worker.overdue:
        return "late"
    if not worker.ready_at:
        return "reload" if worker.leaving_since else "boot"
    if STATES[int(worker.board.get("state"))] != "left":
        return "crashed"
    return worker.replacement_wanted.cause if worker.replacement_wanted else "reload"
