"""The health check: exit status 0 when the page is there."""

from __future__ import annotations

import os
import socket
import sys


def main() -> int:
    with socket.create_connection(("127.0.0.1", int(os.environ["LIVE_PORT"])), timeout=2) as connection:
        connection.sendall(b"HEAD / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return b" 200 " not in connection.recv(64)


if __name__ == "__main__":
    sys.exit(main())
