"""What the commands of make do to a stack, to what is not theirs, and what they leave behind."""

from __future__ import annotations

import json
import subprocess

from proofs.conftest import require_engine
from proofs.stack import Stack


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
