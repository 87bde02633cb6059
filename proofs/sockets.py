"""The sockets of TCP that a kernel has, as /proc/net/tcp writes them: of IPv4, in one network namespace."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ESTABLISHED, SYN_SENT, TIME_WAIT = 1, 2, 6


class TcpSocket(NamedTuple):
    """`unsent` and `unread` are bytes that the kernel keeps: of the listener's end a queue's length."""

    port: int
    peer: str
    peer_port: int
    state: int
    unsent: int
    unread: int


def tcp_sockets(table: str | None = None) -> Iterator[TcpSocket]:
    """Of `table`, or of the namespace of this process."""
    for line in (table or Path("/proc/net/tcp").read_text()).splitlines()[1:]:
        _, local, remote, state, queues, *_ = line.split()
        _, port, address, peer_port = (int(part, 16) for end in (local, remote) for part in end.split(":"))
        unsent, unread = (int(part, 16) for part in queues.split(":"))
        peer = socket.inet_ntoa(struct.pack("=I", address))
        yield TcpSocket(port, peer, peer_port, int(state, 16), unsent, unread)
