"""How the workers are managed. Every number comes from .env, by way of the environment."""

import os
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

# Imported by each fork server, or by each worker with WORKER_START=import, these are most of the CPU of its start. Your
# own code is not imported here, so a reload takes it new.
import fastapi  # noqa: F401
import uvicorn.lifespan.on
import uvicorn.loops.uvloop
import uvicorn.protocols.http.httptools_impl
import uvicorn.protocols.websockets.auto  # noqa: F401

from app.server import budget, logs, networks, space
from app.server.settings import Settings, SettingsError, read


def metrics_folder(parent: str) -> str:
    """A new folder for boards (board.py). What masters of this user left that were killed is removed on the way."""
    prefix = "fastapi-stack-metrics-"
    for left in Path(parent).glob(f"{prefix}[0-9]*-*"):
        master = left.name.removeprefix(prefix).split("-")[0]
        with suppress(FileNotFoundError):  # another master may be at it
            if left.stat().st_uid == os.getuid() and not os.path.exists(f"/proc/{master}"):
                shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent)


try:
    settings = read(Settings, os.environ)
    if broken := budget.violations(settings) + space.violations(settings):
        raise SettingsError("\n".join(broken))
except SettingsError as error:
    sys.exit(str(error))

# One listening socket for each worker: on a shared one, keep-alive connections stay with whoever took them, and a
# fast request waits behind a slow one while another worker has nothing to do. nginx lists the same ports.
bind = [f"{settings.app_host}:{settings.app_port + i}" for i in range(settings.listeners)]
workers = settings.workers
worker_class = "app.server.worker.Worker"
wsgi_app = "app.server.application:application"

# Uvicorn must not close an idle connection before nginx does: the default of 2 s loses POSTs.
keepalive = settings.app_keepalive_seconds
# A worker whose event loop has not moved for this long is killed.
timeout = settings.worker_timeout_seconds
graceful_timeout = settings.gunicorn_graceful_seconds
# A leak in the app must not grow for ever; the jitter keeps the workers from being replaced in step.
max_requests = settings.max_requests
max_requests_jitter = settings.max_requests_jitter
# Whose X-Forwarded-* Uvicorn believes: nginx alone. The default, loopback, makes every client 172.x in Compose.
forwarded_allow_ips = networks.trusted(settings.trusted_proxies)
# The heartbeat is a file: on a disk, a stalled write is taken for a hung worker. It must be in memory.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
# Gunicorn 25.1 and newer opens a control socket; nothing here uses it, and a read-only root has no place for it.
control_socket_disable = True
logconfig_dict = logs.config(settings.log_level)

if "METRICS_DIR" not in os.environ:  # a reload finds it set
    os.environ["METRICS_DIR"] = metrics_folder(worker_tmp_dir or tempfile.gettempdir())


def when_ready(server: object) -> None:
    """What the kernel keeps of an answer that nginx does not read: megabytes by default, for each slow reader.

    Accepted connections take it from their listener. The kernel doubles what it is asked for.
    """
    for listener in server.LISTENERS:  # type: ignore[attr-defined]
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.app_socket_buffer_bytes // 2)


def on_exit(server: object) -> None:
    shutil.rmtree(os.environ["METRICS_DIR"], ignore_errors=True)
