"""One Locust process that sends as fast as it can: python -m bench.generator_load TARGET KIND SECONDS.

KIND is "bare", a FastHttpUser as in Locust's documentation, or "ours", a user as in loadtest/, which judges answers.
Prints a line of JSON: requests, failures, and the CPU seconds of this process.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import gevent
from locust import FastHttpUser, constant, task
from locust.env import Environment

from loadtest.base import BaseUser

USERS = 20
WARM_UP_SECONDS = 1


class Bare(FastHttpUser):
    wait_time = constant(0)

    @task
    def root(self) -> None:
        self.client.get("/")


class Ours(BaseUser):
    wait_time = constant(0)

    @task
    def root(self) -> None:
        self.call("GET", "/", lambda answer: answer["pid"] > 0)


def main(target: str, kind: str, seconds: float) -> dict[str, Any]:
    user = {"bare": Bare, "ours": Ours}[kind]
    user.host = target
    environment = Environment(user_classes=[user])
    runner = environment.create_local_runner()
    runner.start(USERS, spawn_rate=USERS)
    gevent.sleep(WARM_UP_SECONDS)
    total = environment.stats.total
    begun, before = time.process_time(), total.num_requests
    gevent.sleep(seconds)
    outcome = {
        "requests": total.num_requests - before,
        "failures": total.num_failures,
        "cpu_seconds": time.process_time() - begun,
    }
    runner.quit()
    return outcome


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], float(sys.argv[3]))), flush=True)
