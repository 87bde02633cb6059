"""Locust's master and workers as a load test needs them: sooner reports, and a warm-up that is forgotten."""

from typing import Any

from locust import events, runners, stats
from locust.env import Environment
from locust.rpc import Message
from locust.runners import WorkerRunner

WARMUP_OVER = "warm-up over"

# 3 s by default: the figures of the last seconds would come in three-second steps.
runners.WORKER_REPORT_INTERVAL = 1

# 60 s by default: that long a killed run goes on sending load, and a restarted master lacks its workers.
runners.MASTER_HEARTBEAT_TIMEOUT = 10

# p50 and p95 by default: the charts would lack the p99 that the objectives name.
stats.PERCENTILES_TO_CHART = [0.5, 0.95, 0.99]


@events.init.add_listener  # type: ignore[untyped-decorator]
def listen_for_the_end_of_the_warmup(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.register_message(WARMUP_OVER, forget_the_warmup)


def forget_the_warmup(environment: Environment, msg: Message) -> None:
    # The worker's own figures, not only the master's: what it has not reported yet would count as measured.
    environment.stats.reset_all()
    assert environment.runner is not None
    environment.runner.send_message(WARMUP_OVER)
