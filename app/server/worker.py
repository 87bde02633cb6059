"""The Gunicorn worker class: Uvicorn with the settings that Gunicorn's own configuration has no name for."""

from __future__ import annotations

import os
import socket
import sys

from gunicorn.arbiter import Arbiter
from uvicorn import Server
from uvicorn_worker import UvicornWorker

from app.server import lifecycle
from app.server.settings import Settings, read

settings = read(Settings, os.environ)


class LifecycleServer(Server):
    """Uvicorn's server, saying in `lifecycle` where it stands."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        lifecycle.state = "ready"

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        lifecycle.state = "draining"
        await super().shutdown(sockets)


class Worker(UvicornWorker):  # type: ignore[misc]
    CONFIG_KWARGS = {  # noqa: RUF012 (the parent class names it so)
        "loop": "uvloop",
        "http": "httptools",
        "ws": "websockets-sansio",
        "ws_ping_interval": settings.websocket_ping_seconds,
        "timeout_graceful_shutdown": settings.uvicorn_graceful_seconds,
        "access_log": False,
        "server_header": False,
        "date_header": False,
    }

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = LifecycleServer(config=self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
