"""What every load test has in common, whatever its requests: how one is sent and judged, and at what pace."""

import importlib
import json
import random
import time
from collections.abc import Callable
from typing import Any

import gevent
from locust import FastHttpUser, between

from loadtest import tls

# Longer than PROXY_READ_TIMEOUT_SECONDS, or the user gives up first and the proxy's 504 is never seen.
ANSWER_TIMEOUT_SECONDS = 30.0

# A constant-rate user sends one request in this time, so that R requests per second take 2 R users. All but a few
# of them wait, which is the point: only answers slower than this hold back arrivals.
PACING_SECONDS = 2


class ModuleError(Exception):
    """One line: what is wrong with LOADTEST_MODULE, and what it must be."""


class BaseUser(FastHttpUser):
    """A visitor of the app. A class `Visitor` derives from it, and each of its methods with @task sends requests."""

    abstract = True
    network_timeout = connection_timeout = ANSWER_TIMEOUT_SECONDS
    # Default: True, and no certificate is verified.
    insecure = False
    ssl_context_factory = staticmethod(tls.context)

    def call(
        self,
        method: str,
        path: str,
        right: Callable[[Any], bool] | None = None,
        *,
        name: str = "",
        status: int = 200,
        **request: Any,
    ) -> bool:
        """Send one request; anything but `status`, and JSON that `right` accepts where it is given, is a failure.

        `name` is the row in the statistics: without it each order key would be a row of its own. `request` may have
        `headers`, and `json` or `data`.
        """
        with self.client.request(method, path, name=name or path, catch_response=True, **request) as response:
            if response.status_code == 0:
                return False  # no answer: Locust counts the connection's own error
            if response.status_code != status:
                response.failure(f"status {response.status_code}, expected {status}")
                return False
            try:
                answered = right is None or right(json.loads(response.content))
            except (ValueError, LookupError, TypeError, AttributeError):
                answered = False
            if not answered:
                response.failure("the content is not what was asked for")
            return answered


class ClosedLoop:
    """Sends the next request about 0.1 s after the last answer: as many in flight as there are users, at most."""

    wait_time = between(0.05, 0.15)


class ConstantRate:
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


def visitor(module: str) -> type[BaseUser]:
    """The class `Visitor` of the module that LOADTEST_MODULE names. Raises ModuleError where there is none."""
    try:
        found = importlib.import_module(module).Visitor
    except Exception as error:
        raise ModuleError(
            f"LOADTEST_MODULE={module}: {type(error).__name__}: {error}; it must be a module with a class Visitor, "
            "such as loadtest.demo (`make users` writes loadtest/users.py for your app)"
        ) from error
    if not (isinstance(found, type) and issubclass(found, BaseUser) and found.tasks):
        raise ModuleError(
            f"LOADTEST_MODULE={module}: its Visitor is {found!r}; it must derive from loadtest.base.BaseUser and have "
            "a method with @task"
        )
    return found


def users(module: str) -> tuple[type[BaseUser], type[BaseUser]]:
    """The visitors of `module` in a closed loop, and at a constant rate. Raises ModuleError as visitor() does."""
    found = visitor(module)
    return (
        type("ClosedLoopUser", (ClosedLoop, found), {"__doc__": ClosedLoop.__doc__}),
        type("ConstantRateUser", (ConstantRate, found), {"__doc__": ConstantRate.__doc__}),
    )
