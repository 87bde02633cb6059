"""The demo's traffic: who sends what, how often, and what a right answer is."""

import json
import uuid

from locust import task

from loadtest.base import BaseUser

LINES = [{"sku": f"SKU-{n:06}", "quantity": n, "unit_price_cents": 250 * n} for n in range(1, 7)]
TOTAL_CENTS = sum(250 * n * n for n in range(1, 7))
CUSTOMER = {"name": "Ada Example", "email": "ada@example.com", "address": "1 Example Street, 12345 Exampletown"}
ORDER = json.dumps({"customer": CUSTOMER, "lines": LINES, "note": "Leave it at the back door. " * 18})


class Visitor(BaseUser):
    """The mix of requests: 3 of 12 are orders, each under an idempotency key of its own."""

    abstract = True
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
