"""The Gunicorn worker class: one process that serves, on which listening socket, of which generation."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from uvicorn_worker import UvicornWorker

from app.server import messages, status, worker_state
from app.server.board import Board
from app.server.metrics import Metrics, duration_buckets
from app.server.server import DrainingServer
from app.server.settings import Settings, read
from app.server.turns import TurnGate

settings = read(Settings, os.environ)
# Of this process: made in the master, used from the fork on.
metrics = Metrics(duration_buckets(os.environ))


class Closable(Protocol):
    def close(self) -> None: ...


def boot_failure(error: BaseException) -> str:
    """Why the application did not start, in one line."""
    cause = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
    return worker_state.startup_failure or f"{type(cause).__name__}: {cause}".partition("\n")[0]


class Worker(UvicornWorker):  # type: ignore[misc]
    """Made in the master, which keeps the object as its record of the process; run in the process after the fork."""

    sockets: list[Any]
    wsgi: Any
    turn_gate: TurnGate
    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 (the parent class names it so)
        "ws_ping_interval": settings.websocket_ping_seconds,
        "limit_max_requests": None,  # Uvicorn would leave at once; on_tick asks for a replacement first
        "interface": "asgi3",  # by its look, Uvicorn would take a TurnGate for an application of ASGI 2
        "server_header": False,
        "date_header": False,
    }

    def __init__(self, *args: Any, slot: int, generation: int, board: Board, not_inherited: Sequence[Closable]) -> None:
        """Runs in the master, before the fork. `not_inherited` is what the new process must not keep open."""
        super().__init__(*args)
        self.board = board
        board.put(generation, "generation")
        self.slot = slot
        self.generation = generation
        self.born = time.monotonic()
        self.ready_at = 0.0  # 0: it starts
        self.replacement_wanted: messages.ReplacementWanted | None = None
        self.replaces_for_memory = False
        self.leaving_since = 0.0  # 0: it stays
        self.finishing = False
        self.overdue = False  # it has not left in time, and was killed for it
        self.failure = ""  # why it did not start
        self.master_end, self.channel = messages.channel_pair()
        self.not_inherited: list[Closable] = [*not_inherited, self.master_end]
        mine = slot % len(self.sockets)
        self.not_inherited += [listener for i, listener in enumerate(self.sockets) if i != mine]
        self.sockets = [self.sockets[mine]]

    def init_process(self) -> None:
        # A sibling's socket held open here would go on taking connections that nobody accepts; a copy of the
        # master's end of a channel would hide the master's death.
        for thing in self.not_inherited:
            thing.close()
        os.register_at_fork(after_in_child=self._let_go_in_child)
        metrics.use(self.board)
        self.board.put(float(status.started(os.getpid()) or 0), "started")
        self.board.put(os.getpid(), "pid")
        try:
            super().init_process()
        except (Exception, SystemExit) as error:
            if worker_state.state == "starting":
                self.tell_master(messages.BootFailed(boot_failure(error)))
            raise

    def _let_go_in_child(self) -> None:
        """A process that the application forks must not hold the port when this one is gone, and ends when told to."""
        for thing in [*self.sockets, self.channel]:
            thing.close()
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(sig, signal.SIG_DFL)  # the server's handlers would only ask a master for a replacement

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.turn_gate = self.wsgi = TurnGate(self.wsgi)

    def run(self) -> None:
        self.config.app = self.wsgi
        server = DrainingServer(self, settings, metrics)
        # QUIT to the master's process group is a stop like any other; by default it would dump core.
        signal.signal(signal.SIGQUIT, server.handle_exit)
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(server.serve())

    def tell_master(self, message: messages.FromWorker) -> None:
        """The signal only wakes the master's loop, which otherwise looks once a second."""
        self.channel.send(message)
        with suppress(OSError):
            if os.getppid() == self.ppid:
                os.kill(self.ppid, signal.SIGCHLD)

    def close_in_master(self) -> None:
        """What the master holds of a process that has ended, or never began."""
        self.master_end.close()
        self.channel.close()
        self.tmp.close()
