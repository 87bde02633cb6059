"""Accepting connections: all that wait, as soon as the loop sees them, and none cut off at the end."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
import types
from collections.abc import Callable, Generator
from contextlib import suppress
from ctypes import addressof, create_string_buffer
from typing import Any

from app.server import accept_queues

logger = logging.getLogger("uvicorn.error")
# How long to wait before accepting again when no descriptor or memory is left.
ACCEPT_RETRY_SECONDS = 1.0
# The handshakes that had begun when the socket filter came end in the queue, and are taken. On one machine that takes
# microseconds, unless it is late with everything; a packet that was lost is sent again after a second.
LONGEST_HANDSHAKE_SECONDS = 2.0
HANDSHAKES_LOOK_SECONDS = 0.005
SO_ATTACH_FILTER = 26  # Linux; the socket module has no name for it


class Acceptor:
    """Accepts on `listeners` and gives each connection a protocol made by `protocol_factory`.

    uvloop's own server takes one connection in each turn of the loop, and serves all that it has before the next: the
    last of a burst waits for many answers to the first. This takes up to `at_once` in a turn. On a socket that several
    workers share it must be 1, or the worker that wakes first takes the whole burst.
    """

    def __init__(
        self,
        listeners: list[socket.socket],
        protocol_factory: Callable[[], asyncio.Protocol],
        on_connection: Callable[[], None],
        backlog: int,
        at_once: int,
    ) -> None:
        self.listeners = listeners
        self.connecting: set[asyncio.Task[Any]] = set()  # a task that nobody holds may be collected
        self._protocol_factory = protocol_factory
        self._on_connection = on_connection
        self._backlog = backlog
        self._at_once = at_once
        self._loop: Any = asyncio.get_running_loop()

    def start(self) -> None:
        for listener in self.listeners:
            listener.listen(self._backlog)  # until now the port refused: nginx took another server
            self._loop.add_reader(listener.fileno(), self._accept, listener, self._at_once)

    def close(self) -> None:
        """Accept no more. What waits in a queue is for whoever else holds the socket."""
        for listener in self.listeners:
            self._loop.remove_reader(listener.fileno())
            # close() and never shutdown(): that would end the socket in every process that holds it.
            listener.close()
        self.listeners = []

    def close_as_last_holder(self) -> None:
        """Accept what waits, and let no handshake begin meanwhile: the kernel resets what is left in the queue."""
        for listener in self.listeners:
            _refuse_new_connections(listener)
        end = self._loop.time() + LONGEST_HANDSHAKE_SECONDS
        self._loop.call_later(HANDSHAKES_LOOK_SECONDS, self._take_the_rest_and_close, end)

    def _take_the_rest_and_close(self, end: float) -> None:
        if self._loop.time() < end and _handshakes(self.listeners):
            self._loop.call_later(HANDSHAKES_LOOK_SECONDS, self._take_the_rest_and_close, end)
            return
        for listener in self.listeners:
            self._accept(listener, self._backlog)
        self.close()

    def _accept(self, listener: socket.socket, at_most: int) -> None:
        for _ in range(at_most):
            try:
                connection, _address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # Out of descriptors or memory: the socket stays readable, and the loop would spin on it.
                logger.error("cannot accept a connection: %s; next try in %g s", error.strerror, ACCEPT_RETRY_SECONDS)
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(ACCEPT_RETRY_SECONDS, self._accept_again, listener)
                return
            self._on_connection()
            connection.setblocking(False)
            coroutine: Any = self._loop.connect_accepted_socket(self._protocol_factory, connection)
            try:
                # Now, and not in the task: that begins in the next turn of the loop, in which many requests on older
                # connections are served first.
                waiter = coroutine.send(None)
            except (OSError, StopIteration):
                continue
            task = self._loop.create_task(_finish(coroutine, waiter))
            self.connecting.add(task)
            task.add_done_callback(self.connecting.discard)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self.listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener, self._at_once)


async def _finish(begun: Any, waiter: Any) -> None:
    """The rest of a coroutine that has been begun by hand, and has come to wait for `waiter`."""
    with suppress(OSError):  # the client has left meanwhile
        await _rest(begun, waiter)


@types.coroutine
def _rest(begun: Any, waiter: Any) -> Generator[Any, None, None]:
    # Not a task itself: since Python 3.12 a task takes no generator.
    yield waiter
    yield from begun


def _handshakes(listeners: list[socket.socket]) -> int:
    with suppress(OSError):  # where the kernel does not tell
        return accept_queues.handshakes({one.getsockname()[1] for one in listeners if one.family == socket.AF_INET})
    return 0


def _refuse_new_connections(listener: socket.socket) -> None:
    """Let no new handshake begin, so that none is cut between the last accept() and the close().

    A socket filter on the first packet of a TCP connection: "tcp[13] & SYN: drop, else: pass". nginx sends the packet
    again after a second, is refused, and tries another server. Where filters are not to be had, that gap of some
    microseconds stays.
    """
    if listener.family == socket.AF_UNIX or sys.platform != "linux":
        return
    with suppress(OSError):
        attach_filter(listener, (0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def attach_filter(to: socket.socket, *program: tuple[int, int, int, int]) -> None:
    """A socket filter of these instructions: code, jumps, operand. Raises OSError where filters are not to be had."""
    code = create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    to.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), addressof(code)))
