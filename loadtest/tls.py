"""HTTPS as a visitor has it: the chain of the certificate is verified, and its name, wherever the connection leads."""

import functools
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from socket import socket
from typing import Any

import gevent.ssl

from loadtest.settings import visited_name


class Context(gevent.ssl.SSLContext):  # type: ignore[misc]
    """Asks for `name` in each handshake: the address is that of the stack itself, which no certificate has."""

    name: str

    def wrap_socket(self, sock: socket, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        wrapped: ssl.SSLSocket = super().wrap_socket(sock, *arguments, **options | {"server_hostname": self.name})
        return wrapped


@functools.cache  # to read the public CAs takes some 10 ms of CPU, and there may be hundreds of users
def context() -> Context:
    """Trusts public CAs, and the certificates in the folder that LOADTEST_TRUSTED names."""
    return trusting(os.environ)


def trusting(environment: Mapping[str, str]) -> Context:
    made = Context(ssl.PROTOCOL_TLS_CLIENT)
    made.name = visited_name(environment)
    made.load_default_certs()
    # A certificate that is trusted may be that of the server itself, which is no CA's.
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for file in sorted(Path(environment.get("LOADTEST_TRUSTED") or os.devnull).glob("*.pem")):
        made.load_verify_locations(file)
    return made
