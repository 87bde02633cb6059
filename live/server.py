"""The page, its updates and /metrics over HTTP: read-only, for this machine, a thread a connection and few of them."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from live.exposition import CONTENT_TYPE
from live.parts import parts
from live.watch import WATCHERS, Watch

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
# Connections at a time: those of all watchers, and room to open the page and to ask for /metrics.
CONNECTIONS = WATCHERS + 32
# A connection that takes nothing, or says nothing, for this long is closed.
PATIENCE_SECONDS = 5
# The names by which it is asked: anything else is a page of another site that a resolver leads here (DNS rebinding).
HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\]|live)(:\d{1,5})?")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    # The page loads nothing but its own files, and nobody may frame it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = PATIENCE_SECONDS
    server_version, sys_version = "live", ""

    def do_GET(self) -> None:
        """All there is."""
        path = self.path.partition("?")[0]
        if not HOST.fullmatch(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "ask as localhost or 127.0.0.1 (from afar: ssh -L)")
        elif path == "/metrics":
            self._send(CONTENT_TYPE, self.server.watch.exposition().encode())
        elif path == "/events":
            self._stream()
        elif path == "/parts":
            self._send("application/json", json.dumps(parts(self.server.watch.settings.rows)).encode())
        elif path in self.server.files:
            kind, file = self.server.files[path]
            self._send(f"{kind}; charset=utf-8", file.read_bytes())
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is /, /metrics and /events")

    do_HEAD = do_GET  # without its body

    def _stream(self) -> None:
        if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            self._refuse(HTTPStatus.FORBIDDEN, "another site's page may not watch")
        elif self.command == "HEAD":
            self._start("text/event-stream")
        elif not self.server.watch.join():
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{WATCHERS} pages are open already: close one")
        else:
            try:
                self._start("text/event-stream")
                self.wfile.write(b"retry: 2000\nevent: history\ndata: " + self.server.watch.history() + b"\n\n")
                tick = 0
                while True:
                    tick, snapshot = self.server.watch.next(tick)
                    self.wfile.write(b"data: " + snapshot + b"\n\n")
            except OSError:
                pass  # it has left, or takes nothing
            finally:
                self.server.watch.leave()

    def _send(self, kind: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._start(kind, status, len(body))
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    def _start(self, kind: str, status: HTTPStatus = HTTPStatus.OK, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in HEADERS.items() | {("Content-Type", kind), ("Connection", "close")}:
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        with contextlib.suppress(OSError):
            self.end_headers()

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send("text/plain; charset=utf-8", f"{status.value} {status.phrase}: {why}\n".encode(), status)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: whoever watches leaves no trace."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, watch: Watch) -> None:
        """Raises OSError where the port is in use."""
        self.watch = watch
        self.files = {f"/{file.name}": (TYPES[file.suffix], file) for file in (HERE / "page").iterdir()}
        self.files["/"] = self.files["/index.html"]
        # As they are written: they read well as text.
        self.files |= {f"/docs/{file.name}": ("text/plain", file) for file in DOCS.glob("*.md")}
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((watch.settings.host, watch.settings.port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.send(b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\n\r\n"
                             b"503 Service Unavailable: too many connections are open already\n")  # fmt: skip
            self.shutdown_request(request)
            return
        # Little is kept for a watcher that does not read.
        request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is no fault of this service."""

        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handle_error(request, client_address)
