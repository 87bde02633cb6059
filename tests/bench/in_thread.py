"""A server of a test's own, in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Server(Protocol):
    """`main` sets `up` when it serves, makes `ending`, and serves until that is set."""

    loop: asyncio.AbstractEventLoop
    ending: asyncio.Event

    def main(self, up: threading.Event) -> Coroutine[Any, Any, None]: ...


@contextmanager
def serving(server: Server) -> Iterator[None]:
    up = threading.Event()
    thread = threading.Thread(target=lambda: server.loop.run_until_complete(server.main(up)))
    thread.start()
    assert up.wait(10)
    yield
    server.loop.call_soon_threadsafe(server.ending.set)
    thread.join()
