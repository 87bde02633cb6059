"""What waits at the listening sockets of this network namespace, from the kernel (sock_diag(7))."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST_DUMP = 0x301
NLMSG_DONE = 3
TCP_LISTEN = 1 << 10
INET_DIAG_SKMEMINFO = 7
SK_MEMINFO_DROPS = 8


class AcceptQueue(NamedTuple):
    waiting: int  # connections that are made, and not accepted yet
    limit: int  # the backlog, as the kernel took it
    dropped: int  # connections that it refused because the queue was full, since the socket was made


def read() -> dict[int, AcceptQueue]:
    """The queue of each port of IPv4 that somebody listens on. Raises OSError where the kernel does not tell."""
    extensions = 1 << (INET_DIAG_SKMEMINFO - 1)
    wanted = struct.pack("=BBBxI48x", socket.AF_INET, socket.IPPROTO_TCP, extensions, TCP_LISTEN)
    header = struct.pack("=IHHII", 16 + len(wanted), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0)
    found: dict[int, AcceptQueue] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1)
        kernel.send(header + wanted)
        while True:
            messages = kernel.recv(1 << 16)
            at = 0
            while at < len(messages):
                length, kind = struct.unpack_from("=IH", messages, at)
                if kind != SOCK_DIAG_BY_FAMILY:
                    if kind != NLMSG_DONE:
                        raise OSError("sock_diag: the kernel refused")
                    return found
                # struct inet_diag_msg behind the header: the port in network order, then the two lengths.
                (port,) = struct.unpack_from(">H", messages, at + 20)
                waiting, limit = struct.unpack_from("=II", messages, at + 72)
                found[port] = AcceptQueue(waiting, limit, _dropped(messages[at + 88 : at + length]))
                at += length + 3 & ~3


def _dropped(attributes: bytes) -> int:
    at = 0
    while at < len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, at)
        if kind == INET_DIAG_SKMEMINFO:
            return int(struct.unpack_from("=I", attributes, at + 4 + 4 * SK_MEMINFO_DROPS)[0])
        at += length + 3 & ~3
    return 0
