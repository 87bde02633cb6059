"""What happens to a stack in its life, as functions that make it happen while load runs.

Each is used three times: by the proofs, by make soak, and by the table of docs/zero-loss.md, which shows the same event
with the one setting reverted that makes it harmless.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from proofs.open_loop import OpenLoop
from proofs.stack import Stack, until

RATE = 250  # requests in a second; a fraction of what two cores can do, so that a slow minute is no overload


def docker(*arguments: str) -> str:
    """What the command writes to its standard output."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def reload(stack: Stack, load: OpenLoop, times: int = 10) -> None:
    for _ in range(times):
        done = stack.make("reload")
        assert done.returncode == 0, done.stdout + done.stderr


def hang_up(stack: Stack, load: OpenLoop, times: int = 5) -> None:
    """A reload as Gunicorn itself has it: the only one that workers other than this stack's know."""
    for _ in range(times):
        stack.compose("kill", "--signal", "HUP", "app")
        load.run_for(4)


def stall(stack: Stack, load: OpenLoop, times: int = 5) -> None:
    """One worker stands still for a second and a half, so many times."""
    for _ in range(times):
        with stack.client() as client:
            client.get("/work/block?ms=1500")
        load.run_for(0.5)


def nginx_reload(stack: Stack, load: OpenLoop, times: int = 10) -> None:
    for _ in range(times):
        stack.compose("exec", "-T", "nginx", "nginx", "-c", "/run/nginx/nginx.conf", "-s", "reload")
        load.run_for(0.5)


def pass_time(stack: Stack, load: OpenLoop, seconds: float = 15) -> None:
    load.run_for(seconds)


def recycle(stack: Stack, load: OpenLoop, seconds: float = 15) -> None:
    """Workers come and go by themselves: MAX_REQUESTS is low. Lasts until all are gone that were there as it began."""

    def look() -> set[int]:
        seen.update(found := {worker["pid"] for worker in stack.workers()})
        return found

    seen: set[int] = set()
    first = look()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        look()
        load.run_for(0.5)
    until("the end of the workers that were there at first", lambda: not first & look())
    # No claim on how many came: on a slow machine a worker serves on for long until its replacement is ready.
    assert len(seen - first) >= int(stack.rows["WORKERS"]), f"only {len(seen - first)} new workers were seen"


def replace_a_replica(stack: Stack, load: OpenLoop, times: int = 3) -> None:
    """One of two is stopped and removed, and another started, so many times."""
    for _ in range(times):
        victim = stack.containers("app")[0]
        docker("stop", victim)
        docker("rm", victim)
        load.run_for(2)
        stack.scale(2)
        load.run_for(2)


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
        stack.scale(count)
        load.run_for(3)


def stop_a_replica(stack: Stack, load: OpenLoop) -> None:
    docker("stop", stack.containers("app")[-1])
    load.run_for(2)


# Its queue is full, so that packets which ask to connect are dropped, as by a machine that has just gone.
MUTE = """
import socket, time
held = []
for port in range(8000, 8000 + WORKERS):
    listener = socket.socket()
    listener.bind(("0.0.0.0", port))
    listener.listen(0)
    held += [listener, *(socket.socket() for _ in range(4))]
    for waiting in held[-4:]:
        waiting.setblocking(False)
        waiting.connect_ex(("127.0.0.1", port))
print("ready", flush=True)
time.sleep(3600)
"""


@contextmanager
def mute_replicas(stack: Stack, count: int) -> Iterator[list[str]]:
    """Containers in the app's network that accept nothing, under no name. They end with the block."""
    image = stack.inspect(stack.containers("app")[0])["Config"]["Image"]
    program = MUTE.replace("WORKERS", stack.rows["WORKERS"])
    mute: list[str] = []
    try:
        for _ in range(count):
            network = f"{stack.project}_app"
            mute.append(docker("run", "--detach", "--network", network, image, "python", "-c", program))
            until("a full queue", lambda: docker("logs", mute[-1]) == "ready")
        yield mute
    finally:
        docker("rm", "--force", *mute)


def enter(stack: Stack, container: str, name: str) -> None:
    """From now on Docker's DNS has the container's address for `name` in the app's network, and for no other."""
    docker("network", "disconnect", f"{stack.project}_app", container)
    docker("network", "connect", "--alias", name, f"{stack.project}_app", container)


def leave(stack: Stack, container: str) -> None:
    docker("network", "disconnect", f"{stack.project}_app", container)


def kill_a_replica(stack: Stack, load: OpenLoop) -> float:
    """The time after which nothing more may be lost: its processes are gone, and their connections with them."""
    victim = stack.containers("app")[-1]
    docker("kill", victim)
    docker("wait", victim)
    killed = load.now
    load.run_for(3)
    return killed


def kill_a_worker(stack: Stack, load: OpenLoop) -> float:
    """The time after which nothing more may be lost: the process is gone, and its connections with it.

    Until then, which takes some milliseconds after the signal, the kernel takes bytes on them that nobody will read.
    """
    assert stack.rows["MAX_REQUESTS"] == "0", "the worker that is chosen here may have left before the signal"
    container = stack.containers("app")[0] if stack.way == "compose" else ""
    pid = stack.workers(container)[0]["pid"]
    stack.kill(pid, container=container)
    until("its end", lambda: pid not in [worker["pid"] for worker in stack.workers(container)])
    killed = load.now
    until("a new worker in its place", lambda: [w["state"] for w in stack.workers(container)] == ["ready"] * 2)
    load.run_for(1)
    return killed


def pause_a_replica(stack: Stack, load: OpenLoop) -> tuple[float, float]:
    """When it stood still, and when it went on."""
    frozen = stack.containers("app")[-1]
    begun = load.now
    docker("pause", frozen)
    load.run_for(2 * int(stack.rows["PROXY_READ_TIMEOUT_SECONDS"]))
    docker("unpause", frozen)
    return begun, load.now


def slow_requests(stack: Stack, load: OpenLoop, count: int = 1, kind: str = "block") -> list[str]:
    """GETs that no worker answers in time, at once: each blocks the one that takes it (or not: "io"). Their ids."""
    milliseconds = 1000 * int(stack.rows["PROXY_READ_TIMEOUT_SECONDS"]) + 1000
    ids: list[str] = []

    def ask() -> None:
        with stack.client() as client:
            ids.append(client.get(f"/work/{kind}?ms={milliseconds}").headers["x-request-id"])

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.run_for(3)
    return ids
