"""WORKER_START=fork: a process for each generation that loads the application once, and forks its workers.

    master ──Fork, with the worker's descriptors──> fork server ──fork──> a process that ends at once ──fork──> worker
       ^                                                                            │
       └──────────────────────────────── Forked: the worker's pid ──────────────────┘

A worker whose parent has ended becomes the master's child, because the master adopts orphans. So the master waits for
it as for one that it has forked itself, and a fork server that is killed harms no worker: the next worker that is
needed loads the application anew.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from app.server import forkable, messages
from app.server.board import Board
from app.server.worker import Worker, boot_failure

if TYPE_CHECKING:
    from app.server.arbiter import Arbiter

PR_SET_CHILD_SUBREAPER = 36
# A fork takes milliseconds; a fork server that is silent for this long is stopped, or hangs.
LONGEST_FORK_SECONDS = 10.0
WORKER_DESCRIPTORS = 3
APPLICATION = "app.server.application"
# What a worker would import for itself: by their settings' names Uvicorn and anyio find these when they begin to serve.
WORKERS_IMPORT = ("anyio._backends._asyncio", "uvicorn.loops.auto", "uvicorn.protocols.http.auto")


def adopt_orphans() -> None:
    """This process becomes the parent of what its children leave behind, as process 1 of a container is anyway.

    Raises OSError where the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class ForkServer:
    """The master's record of one."""

    def __init__(self, arbiter: Arbiter, slot: int, generation: int) -> None:
        """Starts it. `slot` is the one that waits for it. Raises OSError when no process or descriptor is left."""
        self.slot = slot
        self.generation = generation
        self.born = time.monotonic()
        self.loaded = False
        self.obstacle = ""  # why it cannot fork; "" when it can
        self.failure = ""  # why the application was not loaded
        self._exit_status: int | None = None
        self.channel, other_end = messages.channel_pair()
        try:
            self.pid = os.fork()
        except OSError:
            self.channel.close()
            other_end.close()
            raise
        if not self.pid:
            self.channel.close()
            _run(arbiter, other_end)
        other_end.close()

    def hear(self) -> None:
        for message in self.channel.receive():
            match message:
                case messages.Loaded(obstacle):
                    self.loaded, self.obstacle = True, obstacle
                case messages.BootFailed(reason):
                    self.failure = reason

    def fork(self, worker: Worker) -> int:
        """The pid of the process in which `worker` runs. Raises OSError when there is none."""
        board = str(worker.board.path) if worker.board.path else ""
        request = messages.Fork(worker.slot, worker.generation, board)
        self.channel.send(request, [end.fileno() for end in (worker.sockets[0], worker.channel, worker.tmp)])
        readable, _, _ = select.select([self.channel], [], [], LONGEST_FORK_SECONDS)
        for message in self.channel.receive() if readable else ():
            match message:
                case messages.Forked(pid):
                    return pid
                case messages.ForkFailed(number):
                    raise OSError(number, os.strerror(number))
        self.end()
        raise ChildProcessError("", "the fork server does not answer")

    def exit_status(self) -> int | None:
        """As subprocess has it: None while it runs, -9 when it was killed; 0 where somebody else has waited for it."""
        if self._exit_status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._exit_status = 0
            else:
                self._exit_status = os.waitstatus_to_exitcode(status) if pid else None
        return self._exit_status

    def end(self) -> None:
        """Also while it loads. It has nothing to lose: what the application does at an exit is the workers'."""
        self.channel.close()
        if self.exit_status() is None:
            os.kill(self.pid, signal.SIGKILL)


# --- the process itself -------------------------------------------------------------------------------------------


def _run(arbiter: Arbiter, channel: messages.Channel) -> NoReturn:
    """In a fork of the master. A worker leaves by SystemExit, as one that the master forks; all else ends here."""
    process = _Process(arbiter, channel)
    status = arbiter.WORKER_BOOT_ERROR
    try:
        if process.load():
            process.serve()
        status = 0
    except SystemExit:
        if process.is_worker:
            raise
        status = arbiter.APP_LOAD_ERROR
    except BaseException:
        arbiter.log.exception("Exception in the fork server")
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


