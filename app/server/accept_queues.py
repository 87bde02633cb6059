"""What waits at the listening sockets of this network namespace, from the kernel (sock_diag(7))."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST_DUMP = 0x301
NLMSG_DONE = 3
TCP_SYN_RECV = 1 << 3
TCP_LISTEN = 1 << 10
INET_DIAG_SKMEMINFO = 7
SK_MEMINFO_DROPS = 8


class AcceptQueue(NamedTuple):
    waiting: int  # connections that are made, and not accepted yet
    limit: int  # the backlog, as the kernel took it
    dropped: int  # connections that it refused because the queue was full, since the socket was made


def read() -> dict[int, AcceptQueue]:
    """The queue of each port of IPv4 that somebody listens on. Raises OSError where the kernel does not tell."""
    found: dict[int, AcceptQueue] = {}
    for message in _sockets(TCP_LISTEN):
        waiting, limit = struct.unpack_from("=II", message, 56)
        found[_port(message)] = AcceptQueue(waiting, limit, _dropped(message[72:]))
    return found


def handshakes(ports: set[int]) -> int:
    """Connections to these ports of IPv4 whose handshake has begun, and has not ended. Raises OSError as read()."""
    return sum(_port(message) in ports for message in _sockets(TCP_SYN_RECV))


def _port(message: memoryview) -> int:
    """The local one of a struct inet_diag_msg, where it is in network order."""
    port: int = struct.unpack_from(">H", message, 4)[0]
    return port


def _sockets(states: int) -> Iterator[memoryview]:
    """A struct inet_diag_msg with its attributes for each socket of IPv4 in one of these states."""
    extensions = 1 << (INET_DIAG_SKMEMINFO - 1)
    wanted = struct.pack("=BBBxI48x", socket.AF_INET, socket.IPPROTO_TCP, extensions, states)
    header = struct.pack("=IHHII", 16 + len(wanted), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1)
        kernel.send(header + wanted)
        while True:
            messages = memoryview(kernel.recv(1 << 16))
            while messages:
                length, kind = struct.unpack_from("=IH", messages)
                if kind != SOCK_DIAG_BY_FAMILY:
                    if kind != NLMSG_DONE:
                        raise OSError("sock_diag: the kernel refused")
                    return
                yield messages[16:length]
                messages = messages[length + 3 & ~3 :]


def _dropped(attributes: memoryview) -> int:
    at = 0
    while at < len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, at)
        if kind == INET_DIAG_SKMEMINFO:
            return int(struct.unpack_from("=I", attributes, at + 4 + 4 * SK_MEMINFO_DROPS)[0])
        at += length + 3 & ~3
    return 0
