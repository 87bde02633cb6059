"""`make soak`: a million requests while everything happens to the stack that may, over and over. Nothing is lost.

SOAK_REQUESTS, SOAK_RATE (requests a second) and SOAK_SECONDS (when to give up) of the environment change its size.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from proofs import events
from proofs.open_loop import OpenLoop
from proofs.stack import PATIENT_BUDGET, Stack
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


def main() -> int:
    way = os.environ.get("WAY") or ("compose" if engine() else "native")
    stack = Stack(way, "soak", **PATIENT_BUDGET, MAX_REQUESTS="2000", MAX_REQUESTS_JITTER="1000")
    begun, total, posts, failed = time.monotonic(), 0, 0, 0
    try:
        stack.up()
        while total < REQUESTS and time.monotonic() - begun < SECONDS:
            for event in COMPOSE if way == "compose" else NATIVE:
                with OpenLoop(stack, RATE) as load:
                    event(stack, load)
                outcome = load.outcome
                total, posts = total + outcome.total, posts + outcome.sent["POST"]
                print(f"{time.monotonic() - begun:6.0f} s  {total:>9,} of {REQUESTS:,}  {outcome}", flush=True)
                try:
                    outcome.assert_nothing_lost_or_doubled()
                except AssertionError as error:
                    print(f"FAILED: {error}")
                    failed += 1
    finally:
        stack.down()
    print(f"{way}: {total:,} requests, {posts:,} POST, {failed} events with a loss")
    if total < REQUESTS:
        print(f"FAILED: {SECONDS:g} s were not enough for {REQUESTS:,} requests")
    return 1 if failed or total < REQUESTS else 0


if __name__ == "__main__":
    sys.exit(main())
