"""Requests that queue for servers, simulated (SimPy): for more replicas than one machine can run.

A balancer gives each request, arriving at random, to the server that has the fewest, as nginx's least_conn does. A
server does one at a time, in their order, as a worker whose work needs its event loop. The balancer itself takes
`pass_ms` of one CPU for each request.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from typing import Any

import simpy


def waits(
    servers: int, load: float, service_ms: Sequence[float], requests: int, pass_ms: float = 0.0, seed: int = 1
) -> list[float]:
    """Milliseconds from arrival to answer of each request.

    `load` is the share of what all servers together can do, 0 to 1. A request's time is drawn from `service_ms`.
    """
    source, environment = random.Random(seed), simpy.Environment()
    stations = [simpy.Resource(environment) for _ in range(servers)]
    balancer = simpy.Resource(environment)
    waiting = [0] * servers
    mean = sum(service_ms) / len(service_ms)
    taken: list[float] = []

    def request() -> Generator[Any, Any, None]:
        begun = environment.now
        if pass_ms:
            with balancer.request() as turn:
                yield turn
                yield environment.timeout(pass_ms)
        least = min(waiting)
        chosen = source.choice([number for number, count in enumerate(waiting) if count == least])
        waiting[chosen] += 1
        with stations[chosen].request() as turn:
            yield turn
            yield environment.timeout(source.choice(service_ms))
        waiting[chosen] -= 1
        taken.append(environment.now - begun)

    def arrivals() -> Generator[Any, Any, None]:
        for _ in range(requests):
            yield environment.timeout(source.expovariate(servers * load / mean))
            environment.process(request())

    environment.process(arrivals())
    environment.run()
    return taken
