"""The load of a burst: many new connections at the same moment, each of which asks again as soon as it is answered.

Raw sockets and epoll: a client that is slow itself would show its own queue.
"""

from __future__ import annotations

import selectors
import socket
import time

from bench.processes import CannotRun

GIVE_UP_SECONDS = 15
REQUEST = b"GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n"


def first_answers(port: int, connections: int, seconds: float) -> list[float]:
    """Milliseconds to the first answer on each of so many connections to `port` of loopback, all due at one moment.

    The load goes on for `seconds`, and longer where a connection has had no answer yet. Raises CannotRun for an answer
    that is no success.
    """
    taken: list[float] = []
    clients = [socket.socket() for _ in range(connections)]
    answered: set[socket.socket] = set()
    try:
        with selectors.EpollSelector() as selector:
            begun = time.perf_counter()
            for client in clients:
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
                selector.register(client, selectors.EVENT_WRITE, client)
            while len(taken) < connections or time.perf_counter() - begun < seconds:
                if time.perf_counter() - begun > GIVE_UP_SECONDS:
                    raise CannotRun(f"{connections - len(taken)} of {connections} had no answer in {GIVE_UP_SECONDS} s")
                for key, events in selector.select(timeout=0.1):
                    client = key.data
                    if events & selectors.EVENT_WRITE:
                        selector.modify(client, selectors.EVENT_READ, client)
                    else:
                        answer = client.recv(4096)
                        if not answer.startswith(b"HTTP/1.1 200 "):
                            raise CannotRun(f"one of a burst of {connections} was answered {answer[:60]!r}")
                        if client not in answered:
                            answered.add(client)
                            taken.append((time.perf_counter() - begun) * 1000)
                    client.send(REQUEST)
    finally:
        for client in clients:
            client.close()
    return taken