class _Process:
    def __init__(self, arbiter: Arbiter, channel: messages.Channel) -> None:
        self.arbiter = arbiter
        self.channel = channel
        self.is_worker = False
        self.between = 0
        # The master's own. A listener that is held here would go on taking connections when all workers are gone.
        for listener in arbiter.LISTENERS:
            listener.close()
        for worker in arbiter.WORKERS.values():
            worker.master_end.close()
            worker.tmp.close()
        for server in arbiter.fork_servers.values():
            server.channel.close()
        arbiter.WORKERS.clear()
        for sig in (*arbiter.SIGNALS, signal.SIGCHLD):
            signal.signal(sig, signal.SIG_DFL)
        # One to the whole group is the master's, which ends this process. What the application starts ends by itself.
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(sig, lambda *_: None)
            os.register_at_fork(after_in_child=partial(signal.signal, sig, signal.SIG_DFL))

    def load(self) -> bool:
        """Load the application, and return whether it can be forked."""
        before = forkable.descriptors()
        try:
            for name in (APPLICATION, *WORKERS_IMPORT):
                import_module(name)  # which a worker finds imported
        except (Exception, SystemExit) as error:
            self._tell_master(messages.BootFailed(boot_failure(error)))
            raise
        obstacle = forkable.obstacle(before)
        if not obstacle:
            gc.collect()
            gc.freeze()  # the collector of a worker writes to none of these objects, so that their pages stay shared
        self._tell_master(messages.Loaded(obstacle))
        return not obstacle

    def _tell_master(self, message: messages.Message) -> None:
        """The signal only wakes the master's loop."""
        self.channel.send(message)
        if os.getppid() == self.arbiter.pid:
            os.kill(self.arbiter.pid, signal.SIGCHLD)

    def serve(self) -> None:
        """Until the master closes the channel, or is gone."""
        while not self.channel.closed_by_peer:
            select.select([self.channel], [], [])
            requests, descriptors = self.channel.receive_with_descriptors()
            for request in requests:
                if isinstance(request, messages.Fork):
                    self._fork(request, descriptors)

    def _fork(self, request: messages.Fork, descriptors: list[int]) -> None:
        _flush()  # or each worker writes what is left in the buffers
        try:
            if len(descriptors) < WORKER_DESCRIPTORS:
                raise OSError(errno.EMFILE, "")
            if not (between := os.fork()):
                self._fork_worker(request, *descriptors)
            with suppress(ChildProcessError):  # where the application has SIGCHLD ignored
                os.waitpid(between, 0)
        except OSError as error:
            self.channel.send(messages.ForkFailed(error.errno or 0))
        for number in descriptors:
            os.close(number)

    def _fork_worker(self, request: messages.Fork, listener: int, channel: int, heartbeat: int) -> NoReturn:
        """In the process between. As in the master: returns there, and ends by SystemExit in the worker."""
        arbiter = self.arbiter
        self.between = os.getpid()
        _seed()

        def construct(*args: Any) -> Worker:
            board = Board(Path(request.board) if request.board else None)
            worker = Worker(*args, slot=request.slot, generation=request.generation, board=board, not_inherited=[self])
            # The other ends of these are the master's.
            os.dup2(channel, worker.channel.fileno(), inheritable=False)
            os.dup2(heartbeat, worker.tmp.fileno(), inheritable=False)
            os.close(channel)
            os.close(heartbeat)
            return worker

        arbiter.LISTENERS = [socket.socket(fileno=listener)]
        arbiter.worker_class = construct
        try:
            self.channel.send(messages.Forked(arbiter.spawn_worker()))
        except OSError as error:
            self.channel.send(messages.ForkFailed(error.errno or 0))
        os._exit(0)

    def close(self) -> None:
        """In the worker: nothing of the fork server is left in it, and its parent is the master."""
        self.channel.close()
        self.is_worker = True
        while os.getppid() == self.between:
            time.sleep(0.001)


def _seed() -> None:
    """Python seeds its own generator in each fork; NumPy's would give all workers the same numbers."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
