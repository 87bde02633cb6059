"""Gunicorn's master, so changed that no worker goes before its replacement stands.

A worker's life, with what each end of its channel says (messages.py):

    start ──> booting ──Ready──> ready ──ReplacementWanted──> retiring
                 │                 │                             │
             BootFailed,           │ a newer worker of its slot is ready, or fewer workers are wanted: Leave
             too slow: killed      v                             │
                 │             draining <────────────────────────┘
                 │                 │ DRAIN_SECONDS: nginx has given up its idle connections
                 │                 v
                 │             finishing ── what it has begun is done, or REPLACED_WORKER_SECONDS are over
                 v                 v
                gone  <────────────┘        (from each state: killed, or silent for WORKER_TIMEOUT_SECONDS)

With WORKER_START=fork workers are forked by the fork server of their generation (forkserver.py), and are this process's
children all the same.

Each worker has a slot, and each slot its listening socket (or all share one: WORKER_LISTENERS=shared). A slot without a
worker gets one at once. A reload starts a whole new generation beside the old, as many workers at a time as there are
CPUs for it, and retires the old when the new is complete. A generation that does not get ready is rolled back. Nothing
that fails later than the first start ends the master: it tries again, after a pause.

What is relied on beyond Gunicorn's documented hooks is named in tests/app/test_contract.py.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gunicorn import sock
from gunicorn.arbiter import Arbiter as GunicornArbiter
from gunicorn.errors import HaltServer

from app.server import cpus, forkserver, messages, status
from app.server.account import Account
from app.server.worker import Worker, settings

LONGEST_PAUSE_SECONDS = 10.0
# A worker that dies this soon after it was ready counts as one that does not start.
INFANCY_SECONDS = 1.0
# A worker that exceeds WORKER_MEMORY_MB as the one before it did, while it is this young or has begun no more requests
# than this, does not leak: the application needs that much.
STEADY_NEED_SECONDS = 60.0
STEADY_NEED_REQUESTS = 1000


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
        self.reload_wanted = False  # asked for while the first generation starts
        self.failures = 0  # in a row, of replacements
        self.not_before = 0.0
        self.cpus = cpus.whole(cpus.usable())
        self.fork_servers: dict[int, forkserver.ForkServer] = {}  # by generation; none with WORKER_START=import
        self.need_is_steady = False  # of memory, in all workers of this generation
        self.looked = time.monotonic()  # for workers that are silent
        self.stopping = False
        self.stops_at: float | None = None  # monotonic time; None: nobody has said so
        self.exit_status = self.WORKER_BOOT_ERROR
        self.started = ""  # when, as status.started() has it
        self.written: status.Status | None = None
        self.write_failed = False
        super().__init__(app)
        self.account = Account(Path(os.environ["METRICS_DIR"]), self.log)

    def start(self) -> None:
        try:
            self.LISTENERS = [BoundSocket(address, self.cfg, self.log) for address in self.cfg.address]
        except OSError as error:
            self.log.error("cannot listen at %s: %s", ", ".join(self.cfg.bind), error.strerror)
            sys.exit(1)
        super().start()
        self.started = status.started(self.pid)
        if settings.worker_start == "fork":
            forkserver.adopt_orphans()

    # --- the loop -------------------------------------------------------------------------------------------

    def murder_workers(self) -> None:
        """What stood still together with the master is not hung: a container, or its machine, was paused."""
        now = time.monotonic()
        if now - self.looked > self.timeout / 2:
            for worker in self.WORKERS.values():
                worker.notify()
        self.looked = now
        super().murder_workers()

    def manage_workers(self) -> None:
        now = time.monotonic()
        if self.stops_at is not None and now >= self.stops_at:
            raise StopIteration  # Gunicorn's own way to stop
        for worker in list(self.WORKERS.values()):
            self._hear(worker)
            self._hold_to_deadlines(worker, now)
        self._watch_fork_servers()
        slots = range(self.num_workers)
        if self._reloading and all(self._ready(slot, self.attempt) for slot in slots):
            self.generation = self.attempt
            self.log.info("generation %d is ready", self.generation)
            if self.generation > 1:
                self.account.reloaded("ok")
            if self.reload_wanted:
                self.reload()
        for worker in self._staying():
            if worker.slot >= self.num_workers or self._is_replaced(worker):
                self._retire(worker)
        for slot in slots:
            if (
                now >= self.not_before
                and self._needs_worker(slot)
                and (generation := self._startable(slot)) is not None
            ):
                self._spawn(slot, generation)
        self._write_status()
        self.account.keep(self.generation, self.num_workers)

    def _needs_worker(self, slot: int) -> bool:
        staying = self._staying(slot)
        booting = sum(not worker.ready_at for worker in self._staying())
        if not staying:
            return self.generation > 0 or booting < self.cpus
        if booting >= self._starts_beside_others:
            return False  # the CPU that starts a worker is taken from those that serve
        if self._reloading and not any(worker.generation == self.attempt for worker in staying):
            return True
        return all(worker.replacement_wanted for worker in staying)

    @property
    def _starts_beside_others(self) -> int:
        """Workers that start at a time while others serve: a fork takes little of their CPU, an import much."""
        server = self.fork_servers.get(self._newest)
        return self.cpus if server and not server.obstacle else max(1, self.cpus // 2)

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

    # --- fork servers ---------------------------------------------------------------------------------------

    @property
    def _newest(self) -> int:
        return self.attempt if self._reloading else self.generation

    def _startable(self, slot: int) -> int | None:
        """The generation of which a worker can be started for this slot; None while its application is being loaded."""
        if settings.worker_start == "import":
            return self._newest
        if self._newest not in self.fork_servers:
            try:
                self.fork_servers[self._newest] = forkserver.ForkServer(self, slot, self._newest)
            except OSError as error:
                self._try_later(slot, f"cannot start a process: {error.strerror}")
        # A slot that nobody serves does not wait for new code.
        for generation in (self._newest, self.generation) if not self._staying(slot) else (self._newest,):
            if generation in self.fork_servers and self.fork_servers[generation].loaded:
                return generation
        return None

    def _watch_fork_servers(self) -> None:
        for generation, server in list(self.fork_servers.items()):
            if generation not in (self.generation, self._newest):
                server.end()
                del self.fork_servers[generation]
                continue
            exit_status = server.exit_status()  # before it is heard: what it has said last is not missed
            if not server.loaded:
                self._hear_fork_server(server)
            if server.obstacle or exit_status is None:
                continue
            del self.fork_servers[generation]
            if server.loaded:
                self.log.warning("The fork server (pid:%s) of generation %d has ended, exit status %d: the next worker "
                                 "loads the application anew", server.pid, generation, exit_status)  # fmt: skip
                continue
            if exit_status == self.APP_LOAD_ERROR:
                self.exit_status = exit_status
            reason = server.failure or f"the application's import ended its process, exit status {exit_status}"
            self._note_failure(server.slot, generation, reason)

    def _hear_fork_server(self, server: forkserver.ForkServer) -> None:
        server.hear()
        seconds = time.monotonic() - server.born
        if server.obstacle:
            self.log.warning(
                "WORKER_START=fork: %s %s as it is imported, which workers cannot share: each imports it for itself, "
                "as with WORKER_START=import; begin it in the lifespan, or set that row",
                settings.app_module, server.obstacle,
            )  # fmt: skip
        elif server.loaded:
            self.log.info("The application of generation %d is loaded in %.1f s (fork server, pid:%s)",
                          server.generation, seconds, server.pid)  # fmt: skip
        elif seconds > settings.app_start_seconds:
            server.failure = f"not ready within {settings.app_start_seconds} s (APP_START_SECONDS)"
            server.end()

    # --- one worker -----------------------------------------------------------------------------------------

    def _spawn(self, slot: int, generation: int) -> None:
        constructor = self.worker_class
        made: list[Worker] = []
        server = self.fork_servers.get(generation)

        def construct(*args: Any) -> Worker:
            others = [worker.master_end for worker in self.WORKERS.values()]
            others += [server.channel for server in self.fork_servers.values()]
            board = self.account.board_for(slot, {worker.board.path for worker in self.WORKERS.values()})
            made.append(constructor(*args, slot=slot, generation=generation, board=board, not_inherited=others))
            return made[0]

        replaced = [worker.replacement_wanted for worker in self._staying(slot)]
        os.umask(umask := os.umask(0o077))
        self.worker_class = construct
        try:
            pid = self._fork_worker(server) if server and not server.obstacle else self.spawn_worker()
            worker = self.WORKERS[pid]
        except OSError as error:  # no process or no descriptor is to be had; those that serve go on
            for unborn in made:
                unborn.close_in_master()
            self._try_later(slot, f"cannot start a process: {error.strerror}")
            return
        finally:
            self.worker_class = constructor
            os.umask(umask)  # Gunicorn sets 0 while it makes the heartbeat's file, and leaves it where that fails
        worker.channel.close()  # held open here, it would hide the worker's end
        worker.replaces_for_memory = any(wanted and wanted.cause == "memory" for wanted in replaced)

    def _fork_worker(self, server: forkserver.ForkServer) -> int:
        """As spawn_worker(), in the fork server."""
        self.worker_age += 1
        worker = self.worker_class(
            self.worker_age, self.pid, self.LISTENERS, self.app, self.timeout / 2, self.cfg, self.log
        )
        worker.pid = server.fork(worker)
        self.WORKERS[worker.pid] = worker
        return int(worker.pid)

    def _hear(self, worker: Worker) -> None:
        for message in worker.master_end.receive():
            match message:
                case messages.Ready():
                    worker.ready_at = time.monotonic()
                    self.failures, self.not_before = 0, 0.0
                case messages.ReplacementWanted():
                    self._consider(worker, message)
                case messages.Draining():
                    worker.leaving_since = worker.leaving_since or time.monotonic()
                case messages.Finishing():
                    worker.finishing = True
                case messages.BootFailed(reason):
                    worker.failure = reason

    def _consider(self, worker: Worker, wanted: messages.ReplacementWanted) -> None:
        lived = time.monotonic() - worker.ready_at
        young = lived < STEADY_NEED_SECONDS or wanted.requests < STEADY_NEED_REQUESTS
        if wanted.cause != "memory" or not young or not (worker.replaces_for_memory or self.need_is_steady):
            worker.replacement_wanted = wanted
            return
        worker.master_end.send(messages.Stay())
        if not self.need_is_steady:
            self.need_is_steady = True
            self.log.error(
                "%s after %d requests in %.0f s, as in the worker before it: the application needs this much; raise "
                "WORKER_MEMORY_MB in .env (meanwhile such a worker stays until it holds twice as much)",
                wanted.detail, wanted.requests, lived,
            )  # fmt: skip

    def _hold_to_deadlines(self, worker: Worker, now: float) -> None:
        if worker.leaving_since:
            # Past its own limit by as much as a stop may be past Uvicorn's.
            limit = settings.replaced_worker_seconds + self.cfg.graceful_timeout - settings.uvicorn_graceful_seconds
            if now - worker.leaving_since > limit:
                worker.overdue = True
                self.log.error("Worker (pid:%s) has not left in %s s: killed", worker.pid, limit)
                self.kill_worker(worker.pid, signal.SIGKILL)
        elif not worker.ready_at and now - worker.born > settings.app_start_seconds:
            worker.failure = f"not ready within {settings.app_start_seconds} s (APP_START_SECONDS)"
            self.kill_worker(worker.pid, signal.SIGKILL)
        elif not worker.ready_at:
            worker.notify()  # in its stead: it has no heartbeat yet, and Gunicorn would take it for a hung one

    def _retire(self, worker: Worker) -> None:
        worker.leaving_since = time.monotonic()
        if worker.ready_at:
            worker.master_end.send(messages.Leave())
        else:
            self.kill_worker(worker.pid, signal.SIGTERM)

    def reap_workers(self) -> None:
        self._watch_fork_servers()  # before Gunicorn waits for all its children
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
            self._note_end(before[pid])

    def _note_end(self, worker: Worker) -> None:
        self._hear(worker)
        worker.close_in_master()
        lived = time.monotonic() - worker.ready_at if worker.ready_at else 0.0
        if not self.stopping:
            self.account.ended(worker)
        if self.stopping or worker.leaving_since or lived > INFANCY_SECONDS:
            return
        self._note_failure(
            worker.slot, worker.generation, worker.failure or f"worker {worker.pid} ended as it began to serve"
        )

    def _note_failure(self, slot: int, generation: int, reason: str) -> None:
        """A worker of this generation has not started."""
        if self.generation == 0:
            raise HaltServer(reason, self.exit_status)
        if self._reloading and generation == self.attempt:
            self._roll_back(reason)
        else:
            self._try_later(slot, reason)

    def _try_later(self, slot: int, reason: str) -> None:
        self.failures += 1
        pause = min(LONGEST_PAUSE_SECONDS, 2.0 ** (self.failures - 1))
        self.not_before = time.monotonic() + pause
        self.log.error("Slot %d has no new worker, next try in %.0f s: %s", slot, pause, reason)
        self._refuse_unserved()

    def _refuse_unserved(self) -> None:
        """Close each port that nobody serves, until a worker calls listen() on it again.

        The kernel would go on accepting, and a request would wait in the queue until nginx gives up. All of them: no
        slot is tried before the next try.
        """
        served = {worker.slot % len(self.LISTENERS) for worker in self._staying() if worker.ready_at}
        for number, listener in enumerate(self.LISTENERS):
            # Once: a second shutdown() outlasts listen(), and each connection that is accepted then is at its end.
            if number not in served and listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listener.sock.shutdown(socket.SHUT_RDWR)

    # --- signals --------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """HUP: load the application's code anew. Settings and the shell's own code are the master's: they stay."""
        self.log.reopen_files()
        self.reload_wanted = not self.generation
        if self.reload_wanted:
            return  # the first workers may have loaded the old code: again, when they are ready
        if self._reloading:
            self._roll_back("a newer reload", "superseded")
        self.attempt += 1
        self.need_is_steady = False
        self.reason = ""
        self.failures, self.not_before = 0, 0.0
        self.log.info("generation %d starts", self.attempt)

    def _roll_back(self, reason: str, result: str = "failed") -> None:
        self.reason = reason
        self.account.reloaded(result)
        for worker in [w for w in self._staying() if w.generation == self.attempt]:
            if any(other.generation != self.attempt for other in self._staying(worker.slot)):
                self._retire(worker)
            else:
                worker.generation = self.generation  # nobody else serves its socket
                worker.board.put(worker.generation, "generation")
        self.log.error("Generation %d is rolled back, %d serves on: %s", self.attempt, self.generation, reason)

    def handle_term(self) -> None:
        """The stop begins after STOP_DELAY_SECONDS, whoever says it again meanwhile."""
        if self.stops_at is None:
            self.stops_at = time.monotonic() + settings.stop_delay_seconds

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
        for server in self.fork_servers.values():
            server.end()
        self.fork_servers.clear()
        super().stop(True)
        self.account.close()
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
            "master_started": self.started,
            "generation": self.generation,
            "attempt": self.attempt,
            "state": state,
            "reason": self.reason,
            "workers": [_describe(worker) for worker in self.WORKERS.values()],
        }
        if now == self.written:
            return
        try:
            status.write(now)
            self.written, self.write_failed = now, False
        except OSError as error:  # a full disk must not end the master, and is said once
            if not self.write_failed:
                self.log.error("cannot write %s, trying on: %s", status.path(), error.strerror)
            self.write_failed = True


def _describe(worker: Worker) -> status.WorkerStatus:
    return {"pid": worker.pid, "slot": worker.slot, "generation": worker.generation, "state": _state(worker)}


def _state(worker: Worker) -> status.WorkerState:
    if worker.leaving_since:
        return "finishing" if worker.finishing else "draining"
    if not worker.ready_at:
        return "booting"
    return "retiring" if worker.replacement_wanted else "ready"
