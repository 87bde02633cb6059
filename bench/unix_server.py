"""The stack's app server on Unix sockets, which it has no setting for: what they would be worth, `tiers` measures.

Gunicorn's options may follow, --bind unix:PATH for each worker among them.
"""

from __future__ import annotations

import socket
import sys

from gunicorn import sock

from app.server import arbiter
from app.server.__main__ import Application
from stack.settings import ROOT


class _UnixSocket(sock.UnixSocket):  # type: ignore[misc]
    """Its queue opens with the worker, as that of arbiter.BoundSocket."""

    @staticmethod
    def _is_listening(_socket: socket.socket) -> bool:
        return True


if __name__ == "__main__":
    arbiter.BoundSocket = _UnixSocket  # type: ignore[misc]
    sys.argv[1:1] = ["--config", str(ROOT / "app/server/gunicorn.conf.py")]
    Application().run()
