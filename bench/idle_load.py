"""The load of clients that only stay: connections that have had one answer each, and ask nothing more."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.processes import CannotRun

GIVE_UP_SECONDS = 60
# Opened at a time: far fewer than a listening socket's queue has places.
BATCH = 200
# Descriptors that are not for idle connections: the active client's, the upstream's, files.
RESERVED = 1000
# All of 127/8 is this machine's, and each address has source ports of its own.
SOURCES = [f"127.0.0.{number}" for number in range(2, 6)]
REQUEST = b"GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n"
IP_BIND_ADDRESS_NO_PORT = 24  # Linux; the port is chosen when the connection is made


def allowed(wanted: int, descriptors: int, ports: tuple[int, int]) -> int:
    """How many of `wanted` connections a process may have, by its limit of descriptors and by the source ports."""
    first, last = ports
    return max(0, min(wanted, descriptors - RESERVED, len(SOURCES) * (last - first) * 3 // 4))


def allow(wanted: int) -> int:
    """Raise this process's soft limit of descriptors, which those that it starts inherit; how many are allowed then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return allowed(wanted, needed if soft == resource.RLIM_INFINITY else soft, (int(first), int(last)))


@contextmanager
def held(
    port: int, connections: int, request: bytes = REQUEST, success: bytes = b"HTTP/1.1 2"
) -> Iterator[list[socket.socket]]:
    """So many connections to `port` of loopback, idle for as long as the block lasts; `success` begins their answers.

    Raises CannotRun where one gets no success as its first answer, or where one was closed before the end.
    """
    clients: list[socket.socket] = []
    give_up = time.monotonic() + GIVE_UP_SECONDS
    try:
        for begin in range(0, connections, BATCH):
            _open(clients, port, min(BATCH, connections - begin), give_up, request, success)
        yield clients
        if lost := sum(map(_closed, clients)):
            raise CannotRun(f"{lost} of {connections} idle connections were closed meanwhile")
    except OSError as error:
        raise CannotRun(f"{len(clients)} of {connections} idle connections were open: {error}") from None
    finally:
        for client in clients:
            # A reset: ten thousand connections would stand in TIME_WAIT otherwise.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()


def drain(client: socket.socket) -> None:
    """Read what has come, and do not wait."""
    with contextlib.suppress(BlockingIOError):
        while client.recv(65536):
            pass


def _open(clients: list[socket.socket], port: int, number: int, give_up: float, request: bytes, success: bytes) -> None:
    with selectors.EpollSelector() as selector:
        for _ in range(number):
            client = socket.socket()
            clients.append(client)
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            client.bind((SOURCES[len(clients) % len(SOURCES)], 0))
            client.connect_ex(("127.0.0.1", port))
            selector.register(client, selectors.EVENT_WRITE, client)
        waiting = number
        while waiting:
            if time.monotonic() > give_up:
                raise CannotRun(f"{waiting} of {number} connections had no answer; {len(clients)} were open")
            for key, events in selector.select(timeout=0.1):
                client = key.data
                if events & selectors.EVENT_WRITE:
                    client.send(request)
                    selector.modify(client, selectors.EVENT_READ, client)
                    continue
                answer = client.recv(65536)
                if not answer.startswith(success):
                    raise CannotRun(f"an idle connection's first answer was {answer[:60]!r}")
                selector.unregister(client)
                waiting -= 1


def _closed(client: socket.socket) -> bool:
    try:
        return client.recv(65536) == b""  # the rest of its answer, where that came in two parts
    except BlockingIOError:
        return False
    except OSError:
        return True
