"""The traffic: who sends what, how often, and what a right answer is. Replace the tasks by those of your own app."""

import json
import random
import time
import uuid
from collections.abc import Callable
from typing import Any

import gevent
from locust import FastHttpUser, between, task

# Longer than PROXY_READ_TIMEOUT_SECONDS, or the user gives up first and the proxy's 504 is never seen.
ANSWER_TIMEOUT_SECONDS = 30.0

# A constant-rate user sends one request in this time, so that R requests per second take 2 R users. All but a few
# of them wait, which is the point: only answers slower than this hold back arrivals.
PACING_SECONDS = 2

LINES = [{"sku": f"SKU-{n:06}", "quantity": n, "unit_price_cents": 250 * n} for n in range(1, 7)]
TOTAL_CENTS = sum(250 * n * n for n in range(1, 7))
CUSTOMER = {"name": "Ada Example", "email": "ada@example.com", "address": "1 Example Street, 12345 Exampletown"}
ORDER = json.dumps({"customer": CUSTOMER, "lines": LINES, "note": "Leave it at the back door. " * 18})


class Visitor(FastHttpUser):
    """The mix of requests: 3 of 12 are orders, each under an idempotency key of its own."""

    abstract = True
    network_timeout = connection_timeout = ANSWER_TIMEOUT_SECONDS
    last_order = ""

    @task(3)
    def who_serves(self) -> None:
        self.call("GET", "/", lambda answer: answer["pid"] > 0)

    @task(3)
    def items(self) -> None:
        self.call("GET", "/items?n=20", lambda answer: len(answer) == 20, name="/items")

    @task(2)
    def awaited_io(self) -> None:
        self.call("GET", "/work/io?ms=20", lambda answer: True, name="/work/io")

    @task(3)
    def order(self) -> None:
        key = uuid.uuid4().hex
        right = {"key": key, "applied": True, "total_cents": TOTAL_CENTS, "lines": len(LINES)}
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        if self.call("POST", "/orders", lambda a: right.items() <= a.items(), status=201, data=ORDER, headers=headers):
            self.last_order = key

    @task(1)
    def order_status(self) -> None:
        if not self.last_order:
            self.order()
            return
        self.call("GET", f"/orders/{self.last_order}", lambda answer: answer["applied"] == 1, name="/orders/{key}")

    def call(
        self, method: str, path: str, right: Callable[[Any], bool], name: str = "", status: int = 200, **request: Any
    ) -> bool:
        """Send one request; anything but `status` and JSON that `right` accepts is counted as a failure.

        `name` is the row in the statistics: without it each order key would be a row of its own.
        """
        with self.client.request(method, path, name=name or path, catch_response=True, **request) as response:
            if response.status_code == 0:
                return False  # no answer: Locust counts the connection's own error
            if response.status_code != status:
                response.failure(f"status {response.status_code}, expected {status}")
                return False
            try:
                answered = right(json.loads(response.content))
            except (ValueError, LookupError, TypeError, AttributeError):
                answered = False
            if not answered:
                response.failure("the content is not what was asked for")
            return answered


class ClosedLoopUser(Visitor):
    """Sends the next request about 0.1 s after the last answer: as many in flight as there are users, at most."""

    wait_time = between(0.05, 0.15)


class ConstantRateUser(Visitor):
    """Sends one request every PACING_SECONDS, however long the answers take up to that time."""

    def on_start(self) -> None:
        # Users start in batches, one a second: without a phase of their own all would send in the same instant.
        phase = random.uniform(0, PACING_SECONDS)
        self.due = time.perf_counter() + phase
        gevent.sleep(phase)

    def wait_time(self) -> float:
        now = time.perf_counter()
        self.due = max(self.due + PACING_SECONDS, now)
        return self.due - now
