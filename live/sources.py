"""Whom the live service asks: nginx's stub_status, and the observer of each replica, found by its name."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from typing import Any

# A part that takes longer is shown as silent. Nobody waits for it: each replica is asked by a thread of its own.
TIMEOUT = 0.8


class Source:
    """Something that answers GET over HTTP, on a connection that is kept open."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._connection: http.client.HTTPConnection | None = None

    def get(self, path: str) -> str | None:
        """The body; None where there is no answer with status 200 in time."""
        for _ in range(2):  # an open connection may have been closed by now
            fresh = self._connection is None
            connection = self._connection or http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
            self._connection = connection
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                body = answer.read()
                return body.decode() if answer.status == 200 else None
            except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
                connection.close()
                self._connection = None
                if fresh or isinstance(error, TimeoutError):
                    break
        return None


STATUS = ("active", "accepted", "handled", "requests", "reading", "writing", "waiting")


class Nginx:
    """The counters of stub_status."""

    def __init__(self, host: str, port: int) -> None:
        self._source = Source(host, port)
        self.counters: dict[str, int] | None = None  # None: it does not answer

    def ask(self) -> None:
        """Ask once; nginx's worker that answers may be another each time, the counters are those of all."""
        text = self._source.get("/status") or ""
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        self.counters = dict(zip(STATUS, numbers, strict=True)) if len(numbers) == len(STATUS) else None


class Replica:
    """One container of the app (natively the only one): what its observer said last, and how long ago."""

    def __init__(self, number: int, address: str, port: int) -> None:
        self.number, self.address, self._port = number, address, port
        self.state: dict[str, Any] | None = None
        self.answered = time.monotonic()
        self._source = Source(address, port)

    def ask(self) -> None:
        """Take its state; keep the last one where it does not answer."""
        with contextlib.suppress(ValueError):
            if text := self._source.get("/state"):
                self.state, self.answered = json.loads(text), time.monotonic()

    def metrics(self) -> str | None:
        """Its exposition, on a connection of its own: whoever scrapes does not wait for the page's questions."""
        return Source(self.address, self._port).get("/metrics")


class Replicas:
    """The replicas that the app's name leads to; each is asked by a thread that ends with it."""

    def __init__(self, host: str, port: int, wanted: threading.Event) -> None:
        """`wanted` is set while somebody watches: no replica is asked otherwise."""
        self.host, self.port, self._wanted = host, port, wanted
        self.found: list[Replica] = []
        self._numbers = 0
        self._lock = threading.Lock()

    def find(self) -> None:
        """Ask for the name's addresses; of a replica that is gone nothing is kept."""
        try:
            told = socket.getaddrinfo(self.host, self.port, socket.AF_INET, socket.SOCK_STREAM)
            addresses = sorted({str(each[4][0]) for each in told}, key=socket.inet_aton)
        except OSError:
            addresses = []  # the name leads nowhere: no replica runs
        with self._lock:
            known = {replica.address: replica for replica in self.found}
            found = [known.get(address) or self._new(address) for address in addresses]
            self.found = sorted(found, key=lambda replica: replica.number)

    def _new(self, address: str) -> Replica:
        self._numbers += 1
        replica = Replica(self._numbers, address, self.port)
        threading.Thread(target=self._ask_on, args=(replica,), daemon=True).start()
        return replica

    def _ask_on(self, replica: Replica) -> None:
        while not self._gone(replica):
            if self._wanted.wait(1.0):
                replica.ask()
                time.sleep(0.2)

    def _gone(self, replica: Replica) -> bool:
        with self._lock:
            listed = replica in self.found
        # It is listed a moment after its thread has begun.
        return not listed and time.monotonic() - replica.answered > 5

    def metrics(self) -> dict[str, str | None]:
        """The exposition of each replica by its address, all asked at once; None where it did not answer in time."""
        answers: dict[str, str | None] = {replica.address: None for replica in self.found}

        def ask(replica: Replica) -> None:
            answers[replica.address] = replica.metrics()

        threads = [threading.Thread(target=ask, args=(replica,), daemon=True) for replica in self.found]
        for thread in threads:
            thread.start()
        end = time.monotonic() + TIMEOUT
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return dict(answers)
