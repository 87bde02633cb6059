"""The Gunicorn worker class: Uvicorn that drains instead of closing, and that a master can replace before it goes.

Relied on, beyond the public interface, and read in uvicorn 0.54: a task's coroutine is `RequestResponseCycle.run_asgi`
(only looked at during a drain), the cycle's fields, `Server.startup(sockets=[])` that starts without a listener, and
`ServerState.default_headers`, which every answer begins with.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
import sys
import time
import types
from collections.abc import Generator, Sequence
from contextlib import suppress
from ctypes import addressof, create_string_buffer
from types import FrameType
from typing import Any, Protocol

from uvicorn import Server
from uvicorn_worker import UvicornWorker

from app.server import lifecycle, memory
from app.server.edge import ASGIApp, Edge
from app.server.protocol import DrainProtocol, Heads
from app.server.settings import Settings, read

settings = read(Settings, os.environ)
logger = logging.getLogger("uvicorn.error")
CANCEL_GRACE_SECONDS = 1.0
# For the handshakes that had begun when the socket filter came: they end in the queue, and are taken.
HANDSHAKE_SECONDS = 0.005
TICKS_IN_A_SECOND = 10  # Uvicorn calls on_tick() so often
SO_ATTACH_FILTER = 26  # Linux; the socket module has no name for it


class Closable(Protocol):
    def close(self) -> None: ...


class DrainServer(Server):
    """Uvicorn's server for one Gunicorn worker. It leaves when the master says so, or is gone."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker.config)
        self.worker = worker
        self.loop: asyncio.AbstractEventLoop
        self.heads: Heads
        self.accepting: set[asyncio.Task[Any]] = set()  # a task that nobody holds may be collected
        self.asked = False
        self.memory_limit = settings.worker_memory_mb  # MiB; 0: none
        self.signalled = False
        self.master_gone = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.heads = Heads(self.loop)
        await super().startup(sockets=[])
        for listener in self.worker.sockets:
            listener.listen(settings.listen_backlog)  # until now the port refused: nginx took another server
            self.loop.add_reader(listener.fileno(), self._accept, listener)
        self.loop.add_reader(self.worker.channel.fileno(), self._hear)
        if self.memory_limit and (held := memory.resident_mb()) >= self.memory_limit:
            # Its replacements would need as much, and be replaced in turn, for ever.
            logger.error(
                "WORKER_MEMORY_MB=%d is less than a new worker holds, %d MiB: no limit", self.memory_limit, held
            )
            self.memory_limit = 0
        lifecycle.state = "ready"
        self.worker.tell("ready")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """TERM, INT, QUIT from outside: go as soon as a replacement stands; at the second signal, now."""
        if self.signalled or not self.started:
            self.should_exit = True
        self.signalled = True

    def _hear(self) -> None:
        """The master's word, or its end: its side of the channel closes when it stops, or is killed."""
        try:
            word = self.worker.channel.recv(64)
        except BlockingIOError:
            return
        except OSError:
            word = b""
        self.loop.remove_reader(self.worker.channel.fileno())
        self.should_exit = True
        if word:
            self._close_listeners()  # the replacement accepts
            return
        self.master_gone = True
        for listener in self.worker.sockets:
            _refuse_new_connections(listener)
        self.loop.call_later(HANDSHAKE_SECONDS, self._close_listeners)

    async def on_tick(self, counter: int) -> bool:
        leave = await super().on_tick(counter)
        if not (self.asked or leave) and (reason := self._reason_to_go(counter)):
            self.asked = True
            logger.info("%s: asking for a replacement", reason)
            self.worker.tell("replace")
        return leave

    def _reason_to_go(self, counter: int) -> str:
        if self.signalled:
            return "signal"
        if self.server_state.total_requests >= self.worker.max_requests:
            return "max_requests reached"
        if self.memory_limit and counter % TICKS_IN_A_SECOND == 0:
            held = memory.resident_mb()
            if held >= self.memory_limit:
                return f"memory is {held} MiB, WORKER_MEMORY_MB={self.memory_limit}"
        return ""

    # --- accepting ------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        """Take all that wait. uvloop's own server takes one in each turn of the loop, and serves all that it has
        before the next: the last of a burst of new connections waits for many answers to the first.
        """
        for _ in range(settings.listen_backlog):
            try:
                connection, _address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # Out of descriptors or memory: the socket stays readable, and the loop would spin on it.
                logger.error("cannot accept a connection: %s", error)
                self.loop.remove_reader(listener.fileno())
                self.loop.call_later(1, self._accept_again, listener)
                return
            self.worker.edge.connections_are_new()
            connection.setblocking(False)
            connecting: Any = self.loop.connect_accepted_socket(self._protocol, connection)
            try:
                # Now, and not in the task: that begins in the next turn of the loop, in which many requests on older
                # connections are served first.
                waiter = connecting.send(None)
            except (OSError, StopIteration):
                continue
            task = self.loop.create_task(_finish(connecting, waiter))
            self.accepting.add(task)
            task.add_done_callback(self.accepting.discard)

    def _protocol(self) -> asyncio.Protocol:
        state, app_state = self.server_state, self.lifespan.state
        return DrainProtocol(self.heads, config=self.config, server_state=state, app_state=app_state, _loop=self.loop)

    def _accept_again(self, listener: socket.socket) -> None:
        if not self.should_exit:
            self.loop.add_reader(listener.fileno(), self._accept, listener)

    def _close_listeners(self) -> None:
        for listener in self.worker.sockets:
            self.loop.remove_reader(listener.fileno())
            if self.master_gone:  # else the master holds the socket, and its queue waits for the replacement
                self._accept(listener)
            # close() and never shutdown(): that would end the socket in every process that holds it.
            listener.close()
        self.worker.sockets = []

    # --- leaving --------------------------------------------------------------------------------------------

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: answer on, each answer with `Connection: close`, until no connection is left.

        After DRAIN_SECONDS nginx has given up every connection that was idle, and those are closed. What is in
        flight has UVICORN_GRACEFUL_SECONDS; then it is cancelled, and the application's lifespan ends.
        """
        lifecycle.state = "draining"
        self.worker.tell("draining")
        begun = time.monotonic()
        if not self.master_gone:
            self._close_listeners()
        self.config.encoded_headers.append((b"connection", b"close"))
        await super().on_tick(0)  # puts the header above into use
        state = self.server_state
        logger.info("draining: %d connections, %d requests in flight", len(state.connections), len(state.tasks))
        told: set[object] = set()
        ended: set[asyncio.Task[None]] = set()
        beat = 0
        while state.connections or state.tasks or self.accepting or self.worker.sockets:
            elapsed = time.monotonic() - begun
            if elapsed >= settings.uvicorn_graceful_seconds:
                break
            for connection in list(state.connections):
                if connection not in told:
                    told.add(connection)
                    connection.shutdown()  # a WebSocket is closed with 1012 here
                elif elapsed >= settings.drain_seconds and isinstance(connection, DrainProtocol):
                    connection.close_if_idle()
            for task in [t for t in state.tasks if t not in ended and _streams(t)]:
                ended.add(task)
                task.cancel()
            await asyncio.sleep(0.05)
            beat += 1
            await super().on_tick(beat)  # the heartbeat: without it a long drain is killed as a hung worker
        await self._cut_off()
        await self.lifespan.shutdown()
        logger.info("drained in %.1f s", time.monotonic() - begun)

    async def _cut_off(self) -> None:
        tasks = list(self.server_state.tasks)
        if tasks:
            logger.error("cancelling %d requests after UVICORN_GRACEFUL_SECONDS", len(tasks))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CANCEL_GRACE_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.close()


