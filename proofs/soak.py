"""`make soak`: a million requests while everything happens to the stack that may, over and over. Nothing is lost.

In Compose with Prometheus beside it: what happens on purpose is no alert.

SOAK_REQUESTS, SOAK_RATE (requests a second) and SOAK_SECONDS (when to give up) of the environment change its size.
What came of it is written into docs/zero-loss.md.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable

from proofs import events
from proofs.open_loop import OpenLoop
from proofs.stack import PATIENT_BUDGET, Stack
from proofs.test_prometheus import asked
from proofs.zero_loss import put
from stack.compose import engine

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "1000000"))
RATE = float(os.environ.get("SOAK_RATE", "600"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "3600"))

Event = Callable[[Stack, OpenLoop], object]
NATIVE: list[Event] = [lambda s, o: events.reload(s, o, 3), events.recycle, events.pass_time]
COMPOSE: list[Event] = [
    lambda s, o: events.reload(s, o, 2),
    events.recycle,
    lambda s, o: events.nginx_reload(s, o, 5),
    lambda s, o: events.deploy(s, o, 1),
    events.scale,
    events.pass_time,
]


def alerts(stack: Stack) -> list[str]:
    """The alerts that have fired since Prometheus was started, by name."""
    found = asked(stack, "query", query='max_over_time(ALERTS{alertstate="firing"}[1d])')["result"]
    return sorted({each["metric"]["alertname"] for each in found})


def main() -> int:
    way = os.environ.get("WAY") or ("compose" if engine() else "native")
    metrics = "on" if way == "compose" else "off"
    stack = Stack(way, "soak", **PATIENT_BUDGET, METRICS=metrics, MAX_REQUESTS="2000", MAX_REQUESTS_JITTER="1000")
    begun, total, posts, happened, failed, lost, doubled = time.monotonic(), 0, 0, 0, 0, 0, 0
    fired: list[str] = []
    try:
        stack.up()
        while total < REQUESTS and time.monotonic() - begun < SECONDS:
            for event in COMPOSE if way == "compose" else NATIVE:
                with OpenLoop(stack, RATE) as load:
                    event(stack, load)
                outcome = load.outcome
                total, posts, happened = total + outcome.total, posts + outcome.sent["POST"], happened + 1
                lost, doubled = lost + len(outcome.lost), doubled + len(outcome.doubled)
                print(f"{time.monotonic() - begun:6.0f} s  {total:>9,} of {REQUESTS:,}  {outcome}", flush=True)
                try:
                    outcome.assert_nothing_lost_or_doubled()
                except AssertionError as error:
                    print(f"FAILED: {error}")
                    failed += 1
        if metrics == "on":
            fired = alerts(stack)
    finally:
        stack.down()
    found = (
        f"{lost:,} of {total:,} requests lost, {doubled:,} done twice, {posts:,} POST among them, in {happened} events"
    )
    if metrics == "on":
        found += f", {len(fired)} alerts" + "".join(f" {name}" for name in fired)
    print(f"{way}: {found}; {failed} of the events with a loss")
    put("soak", f"{found}, `WAY={way}`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}.")
    if total < REQUESTS:
        print(f"FAILED: {SECONDS:g} s were not enough for {REQUESTS:,} requests")
    return 1 if failed or fired or total < REQUESTS else 0


if __name__ == "__main__":
    sys.exit(main())
