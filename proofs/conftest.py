"""The two ways of running, and what a missing engine or browser means."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from proofs.stack import ROOT, Stack


def engine_answers() -> bool:
    try:
        return subprocess.run(["docker", "version"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def lacks(reason: str, variable: str) -> NoReturn:
    """Skips the test, with the reason; fails it when `variable` is 1, as REQUIRE_DOCKER=1."""
    if os.environ.get(variable) == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def require_engine() -> None:
    """Skips the test where no Docker engine answers; fails it when REQUIRE_DOCKER=1."""
    if not engine_answers():
        lacks("no Docker engine answers (docker version)", "REQUIRE_DOCKER")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's Chromium. Skips where there is none; fails when REQUIRE_BROWSER=1."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    lacks(f"no browser is installed (looked for {', '.join(names)})", "REQUIRE_BROWSER")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of one way share its stack, so one worker process of pytest-xdist runs them."""
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        way = getattr(item, "callspec", None) and item.callspec.params.get("way")  # type: ignore[attr-defined]
        if not way and "compose_stack" in getattr(item, "fixturenames", ()):
            way = "compose"
        if not way and "native_stack" in getattr(item, "fixturenames", ()):
            way = "native"
        if way:
            item.add_marker(pytest.mark.xdist_group(f"{way}_stack"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Nothing else of the suite runs beside a proof with the mark `alone`, in whichever process of pytest-xdist.

    Two locks on what is there anyway: who waits to be alone holds the door, so that no other goes in before.
    """
    if "PYTEST_CURRENT_TEST" in os.environ:  # a proof runs pytest itself, and is in there already
        return (yield)
    with locked(ROOT / "tests") as door, locked(ROOT / "proofs", shared=not item.get_closest_marker("alone")):
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)


@contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture(scope="session")
def native_stack() -> Iterator[Stack]:
    yield from started(Stack("native", "native", ENABLE_LAB="1", LOCUST="on"))


@pytest.fixture(scope="session")
def compose_stack() -> Iterator[Stack]:
    require_engine()
    yield from started(Stack("compose", "compose", ENABLE_LAB="1", LOCUST="on"))


def started(stack: Stack, prepare: Callable[[Stack], None] = lambda stack: None) -> Iterator[Stack]:
    """The stack, prepared and up; and down after the tests, also where they or the start failed."""
    try:
        prepare(stack)
        stack.up()
        yield stack
    finally:
        stack.down()


@contextmanager
def made_once(make: Callable[..., Stack]) -> Iterator[Callable[..., Stack]]:
    """A function that gives the stack of `make(way, …)`, up: made at the first call, down at the end."""
    with ExitStack() as opened:

        @cache
        def get(way: str, *more: str) -> Stack:
            if way == "compose":
                require_engine()
            return opened.enter_context(contextmanager(started)(make(way, *more)))

        yield get


@pytest.fixture(params=["native", "compose"])
def way(request: pytest.FixtureRequest) -> str:
    param: str = request.param
    return param


@pytest.fixture
def stack(way: str, request: pytest.FixtureRequest) -> Stack:
    """The stack of one way of running, shared by the tests of that way: leave it as you found it."""
    found: Stack = request.getfixturevalue(f"{way}_stack")
    return found
