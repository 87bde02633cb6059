"""APP_MIGRATE: once for a new version, with its code, before it gets a request; where it fails, the old one serves."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from subprocess import CompletedProcess
from typing import Any

import pytest

from proofs.conftest import require_engine, started
from proofs.stack import Stack, until

# What it says is in the image, and so of the version whose code is built.
VERSION = "app/version.txt"
ONE_LINE = "cat app/version.txt >> $DATA_DIR/migrated"
FAILS = "echo half of it is done; exit 3"
HANGS = "sleep 20"
NATIVE = pytest.mark.xdist_group("native")
COMPOSE = pytest.mark.xdist_group("compose")
BOTH = pytest.mark.parametrize("way", [pytest.param("native", marks=NATIVE), pytest.param("compose", marks=COMPOSE)])
BAD = {
    "fails": ({"APP_MIGRATE": FAILS}, f"migration failed: APP_MIGRATE={FAILS}: exit status 3"),
    "hangs": (
        {"APP_MIGRATE": HANGS, "APP_MIGRATE_SECONDS": "1"},
        f"migration failed: APP_MIGRATE={HANGS}: not done after APP_MIGRATE_SECONDS=1, so it was killed",
    ),
}


@pytest.fixture(scope="module")
def native() -> Iterator[Stack]:
    yield from started(Stack("native", "migrate", files={VERSION: "1\n"}, APP_MIGRATE=ONE_LINE))


@pytest.fixture(scope="module")
def compose() -> Iterator[Stack]:
    require_engine()
    yield from started(Stack("compose", "migrate", files={VERSION: "1\n"}, APP_MIGRATE=ONE_LINE))


@pytest.fixture
def stack(way: str, request: pytest.FixtureRequest) -> Stack:
    found: Stack = request.getfixturevalue(way)
    return found


def migrated(stack: Stack) -> list[str]:
    """The versions whose migration ran, one for each time."""
    if stack.way == "compose":
        return stack.compose("exec", "-T", "app", "cat", "/data/migrated").split()
    return (stack.folder / "data/migrated").read_text().split()


def serving(stack: Stack) -> Any:
    """What tells the workers that serve now from others."""
    return stack.containers("app") if stack.way == "compose" else sorted(w["pid"] for w in stack.workers())


def assert_the_old_version_serves_on(stack: Stack, before: Any, done: CompletedProcess[str], said: str) -> None:
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert said in output.splitlines(), output
    assert "the database was not migrated (its log is above)" in done.stderr.splitlines()[-1], output
    assert "Traceback" not in output
    assert serving(stack) == before
    with stack.client() as client:
        assert client.get("/").status_code == 200


@BOTH
@pytest.mark.parametrize("bad", BAD)
def test_a_migration_that_is_no_good_leaves_the_old_version_serving(stack: Stack, bad: str) -> None:
    rows, said = BAD[bad]
    before = serving(stack)
    assert_the_old_version_serves_on(stack, before, stack.make("deploy", **rows), said)


@COMPOSE
@pytest.mark.parametrize("bad", BAD)
def test_make_up_of_a_stack_that_runs_replaces_nothing_when_the_migration_is_no_good(compose: Stack, bad: str) -> None:
    rows, said = BAD[bad]
    before = serving(compose)
    assert_the_old_version_serves_on(compose, before, compose.make("up", **rows, LOG_LEVEL="debug"), said)


@BOTH
def test_a_migration_runs_once_at_the_start_and_once_for_a_new_version_with_its_code(stack: Stack) -> None:
    assert migrated(stack) == ["1"]
    (stack.root / VERSION).write_text("2\n")
    done = stack.make("deploy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert migrated(stack) == ["1", "2"]


def in_data(stack: Stack, command: str) -> bool:
    """Whether this command of the shell succeeds in the folder that stays."""
    shell = ["sh", "-c", f"cd ${{DATA_DIR:-data}} && {command}"]
    if stack.way == "compose":
        return subprocess.run(["docker", "exec", stack.containers("app")[0], *shell]).returncode == 0
    return subprocess.run(shell, cwd=stack.folder).returncode == 0


@BOTH
def test_two_deploys_at_once_migrate_once(stack: Stack) -> None:
    before = len(migrated(stack))
    done: list[CompletedProcess[str]] = []
    waits = f"cd $DATA_DIR; touch begun; until [ -e ended ]; do sleep 0.1; done; rm begun ended; cd -; {ONE_LINE}"
    first = threading.Thread(target=lambda: done.append(stack.make("deploy", APP_MIGRATE=waits)))
    first.start()
    try:
        until("the first one's migration", lambda: in_data(stack, "test -e begun"))
        second = stack.make("deploy")
    finally:
        in_data(stack, "touch ended")
        first.join()
    assert (second.returncode, "another deploy" in second.stderr) == (1, True), second.stdout + second.stderr
    assert done[0].returncode == 0, done[0].stdout + done[0].stderr
    assert len(migrated(stack)) == before + 1


@BOTH
@pytest.mark.parametrize("bad", BAD)
def test_a_first_start_ends_with_a_migration_that_is_no_good(way: str, bad: str) -> None:
    if way == "compose":
        require_engine()
    rows, said = BAD[bad]
    stack = Stack(way, f"migrate-{bad}", **rows)
    try:
        done = stack.make("up")
        assert done.returncode == 1, done.stdout + done.stderr
        assert said in (done.stdout + done.stderr).splitlines()
        if way == "compose":
            assert stack.compose("ps", "--all", "--quiet") == "", "something was left running"
        else:
            assert "no native stack is running" in stack.make("down").stdout
    finally:
        stack.down()


@pytest.fixture
def plain() -> Iterator[Stack]:
    """A stack that is started by `docker compose up` itself."""
    require_engine()
    stack = Stack("compose", "migrate-plain", files={VERSION: "1\n"})
    try:
        yield stack
    finally:
        stack.down()


@COMPOSE
def test_docker_compose_up_migrates_before_the_app_starts(plain: Stack) -> None:
    plain.environ["APP_MIGRATE"] = FAILS
    plain.compose("create", "migrate")
    (migrate,) = plain.compose("ps", "--all", "--quiet", "migrate").split()
    found = plain.inspect(migrate)["HostConfig"]
    assert found["RestartPolicy"]["Name"] == "no", "a migration that has failed is run again and again"
    assert found["Memory"] > 0, "a migration may use all the memory of the machine"

    plain.compose("up", "--detach", "app", check=False)
    (app,) = plain.compose("ps", "--all", "--quiet", "app").split()
    assert plain.inspect(app)["State"]["Status"] == "created", "the app was started though its migration had failed"
    (migrate,) = plain.compose("ps", "--all", "--quiet", "migrate").split()
    assert plain.inspect(migrate)["State"]["ExitCode"] == 1

    plain.environ["APP_MIGRATE"] = ONE_LINE
    plain.compose("up", "--detach", "--wait", "app")
    assert migrated(plain) == ["1"]


@COMPOSE
def test_without_a_migration_there_is_no_container_for_it(plain: Stack) -> None:
    plain.environ["APP_MIGRATE"] = ""
    plain.compose("up", "--detach", "app")
    assert plain.compose("ps", "--all", "--quiet", "migrate") == ""
