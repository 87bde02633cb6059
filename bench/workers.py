"""Gunicorn worker classes to compare with: the stack's own with one thing changed, and Uvicorn's as it is."""

from __future__ import annotations

import asyncio
import socket
from unittest.mock import patch

from uvicorn_worker import UvicornWorker

from app.server import worker
from app.server.server import DrainingServer
from app.server.worker import Worker, settings


class AsyncioWorker(Worker):
    """The stack's worker on the event loop of the standard library."""

    CONFIG_KWARGS = Worker.CONFIG_KWARGS | {"loop": "asyncio"}


class _LoopAccepts(DrainingServer):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup()
        loop = asyncio.get_running_loop()
        for listener in self.acceptor.listeners:
            loop.remove_reader(listener.fileno())
            server = await loop.create_server(self._protocol, sock=listener.dup(), backlog=settings.listen_backlog)
            self.servers.append(server)


class LoopAcceptsWorker(Worker):
    """The stack's worker, except that uvloop's own server accepts: one connection in each turn of the loop."""

    def run(self) -> None:
        with patch.object(worker, "DrainingServer", _LoopAccepts):
            super().run()


class StockWorker(UvicornWorker):  # type: ignore[misc]
    """Uvicorn's worker with the configuration of the stack's: it closes where that drains, and counts by itself."""

    CONFIG_KWARGS = {name: value for name, value in Worker.CONFIG_KWARGS.items() if name != "limit_max_requests"} | {
        "http": "httptools"
    }