class Worker(UvicornWorker):  # type: ignore[misc]
    """One worker: on which listening socket, of which generation; and its channel to the master."""

    sockets: list[Any]
    wsgi: ASGIApp
    edge: Edge
    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 (the parent class names it so)
        "ws_ping_interval": settings.websocket_ping_seconds,
        "limit_max_requests": None,  # Uvicorn would leave at once; on_tick asks for a replacement first
        "server_header": False,
        "date_header": False,
    }

    def __init__(self, *args: Any, slot: int, generation: int, foreign: Sequence[Closable]) -> None:
        """Runs in the master, before the fork. `foreign` is what the new process must not keep open."""
        super().__init__(*args)
        self.slot = slot
        self.generation = generation
        self.born = time.monotonic()
        self.ready_at = 0.0
        self.wants_replacement = False
        self.leaving_since = 0.0
        self.reason = ""
        self.inbox = b""
        self.master_end, self.channel = socket.socketpair()
        self.master_end.setblocking(False)
        self.channel.setblocking(False)
        self.foreign: list[Closable] = [*foreign, self.master_end]
        mine = slot % len(self.sockets)
        self.foreign += [listener for i, listener in enumerate(self.sockets) if i != mine]
        self.sockets = [self.sockets[mine]]

    def init_process(self) -> None:
        # A sibling's socket held open here would go on taking connections that nobody accepts; a copy of the
        # master's end of a channel would hide the master's death.
        for thing in self.foreign:
            thing.close()
        try:
            super().init_process()
        except (Exception, SystemExit) as error:
            if not self.booted:
                reason = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
                self.tell(f"failed {type(reason).__name__}: {reason}".partition("\n")[0])
            raise

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.edge = self.wsgi = Edge(self.wsgi, self.tell)

    def run(self) -> None:
        self.config.app = self.wsgi
        server = DrainServer(self)
        # QUIT to the master's process group is a stop like any other; by default it would dump core.
        signal.signal(signal.SIGQUIT, server.handle_exit)
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(server.serve())

    def tell(self, line: str) -> None:
        """Say one line to the master. The signal only wakes its loop, which otherwise looks once a second."""
        with suppress(OSError):
            self.channel.send(line.encode() + b"\n")
            if os.getppid() == self.ppid:
                os.kill(self.ppid, signal.SIGCHLD)


async def _finish(begun: Any, waiter: Any) -> None:
    """The rest of a coroutine that has been begun by hand, and has come to wait for `waiter`."""
    with suppress(OSError):  # the client has left meanwhile
        await _rest(begun, waiter)


@types.coroutine
def _rest(begun: Any, waiter: Any) -> Generator[Any, None, None]:
    # Not a task itself: since Python 3.12 a task takes no generator.
    yield waiter
    yield from begun


def _streams(task: asyncio.Task[None]) -> bool:
    """Whether this request's task is sending an event stream."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    cycle: Any = frame.f_locals.get("self") if frame is not None else None
    return bool(
        getattr(cycle, "response_started", False)
        and not cycle.response_complete
        and cycle.chunked_encoding
        and lifecycle.is_stream(cycle.scope)
    )


def _refuse_new_connections(listener: socket.socket) -> None:
    """Let no new handshake begin, so that none is cut between the last accept() and the close().

    A socket filter on the first packet of a TCP connection: "tcp[13] & SYN: drop, else: pass". nginx sends the packet
    again after a second, is refused, and tries another server. Where filters are not to be had, that gap of some
    microseconds stays.
    """
    if listener.family == socket.AF_UNIX or sys.platform != "linux":
        return
    program = [(0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)]
    code = create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), addressof(code)))
