"""What the master says to its workers and fork servers, and they to it, over a pair of sockets for each."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Ready:
    """Worker: it accepts connections."""


@dataclass(frozen=True)
class BootFailed:
    """Worker: it cannot serve, and exits."""

    reason: str


@dataclass(frozen=True)
class ReplacementWanted:
    """Worker: it leaves as soon as a replacement is ready."""

    cause: Literal["signal", "max_requests", "memory"]
    detail: str
    requests: int  # that it has begun


@dataclass(frozen=True)
class Draining:
    """Worker: it accepts no more connections, and answers on those it has."""


@dataclass(frozen=True)
class Finishing:
    """Worker: no new request can reach it; it finishes what it has begun."""


@dataclass(frozen=True)
class Leave:
    """Master: the replacement is ready; drain, then exit."""


@dataclass(frozen=True)
class Stay:
    """Master: no replacement comes, since one would need as much memory; ask again at twice of it."""


@dataclass(frozen=True)
class Loaded:
    """Fork server: it has loaded the application."""

    obstacle: str  # why it can fork no workers; "" when it can


@dataclass(frozen=True)
class Fork:
    """Master, with the worker's descriptors: its listening socket, its end of the channel, its heartbeat."""

    slot: int
    generation: int
    board: str  # its file; "" for one that nobody else reads


@dataclass(frozen=True)
class Forked:
    """Fork server: the worker runs."""

    pid: int


@dataclass(frozen=True)
class ForkFailed:
    """Fork server: there is no process or descriptor for it."""

    errno: int


FromWorker = Ready | BootFailed | ReplacementWanted | Draining | Finishing
FromMaster = Leave | Stay
FromForkServer = Loaded | BootFailed | Forked | ForkFailed
Message = FromWorker | FromMaster | FromForkServer | Fork
_TYPES: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (
        Ready,
        BootFailed,
        ReplacementWanted,
        Draining,
        Finishing,
        Leave,
        Stay,
        Loaded,
        Fork,
        Forked,
        ForkFailed,
    )
}


class Channel:
    """One end of the pair: a line of JSON for each message. Neither end ever waits."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._received = b""
        self.closed_by_peer = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """A peer that is gone gets nothing; whoever waits for it notices its end by other means."""
        line = json.dumps({"type": type(message).__name__} | asdict(message)).encode() + b"\n"
        with suppress(OSError):
            if descriptors:
                socket.send_fds(self._socket, [line], descriptors)
            else:
                self._socket.send(line)

    def receive(self) -> list[Message]:
        """The messages that have come since the last call. Sets `closed_by_peer` when there will be no more."""
        try:
            while received := self._socket.recv(4096):
                self._received += received
            self.closed_by_peer = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed_by_peer = True
        return self._messages()

    def receive_with_descriptors(self) -> tuple[list[Message], list[int]]:
        """As receive(), and waits. Fewer descriptors come than were sent where this process may open no more."""
        received, descriptors, _flags, _address = socket.recv_fds(self._socket, 4096, 3, socket.MSG_CMSG_CLOEXEC)
        self._received += received
        self.closed_by_peer = not received
        return self._messages(), descriptors

    def _messages(self) -> list[Message]:
        *lines, self._received = self._received.split(b"\n")
        return [_decoded(line) for line in lines]

    def close(self) -> None:
        self._socket.close()


def _decoded(line: bytes) -> Message:
    fields = json.loads(line)
    return _TYPES[fields.pop("type")](**fields)


def channel_pair() -> tuple[Channel, Channel]:
    """Both ends: the master's and the worker's. Raises OSError when no descriptor is left."""
    master, worker = socket.socketpair()
    return Channel(master), Channel(worker)
