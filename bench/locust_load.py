"""Locust's side of bench/load.py, for a machine without wrk: the same arguments, the same line of JSON."""

from __future__ import annotations

import json
import sys
import time
from itertools import count
from pathlib import Path

import gevent
from locust import FastHttpUser, constant, task
from locust.env import Environment


def main(
    target: str,
    users: int,
    seconds: float,
    method: str,
    body_file: str,
    prefix: str,
    percentiles: list[str],
    lines: list[str],
) -> None:
    headers = dict(line.split(": ", 1) for line in lines)
    body = Path(body_file).read_text() if body_file else None
    numbers = count()

    class User(FastHttpUser):
        host = target
        wait_time = constant(0)

        @task
        def send(self) -> None:
            if prefix:
                headers["Idempotency-Key"] = f"{prefix}-{next(numbers)}"
            self.client.request(method, target, data=body, headers=headers)

    environment = Environment(user_classes=[User])
    runner = environment.create_local_runner()
    runner.start(users, spawn_rate=users)
    start = time.monotonic()
    gevent.sleep(seconds)
    total = environment.stats.total
    outcome = {
        "requests": total.num_requests,
        "seconds": time.monotonic() - start,
        "errors": total.num_failures,
        "latency_ms": {each: total.get_response_time_percentile(float(each) / 100) or 0 for each in percentiles},
    }
    runner.quit()
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    url, users, seconds, method, body_file, prefix, percentiles, *lines = sys.argv[1:]
    main(url, int(users), float(seconds), method, body_file, prefix, percentiles.split(","), lines)
