"""Until when the certificate is valid that nginx shows to clients. It is asked as they ask: by a handshake."""

from __future__ import annotations

import datetime
import socket
import ssl
import time
from collections.abc import Iterator

TIMEOUT = 0.8
# Between two handshakes: each costs nginx a signature.
PAUSE_SECONDS = 10.0
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
FORMATS = {UTC_TIME: "%y%m%d%H%M%SZ", GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}
VERSION, VALIDITY = 0xA0, 3  # the tag of what old certificates have not; the place among the other fields


class Certificate:
    """`end` is in seconds since 1970: 0 where nginx has none to show, None where it does not answer."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.end: float | None = None
        self._next = 0.0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Whom it names, and who has signed it, is the client's question.
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE

    def ask(self) -> None:
        """Ask, where the last answer is not new any more."""
        if time.monotonic() < self._next:
            return
        try:
            with (
                socket.create_connection((self.host, self.port), TIMEOUT) as connection,
                self._context.wrap_socket(connection) as secured,
            ):
                self.end = not_after(secured.getpeercert(binary_form=True) or b"")
        except (ssl.SSLError, ValueError, LookupError):
            self.end = 0.0
        except OSError:
            self.end = None
        self._next = time.monotonic() + PAUSE_SECONDS


def not_after(certificate: bytes) -> float:
    """The end of this certificate in DER (RFC 5280, 4.1), in seconds since 1970."""
    ((_, whole),) = _parts(certificate)
    (_, signed), *_ = _parts(whole)
    fields = [content for tag, content in _parts(signed) if tag != VERSION]
    _, (tag, text) = _parts(fields[VALIDITY])
    end = datetime.datetime.strptime(text.decode(), FORMATS[tag])
    return end.replace(tzinfo=datetime.UTC).timestamp()


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements of a sequence: the tag and the content of each."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:  # the length of the length
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size])
            at += size
        yield tag, der[at : at + length]
        at += length
