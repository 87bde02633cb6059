"""The load of a burst: many new connections at the same moment, one request on each.

Raw sockets and epoll, because a client that is slow itself would show its own queue: this one takes some 10 ms for 256.
"""

from __future__ import annotations

import selectors
import socket
import time

GIVE_UP_SECONDS = 15


class Burst(Exception):
    """A request of the burst had no success; the text says which and why."""


def first_answers(port: int, connections: int, path: str = "/") -> list[float]:
    """Open so many connections to `port` of loopback; milliseconds from the moment that all were due to each answer."""
    request = f"GET {path} HTTP/1.1\r\nHost: bench.test\r\n\r\n".encode()
    taken = []
    with selectors.DefaultSelector() as selector:
        begun = time.perf_counter()
        for _ in range(connections):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            selector.register(client, selectors.EVENT_WRITE)
        try:
            while len(taken) < connections:
                ready = selector.select(timeout=1)
                if time.perf_counter() - begun > GIVE_UP_SECONDS:
                    raise Burst(f"{connections - len(taken)} of {connections} had no answer in {GIVE_UP_SECONDS} s")
                for key, events in ready:
                    client = key.fileobj  # type: ignore[assignment]
                    if events & selectors.EVENT_WRITE:
                        client.send(request)
                        selector.modify(client, selectors.EVENT_READ)
                        continue
                    answer = client.recv(4096)
                    if not answer.startswith(b"HTTP/1.1 200 "):
                        raise Burst(f"answered {answer[:60]!r}")
                    taken.append((time.perf_counter() - begun) * 1000)
                    selector.modify(client, 0) if False else selector.unregister(client)
                    client.close()
        finally:
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
    return taken
