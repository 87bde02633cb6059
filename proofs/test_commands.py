"""What the commands of make do to a stack, to what is not theirs, and what they leave behind."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from proofs.conftest import require_engine, started
from proofs.stack import Stack, until
from stack import deploy
from stack.console import Failure


def test_a_foreign_process_with_the_number_in_a_file_that_was_left_over_is_not_signalled() -> None:
    """As after a power cut: each file that holds a pid has that of a process which is none of the stack's."""
    stack = Stack("native", "stale")
    with subprocess.Popen(["sleep", "600"]) as foreign:
        try:
            (stack.folder / "nginx").mkdir(parents=True)
            for name in ("supervisor.pid", "supervisor.lock", "nginx/nginx.pid"):
                (stack.folder / name).write_text(f"{foreign.pid}\n")
            status = {"master": foreign.pid, "generation": 1, "attempt": 1, "state": "ready", "workers": []}
            (stack.folder / f"app-{stack.app_port}.status.json").write_text(json.dumps(status))
            for command in ("down", "ps", "reload"):
                done = stack.make(command)
                assert "no native stack is running" in done.stdout + done.stderr, f"make {command}: {done}"
                assert foreign.poll() is None, f"make {command} signalled a process that is not the stack's"
            stack.up()
            with stack.client() as client:
                assert client.get("/").status_code == 200
            for command in ("reload", "down"):
                done = stack.make(command, CLIENT_KEEPALIVE_SECONDS="66")  # nginx reloads what has changed
                assert done.returncode == 0, f"make {command}: {done}"
            assert foreign.poll() is None, "a stack that ran signalled a process that is not its own"
        finally:
            stack.down()
            foreign.kill()


def test_a_second_start_beside_a_stack_that_runs_leaves_it_alone() -> None:
    stack = Stack("native", "twice")
    try:
        stack.up()
        again = stack.make("up")
        assert (again.returncode, "is running already" in again.stdout) == (0, True), again
        with stack.client() as client:
            assert client.get("/").status_code == 200
        down = stack.make("down")
        assert (down.returncode, down.stdout) == (0, ""), down
        assert "no native stack is running" in stack.make("down").stdout
    finally:
        stack.down()


def test_a_request_is_traced_through_all_tiers(stack: Stack) -> None:
    with stack.client() as client:
        given = client.get("/work/io?ms=1100").headers["x-request-id"]  # slow enough for a line of the app's
        client.get("/")
    traced = until(
        "both lines", lambda: done if (done := stack.make("trace", ID=given)).stdout.count("\n") == 2 else ""
    )
    assert (traced.returncode, traced.stderr) == (0, "")
    (app, slow), (nginx, request) = (line.split(maxsplit=1) for line in traced.stdout.splitlines())
    assert (app, nginx, json.loads(request)["uri"]) == ("app", "nginx", "/work/io?ms=1100")
    assert json.loads(slow)["reason"] in ("slow", "deadline"), "the latter on a machine that is very slow"
    for wrong, said in ((f"{given}0", "no line of the logs has"), ("a b", "ID=a b: must be a request id")):
        done = stack.make("trace", ID=wrong)
        assert (done.returncode, said in done.stderr) == (1, True), done


def test_a_check_leaves_nothing_behind() -> None:
    require_engine()
    stack = Stack("compose", "checked")

    def made() -> list[str]:
        lists = (["ps", "--all"], ["network", "ls"], ["volume", "ls"])
        filters = ["--quiet", "--filter", f"name={stack.project}"]
        return [subprocess.check_output(["docker", *each, *filters], text=True) for each in lists]

    try:
        done = stack.make("check")
        assert "ok      nginx -t in the image" in done.stdout, done
        assert made() == ["", "", ""], "containers, networks or volumes are left of make check"
    finally:
        stack.down()


@pytest.fixture
def changing(way: str) -> Iterator[Stack]:
    """A stack of a copy of the tree, whose files a test may change."""
    if way == "compose":
        require_engine()
    yield from started(Stack(way, "changing", patches=[("app/demo/main.py", 'title="Demo"', 'title="Demo"')]))


def versions(stack: Stack) -> tuple[str, str]:
    """What the app calls itself, and what nginx says of its health."""
    with stack.client() as client:
        return client.get("/openapi.json").json()["info"]["title"], client.get("/nginx-health").json()["nginx"]


def test_a_reload_brings_what_it_says_and_says_what_brings_the_rest(changing: Stack, way: str) -> None:
    for name, before, after in (
        ("app/demo/main.py", 'title="Demo"', 'title="New"'),
        ("nginx/templates/answers.conf.template", '"nginx":"ok"', '"nginx":"new"'),
    ):
        file = changing.root / name
        file.write_text(file.read_text().replace(before, after))
    done = changing.make("reload")
    assert done.returncode == 0, done
    if way == "compose":
        assert "make deploy brings new ones" in done.stdout, f"the code is the old one, and make reload says: {done}"
        until("nginx has read its templates", lambda: versions(changing) == ("Demo", "new"))
        deployed = changing.make("deploy")
        assert deployed.returncode == 0, deployed
    until("both are new", lambda: versions(changing) == ("New", "new"))


def test_rows_that_a_reload_cannot_bring_are_refused() -> None:
    """nginx would ask workers that do not exist."""
    stack = Stack("native", "rows")
    try:
        stack.up()
        done = stack.make("reload", WORKERS="3")
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done
        for words in ("WORKERS=3", "started with 2", "make down"):
            assert words in done.stderr
    finally:
        stack.down()


def test_a_deploy_that_finds_other_replicas_than_it_counted_says_so_and_removes_its_own(
    compose_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when somebody removes some meanwhile: Compose starts as many more."""
    for name, value in compose_stack.environ.items():
        monkeypatch.setenv(name, value)
    before = compose_stack.containers("app")
    with pytest.raises(Failure, match=r"^2 new replicas instead of 1.*docker compose ps"):
        deploy._start_one_more(len(before) + 1)
    assert compose_stack.compose("ps", "--all", "--quiet", "app").split() == before
