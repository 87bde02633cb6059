"""Gunicorn's master, so changed that no worker goes before its replacement stands.

Each worker has a slot, and each slot its listening socket (or all share one: WORKER_LISTENERS=shared). A slot without a
worker gets one at once; a worker that asks to go is replaced first; a reload starts a whole new generation beside
the old, one worker at a time, and retires the old when the new is complete. A generation that does not get ready
is taken back. Nothing that fails later than the first start ends the master.

Relied on, beyond the documented hooks, and read in gunicorn 27.0: the main loop calls manage_workers() after every
signal and once a second; reap_workers() takes a dead worker out of WORKERS, and raises HaltServer for exit status
3 and 4 in the middle of its loop; spawn_worker() constructs `self.worker_class`; stop() closes LISTENERS, then sends
TERM.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn import sock
from gunicorn.arbiter import Arbiter as GunicornArbiter
from gunicorn.errors import HaltServer

from app.server import status
from app.server.worker import Worker

LONGEST_PAUSE_SECONDS = 10.0
# A worker that dies so soon after it was ready counts as one that does not start.
INFANCY_SECONDS = 1.0


class BoundSocket(sock.TCPSocket):  # type: ignore[misc]
    """A port that refuses until a worker is ready to serve it, and calls listen().

    A queue that opens with the master would let nginx's requests wait for the workers' whole start, while another
    replica could answer them at once.
    """

    @staticmethod
    def _is_listening(_socket: socket.socket) -> bool:
        return True  # so Gunicorn leaves it alone


class Arbiter(GunicornArbiter):  # type: ignore[misc]
    LISTENERS: list[Any]
    WORKERS: dict[int, Worker]
    worker_class: Any

    def __init__(self, app: Any) -> None:
        self.generation = 0  # the one that serves; 0: none yet
        self.attempt = 1  # the newest one
        self.reason = ""  # why the newest attempt failed; "" while it has not
        self.failures = 0  # in a row, of replacements
        self.not_before = 0.0
        self.stopping = False
        self.exit_status = self.WORKER_BOOT_ERROR
        self.written: status.Status | None = None
        super().__init__(app)

    def start(self) -> None:
        try:
            self.LISTENERS = [BoundSocket(address, self.cfg, self.log) for address in self.cfg.address]
        except OSError as error:
            self.log.error("cannot listen at %s: %s", ", ".join(self.cfg.bind), error.strerror)
            sys.exit(1)
        super().start()

    # --- the loop -------------------------------------------------------------------------------------------

    def manage_workers(self) -> None:
        now = time.monotonic()
        for worker in list(self.WORKERS.values()):
            self._listen_to(worker)
            self._hold_to_deadlines(worker, now)
        slots = range(self.num_workers)
        if self._reloading and all(self._ready(slot, self.attempt) for slot in slots):
            self.generation = self.attempt
            self.log.info("generation %d is ready", self.generation)
        for worker in self._staying():
            if worker.slot >= self.num_workers or self._is_replaced(worker):
                self._retire(worker)
        for slot in slots:
            if now >= self.not_before and self._needs_worker(slot):
                self._spawn(slot)
        self._write_status()

    def _needs_worker(self, slot: int) -> bool:
        staying = self._staying(slot)
        if not staying:
            return True
        if any(not worker.ready_at for worker in self._staying()):
            return False  # one at a time: the CPU that starts a worker is taken from those that serve
        if self._reloading and not any(worker.generation == self.attempt for worker in staying):
            return True
        return all(worker.wants_replacement for worker in staying)

    def _is_replaced(self, worker: Worker) -> bool:
        return any(
            other.ready_at and other.age > worker.age and other.generation <= self.generation
            for other in self._staying(worker.slot)
        )

    @property
    def _reloading(self) -> bool:
        return self.attempt > self.generation and not self.reason

    def _staying(self, slot: int | None = None) -> list[Worker]:
        workers = [worker for worker in self.WORKERS.values() if not worker.leaving_since]
        return [worker for worker in workers if slot is None or worker.slot == slot]

    def _ready(self, slot: int, generation: int) -> bool:
        return any(worker.ready_at and worker.generation == generation for worker in self._staying(slot))

    # --- one worker -----------------------------------------------------------------------------------------

    def _spawn(self, slot: int) -> None:
        constructor = self.worker_class
        siblings = [worker.master_end for worker in self.WORKERS.values()]
        generation = self.attempt if self._reloading else self.generation
        self.worker_class = partial(constructor, slot=slot, generation=generation, foreign=siblings)
        try:
            worker = self.WORKERS[self.spawn_worker()]
        finally:
            self.worker_class = constructor
        worker.channel.close()  # held open here, it would hide the worker's end

    def _listen_to(self, worker: Worker) -> None:
        with suppress(OSError):
            while received := worker.master_end.recv(4096):
                worker.inbox += received
        *lines, worker.inbox = worker.inbox.split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "ready":
                worker.ready_at = time.monotonic()
                self.failures, self.not_before = 0, 0.0
            elif word == "replace":
                worker.wants_replacement = True
            elif word == "draining":
                worker.leaving_since = worker.leaving_since or time.monotonic()
            elif word == "failed":
                worker.reason = rest

    def _hold_to_deadlines(self, worker: Worker, now: float) -> None:
        if worker.leaving_since:
            if now - worker.leaving_since > self.cfg.graceful_timeout:
                self.log.error("Worker (pid:%s) has not left in %s s: killed", worker.pid, self.cfg.graceful_timeout)
                self.kill_worker(worker.pid, signal.SIGKILL)
        elif not worker.ready_at and self.timeout and now - worker.born > self.timeout:
            worker.reason = f"not ready within {self.timeout} s (WORKER_TIMEOUT_SECONDS)"
            self.kill_worker(worker.pid, signal.SIGKILL)

    def _retire(self, worker: Worker) -> None:
        worker.leaving_since = time.monotonic()
        if worker.ready_at:
            with suppress(OSError):  # it is dead already, and not yet reaped
                worker.master_end.send(b"leave\n")
        else:
            self.kill_worker(worker.pid, signal.SIGTERM)

    def reap_workers(self) -> None:
        before = dict(self.WORKERS)
        again = True
        while again:
            again = False
            try:
                super().reap_workers()
            except HaltServer as halt:
                self.exit_status = halt.exit_status
                again = True
        for pid in before.keys() - self.WORKERS.keys():
            self._ended(before[pid])

    def _ended(self, worker: Worker) -> None:
        self._listen_to(worker)
        worker.master_end.close()
        worker.tmp.close()
        now = time.monotonic()
        if self.stopping or worker.leaving_since or (worker.ready_at and now - worker.ready_at > INFANCY_SECONDS):
            return
        reason = worker.reason or f"worker {worker.pid} ended as it began to serve"
        if self.generation == 0:
            raise HaltServer(reason, self.exit_status)
        if self._reloading and worker.generation == self.attempt:
            self._take_back(reason)
            return
        self.failures += 1
        pause = min(LONGEST_PAUSE_SECONDS, 2.0 ** (self.failures - 1))
        self.not_before = now + pause
        self.log.error("Slot %d has no new worker, next try in %.0f s: %s", worker.slot, pause, reason)

    # --- signals --------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """HUP: load the application's code anew. Settings and the shell's own code are the master's: they stay."""
        self.log.reopen_files()
        if self._reloading:
            self._take_back("a newer reload")
        self.attempt += 1
        self.reason = ""
        self.failures, self.not_before = 0, 0.0
        self.log.info("generation %d starts", self.attempt)

    def _take_back(self, reason: str) -> None:
        self.reason = reason
        for worker in [w for w in self._staying() if w.generation == self.attempt]:
            if any(other.generation != self.attempt for other in self._staying(worker.slot)):
                self._retire(worker)
            else:
                worker.generation = self.generation  # nobody else serves its socket
        self.log.error("Generation %d is taken back, %d serves on: %s", self.attempt, self.generation, reason)

    def handle_int(self) -> None:
        self.handle_term()

    def handle_quit(self) -> None:
        self.handle_term()

    def handle_ttin(self) -> None:
        if len(self.LISTENERS) > 1:
            self.log.warning("TTIN ignored: nginx knows one port for each of the WORKERS; change the row in .env")
        else:
            super().handle_ttin()

    def handle_ttou(self) -> None:
        if len(self.LISTENERS) > 1:
            self.log.warning("TTOU ignored: nginx knows one port for each of the WORKERS; change the row in .env")
        else:
            super().handle_ttou()

    def handle_usr2(self) -> None:
        self.log.warning("USR2 ignored: a second master would not know this one's workers; use HUP")

    def stop(self, graceful: bool = True) -> None:
        self.stopping = True
        # The listeners before the channels: the last to close a socket resets what waits in its queue, and the
        # end of the channel tells the workers to empty it.
        sock.close_sockets(self.LISTENERS, True)
        self.LISTENERS = []
        for worker in self.WORKERS.values():
            worker.master_end.close()
        super().stop(True)
        if self.written:
            with suppress(OSError):
                os.unlink(status.path())

    # --- the account ----------------------------------------------------------------------------------------

    def _write_status(self) -> None:
        state: status.State = "starting" if not self.generation else "ready"
        if self.generation and self.attempt > self.generation:
            state = "failed" if self.reason else "reloading"
        now: status.Status = {
            "master": self.pid,
            "generation": self.generation,
            "attempt": self.attempt,
            "state": state,
            "reason": self.reason,
            "workers": [_describe(worker) for worker in self.WORKERS.values()],
        }
        if now != self.written:
            try:
                status.write(now)
            except OSError as error:  # a full disk must not end the master
                self.log.error("cannot write %s: %s", status.path(), error)
            self.written = now


def _describe(worker: Worker) -> status.WorkerStatus:
    return {
        "pid": worker.pid,
        "slot": worker.slot,
        "generation": worker.generation,
        "state": "draining"
        if worker.leaving_since
        else "booting"
        if not worker.ready_at
        else "retiring"
        if worker.wants_replacement
        else "ready",
    }
