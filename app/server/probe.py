"""The container's health check: exit status 0 when every worker's socket answers that it is ready."""

from __future__ import annotations

import os
import socket
import sys


def ready(host: str, port: int, seconds: float) -> bool:
    """Ask /readyz of whoever accepts at `host`:`port`. By socket: an HTTP client takes longer to import than to ask."""
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


if __name__ == "__main__":
    first = int(os.environ["APP_PORT"])
    listeners = 1 if os.environ["WORKER_LISTENERS"] == "shared" else int(os.environ["WORKERS"])
    sys.exit(0 if all(ready("127.0.0.1", first + i, seconds=2) for i in range(listeners)) else 1)
