"""WAY=swarm: one node asks the CA. It has the file that the CA wants to see, and the certificate for all nodes.

The certificate travels sealed, with a key that Swarm gives to these containers alone: what nodes say to each other is
not encrypted.
"""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from renew import pem

PORT = 8000
SEALED = "/site.sealed"
CHALLENGE = re.compile(r"/\.well-known/acme-challenge/[A-Za-z0-9_-]+")


def seal(environ: Mapping[str, str]) -> Fernet:
    return Fernet(Path(environ["RENEW_SEAL"]).read_bytes())


def serve(published: Path, sealing: Fernet, port: int = PORT) -> ThreadingHTTPServer:
    """Answer for good, in a thread: the CA's question to anybody, and the certificate to whoever can open it."""

    class Answer(BaseHTTPRequestHandler):
        timeout = 10  # a client that is silent holds a thread

        def do_GET(self) -> None:
            try:
                if self.path == SEALED:
                    body = sealing.encrypt((published / "site.pem").read_bytes())
                elif CHALLENGE.fullmatch(self.path):
                    body = (published / self.path[1:]).read_bytes()
                else:
                    raise FileNotFoundError
            except OSError:
                self.send_response(404)
                body = b""
            else:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """nginx has the log."""

    server = ThreadingHTTPServer(("", port), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def fetch(address: str, opening: Fernet) -> bytes:
    """site.pem of the node that asks the CA. Raises OSError, or UnusableError where it was not sealed there."""
    with urllib.request.urlopen(f"{address}{SEALED}", timeout=10) as answer:
        try:
            return opening.decrypt(answer.read())
        except InvalidToken:
            raise pem.UnusableError("it is sealed with another key") from None
