"""Whether workers can be forked from this process: what it holds that two processes cannot share."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

SQLITE = b"SQLite format 3\0"


def descriptors() -> dict[int, str]:
    """What is open: number, and what the kernel calls it."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the list itself, which is closed by now
            found[int(number)] = os.readlink(f"/proc/self/fd/{number}")
    return found


def obstacle(before: Mapping[int, str]) -> str:
    """What the application has begun and forked workers cannot share; "" for nothing.

    `before` is what descriptors() was before it was loaded.
    """
    if others := [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]:
        return f"starts a thread ({others[0]})"
    if left := _threads_that_survive_a_fork():
        return f"starts {left} threads outside Python"
    for number, name in sorted(descriptors().items() - before.items()):
        if found := _not_to_be_shared(number, name):
            return found
    return ""


def _threads_that_survive_a_fork() -> int:
    """Libraries that know of forks, as numpy's OpenBLAS, end their threads before one and start them again later."""

    def others() -> int:
        return len(os.listdir("/proc/self/task")) - 1

    if not others():
        return 0
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    end = time.monotonic() + 1  # one that has ended is listed until the kernel has seen to it
    while (left := others()) and time.monotonic() < end:
        time.sleep(0.01)
    return left


def _not_to_be_shared(number: int, name: str) -> str:
    """What it is; "" for a pipe, and for a file that is no database."""
    if name.startswith("socket:"):
        return _socket(number)
    if name == "anon_inode:[eventpoll]":
        return "makes an event loop"
    if Path(name).is_file():
        with suppress(OSError), open(name, "rb") as file:
            if file.read(len(SQLITE)) == SQLITE:
                return f"opens the SQLite database {name}"
    return ""


def _socket(number: int) -> str:
    with socket.socket(fileno=os.dup(number)) as found:
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return f"listens at {_shown(found.getsockname())}"
        if found.family == socket.AF_UNIX:
            peer, _, _ = struct.unpack("3i", found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if peer == os.getpid():
                return ""  # a pair, both ends its own
        try:
            return f"opens a connection to {_shown(found.getpeername())}"
        except OSError:
            return "opens a socket"


def _shown(address: object) -> str:
    return ":".join(map(str, address[:2])) if isinstance(address, tuple) else str(address)
