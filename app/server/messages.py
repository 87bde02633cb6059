"""What the master and its workers say to each other, over a pair of sockets for each worker."""

from __future__ import annotations

import json
import socket
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


FromWorker = Ready | BootFailed | ReplacementWanted | Draining | Finishing
FromMaster = Leave | Stay
Message = FromWorker | FromMaster
_TYPES: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (Ready, BootFailed, ReplacementWanted, Draining, Finishing, Leave, Stay)
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

    def send(self, message: Message) -> None:
        """A peer that is gone gets nothing; whoever waits for it notices its end by other means."""
        line = json.dumps({"type": type(message).__name__} | asdict(message))
        with suppress(OSError):
            self._socket.send(line.encode() + b"\n")

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
