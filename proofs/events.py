"""What happens to a stack in its life, as functions that make it happen while load runs.

Each is used three times: by the proofs, by make soak, and by the table of docs/zero-loss.md, which shows the same event
with the one setting reverted that makes it harmless.
"""

from __future__ import annotations

import subprocess
import time

from proofs.open_loop import OpenLoop
from proofs.stack import Stack, until

RATE = 200  # requests in a second; a fraction of what two cores can do, so that a slow minute is no overload


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, capture_output=True)


def reload(stack: Stack, load: OpenLoop, times: int = 10) -> None:
    for _ in range(times):
        done = stack.make("reload")
        assert done.returncode == 0, done.stdout + done.stderr


def hang_up(stack: Stack, load: OpenLoop, times: int = 10) -> None:
    """A reload as Gunicorn itself has it, for workers that are not this stack's."""
    for _ in range(times):
        if stack.way == "compose":
            stack.compose("kill", "--signal", "HUP", "app")
        else:
            master = subprocess.check_output(["pgrep", "--full", "--oldest", f"gunicorn.*{stack.project}"], text=True)
            stack.kill(int(master), "HUP")
        load.run_for(3)


def nginx_reload(stack: Stack, load: OpenLoop, times: int = 10) -> None:
    for _ in range(times):
        stack.compose("exec", "-T", "nginx", "nginx", "-c", "/run/nginx/nginx.conf", "-s", "reload")
        load.run_for(0.5)


def recycle(stack: Stack, load: OpenLoop, seconds: float = 15) -> None:
    """Workers come and go by themselves: MAX_REQUESTS is low."""
    seen = set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen |= {worker["pid"] for worker in stack.workers()}
        load.run_for(0.5)
    assert len(seen) >= seconds / 3, f"only {len(seen)} workers came and went in {seconds:g} s"


def deploy(stack: Stack, load: OpenLoop, times: int = 3) -> None:
    for _ in range(times):
        before = set(stack.containers("app"))
        done = stack.make("deploy")
        assert done.returncode == 0, done.stdout + done.stderr
        after = set(stack.containers("app"))
        assert len(after) == len(before)
        assert not after & before


def scale(stack: Stack, load: OpenLoop) -> None:
    for count in (3, 1):
        stack.compose("up", "--detach", "--wait", "--no-recreate", "--scale", f"app={count}", "app")
        load.run_for(3)


def stop_a_replica(stack: Stack, load: OpenLoop) -> None:
    docker("stop", stack.containers("app")[-1])
    load.run_for(2)


def kill_a_replica(stack: Stack, load: OpenLoop) -> float:
    """The time after which nothing more may be lost."""
    docker("kill", stack.containers("app")[-1])
    killed = load.now
    load.run_for(3)
    return killed


def kill_a_worker(stack: Stack, load: OpenLoop) -> float:
    """The time after which nothing more may be lost."""
    pid = stack.workers()[0]["pid"]
    stack.kill(pid)
    killed = load.now
    until(
        "a new worker in its place", lambda: [w["state"] for w in stack.workers() if w["pid"] != pid] == ["ready"] * 2
    )
    load.run_for(1)
    return killed


def pause_a_replica(stack: Stack, load: OpenLoop) -> tuple[float, float]:
    """When it stood still, and when it went on."""
    frozen = stack.containers("app")[-1]
    docker("pause", frozen)
    begun = load.now
    load.run_for(2 * int(stack.rows["PROXY_READ_TIMEOUT_SECONDS"]))
    docker("unpause", frozen)
    return begun, load.now


def one_slow_request(stack: Stack, load: OpenLoop) -> None:
    """A GET that no worker answers in time: it blocks the one that takes it."""
    with stack.client() as client:
        answer = client.get(f"/work/block?ms={1000 * int(stack.rows['PROXY_READ_TIMEOUT_SECONDS']) + 1000}")
    assert answer.status_code == 504
    load.run_for(3)
