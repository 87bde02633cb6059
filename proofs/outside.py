"""Another machine, as far as the kernel can tell: a network namespace on a cable to this host."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import random
import socket
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proofs.conftest import lacks
from proofs.stack import DEADLINE

CLONE_NEWNET = 0x40000000


class Outside:
    """`here` and `here6` are this host's addresses on the cable.

    The other machine has the IPv4 addresses ipv4(2) to ipv4(9), and ipv6(network, 2) to ipv6(network, 9) in each of
    the networks 1 and 2, which are /64.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"proof-out-{number}"
        self.here, self.here6 = self.ipv4(1), self.ipv6(1, 1)

    def ipv4(self, host: int) -> str:
        return f"198.19.{self.number}.{host}"

    def ipv6(self, network: int, host: int) -> str:
        return f"2001:db8:{self.number:x}:{network}::{host:x}"

    def command(self, *words: str) -> list[str]:
        """The words as a command that runs there."""
        return ["ip", "netns", "exec", self.name, *words]

    def connect(self, source: str, port: int, to: str = "") -> socket.socket:
        """A connection from one of its addresses to this host, or to another address."""

        def connect() -> socket.socket:
            # A socket belongs to the namespace of the thread that makes it, and this thread ends with it.
            with Path(f"/run/netns/{self.name}").open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            there = to or (self.here6 if ":" in source else self.here)
            return socket.create_connection((there, port), timeout=DEADLINE, source_address=(source, 0))

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(connect).result()

    def ask(
        self, source: str, port: int, path: str = "/", headers: Mapping[str, str] | None = None, *, to: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """The status and the JSON of the answer to a GET from one of its addresses."""
        return answer(self.connect(source, port, to), path, headers)


def answer(connection: socket.socket, path: str = "/", headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """GET on a connection that stands; it is closed after that."""
    client = http.client.HTTPConnection("localhost")
    client.sock = connection
    try:
        client.request("GET", path, headers=dict(headers or {}))
        got = client.getresponse()
        return got.status, json.loads(got.read())
    finally:
        client.close()


@contextmanager
def outside() -> Iterator[Outside]:
    """Skips where this user may not make one, which takes root; fails there when REQUIRE_DOCKER=1."""
    if os.getuid() != 0:
        lacks("only root may make a network namespace", "REQUIRE_DOCKER")
    # Another run may have one of them: who can add the name has it.
    machine = next(
        machine
        for machine in map(Outside, random.sample(range(1, 255), 254))
        if subprocess.run(["ip", "netns", "add", machine.name], capture_output=True).returncode == 0
    )
    inner, outer = f"in-{machine.number}", f"out-{machine.number}"
    try:
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", machine.name)
        _ip("link", "set", outer, "up")
        for command in (("link", "set", "lo", "up"), ("link", "set", inner, "up")):
            _ip("-netns", machine.name, *command)
        for host in range(1, 10):
            where = ("dev", outer) if host == 1 else ("dev", inner)
            there = () if host == 1 else ("-netns", machine.name)
            _ip(*there, "address", "add", f"{machine.ipv4(host)}/24", *where)
            for network in (1, 2):
                _ip(*there, "address", "add", f"{machine.ipv6(network, host)}/64", *where, "nodad")
        yield machine
    finally:
        # The cable goes with one of its ends, whatever still holds the other.
        subprocess.run(["ip", "link", "delete", outer], capture_output=True)
        _ip("netns", "delete", machine.name)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
