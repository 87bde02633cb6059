"""The load of a burst: many new connections at the same moment, each of which asks again as soon as it is answered.

Raw sockets and epoll: a client that is slow itself would show its own queue.
"""

from __future__ import annotations

import select
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
    for client in clients:
        client.setblocking(False)
    unanswered = {client.fileno(): client for client in clients}
    answered: dict[int, socket.socket] = {}
    address = ("127.0.0.1", port)
    try:
        # Edge-triggered: a connection is registered once, and is heard of when it stands and for each answer.
        with select.epoll() as poll:
            begun = time.perf_counter()
            for number, client in unanswered.items():
                client.connect_ex(address)
                poll.register(number, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
            while unanswered or time.perf_counter() - begun < seconds:
                if time.perf_counter() - begun > GIVE_UP_SECONDS:
                    raise CannotRun(f"{len(unanswered)} of {connections} had no answer in {GIVE_UP_SECONDS} s")
                for number, event in poll.poll(0.1):
                    client = answered.get(number) or unanswered[number]
                    if event & (select.EPOLLIN | select.EPOLLERR):
                        answer = client.recv(4096)
                        if not answer.startswith(b"HTTP/1.1 200 "):
                            raise CannotRun(f"one of a burst of {connections} was answered {answer[:60]!r}")
                        if number in unanswered:
                            answered[number] = unanswered.pop(number)
                            taken.append((time.perf_counter() - begun) * 1000)
                    client.send(REQUEST)
    finally:
        for client in clients:
            client.close()
    return taken
