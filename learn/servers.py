"""Servers and clients of the exercises: all on loopback, all ended with the exercise."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.processes import free_ports, process
from stack.console import accepts

START_SECONDS, STOP_SECONDS = 30, 10
UVICORN = ("uvicorn", "learn.app:app", "--log-level", "critical")


@contextmanager
def server(*command: str, port_option: str = "--port", host: str = "127.0.0.1", before: str = "") -> Iterator[int]:
    """The port of a server that `python -m` has started. `before` is for the shell that starts it."""
    (port,) = free_ports(1)
    words = [sys.executable, "-m", *command]
    words += ["--bind", f"{host}:{port}"] if port_option == "--bind" else ["--host", host, port_option, str(port)]
    with listening(words, port, before):
        yield port


@contextmanager
def listening(command: Sequence[str], port: int, before: str = "") -> Iterator[None]:
    """Run it until the block ends; it accepts connections on `port`. Raises CannotRun where it does not."""
    shell = f"{before} exec {shlex.join(command)}"
    with process(shell, {}, Path(os.devnull), lambda: accepts(port), START_SECONDS, STOP_SECONDS):
        yield


def get(port: int, path: str, timeout: float = 30) -> str:
    """The body of the answer to a GET on a connection of its own. Raises OSError where there is none in time."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return everything(client).partition("\r\n\r\n")[2]


def everything(client: socket.socket) -> str:
    """What comes until the other side closes."""
    parts = []
    with suppress(ConnectionResetError):
        while part := client.recv(65_536):
            parts.append(part)
    return b"".join(parts).decode()


def seconds_for(port: int, paths: Sequence[str]) -> float:
    """How long all of them take when they are asked at once, each on a connection of its own."""
    begun = time.monotonic()
    with ThreadPoolExecutor(len(paths)) as clients:
        list(clients.map(lambda path: get(port, path), paths))
    return time.monotonic() - begun


def shortest(seconds: Callable[[], float], times: int = 3) -> float:
    """The least of several: a machine that is busy with something else only adds to it."""
    return min(seconds() for _ in range(times))
