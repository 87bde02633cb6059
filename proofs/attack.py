"""A client that takes what it can get: `python -m proofs.attack HOST PORT`, for some seconds, with an account as JSON.

It needs the standard library alone, so that it runs in any container of a stack's network, under an address of its own.
It says "ready", begins at a line of its input and stays until that ends: starting and stopping are no part of the
attack, and cost more than it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
from collections import Counter
from dataclasses import dataclass, field

MEBIBYTE = 1 << 20
# A refused request is sent again after this: what shall be tried is what is let in.
PAUSE_SECONDS = 5
# The least a kernel takes: what it holds for a reader has been read, for the server.
RECEIVE_BUFFER = 4096


@dataclass
class Attack:
    """What is done to whom, and what became of it."""

    host: str
    port: int
    source: str
    statuses: Counter[str] = field(default_factory=Counter)
    bytes_read: int = 0
    held: int = 0  # uploads that are let in, and not whole
    most_held: int = 0
    most_read: int = 0  # readers that are being answered
    reading: int = 0

    async def connect(self, receive_buffer: int = 0) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if self.source:
            connection.bind((self.source, 0))
        await asyncio.get_running_loop().sock_connect(connection, (self.host, self.port))
        return connection

    async def upload(self, size: int) -> None:
        """All of a body but its last byte, until the server has had enough."""
        loop = asyncio.get_running_loop()
        with contextlib.closing(await self.connect()) as connection:
            head = f"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
            sending = asyncio.ensure_future(loop.sock_sendall(connection, head.encode() + (size - 1) * b"x"))
            self.held += 1
            self.most_held = max(self.held, self.most_held)
            try:
                answer = await loop.sock_recv(connection, 4096)
            finally:
                self.held -= 1
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        if answer:
            self.statuses[answer[9:12].decode()] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def read(self, path: str, bytes_per_second: int) -> None:
        """An answer, no faster than this."""
        loop = asyncio.get_running_loop()
        with contextlib.closing(await self.connect(RECEIVE_BUFFER if bytes_per_second < MEBIBYTE else 0)) as connection:
            await loop.sock_sendall(connection, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = await loop.sock_recv(connection, 4096)
            self.statuses[answer[9:12].decode()] += 1
            self.reading += 1
            self.most_read = max(self.reading, self.most_read)
            try:
                due = loop.time()
                while answer:
                    self.bytes_read += len(answer)
                    due += len(answer) / bytes_per_second
                    if due > loop.time():
                        await asyncio.sleep(due - loop.time())
                    answer = await loop.sock_recv(connection, max(1024, min(bytes_per_second // 4, MEBIBYTE)))
            finally:
                self.reading -= 1

    async def ask(self, path: str) -> None:
        """One request and its answer."""
        loop = asyncio.get_running_loop()
        with contextlib.closing(await self.connect()) as connection:
            await loop.sock_sendall(connection, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = await loop.sock_recv(connection, 65536)
        self.statuses[answer[9:12].decode()] += 1
        await asyncio.Event().wait()


async def over_and_over(what: object, *arguments: object) -> None:
    """What ends in an error is begun again."""
    while True:
        try:
            await what(*arguments)  # type: ignore[operator]
        except OSError:
            await asyncio.sleep(0.1)


async def run(arguments: argparse.Namespace) -> Attack:
    attack = Attack(arguments.host, arguments.port, arguments.source)
    work = [over_and_over(attack.upload, arguments.body_bytes) for _ in range(arguments.uploads)]
    rate = arguments.bytes_per_second
    work += [over_and_over(attack.read, arguments.path, rate) for _ in range(arguments.readers)]
    work += [over_and_over(attack.ask, arguments.path) for _ in range(arguments.requests)]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(arguments.seconds):
            await asyncio.gather(*work)
    return attack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--source", default="", help="the address to come from")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--uploads", type=int, default=0)
    parser.add_argument("--body-bytes", type=int, default=MEBIBYTE)
    parser.add_argument("--readers", type=int, default=0)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--path", default="/")
    parser.add_argument("--bytes-per-second", type=int, default=10_000)
    arguments = parser.parse_args()
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    attack = asyncio.run(run(arguments))
    print(json.dumps({"statuses": attack.statuses, "uploads": attack.most_held, "readers": attack.most_read,
                      "megabytes_read": round(attack.bytes_read / 1e6, 1)}), flush=True)  # fmt: skip
    sys.stdin.read()


if __name__ == "__main__":
    main()
