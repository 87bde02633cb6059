"""nginx in its container, alone: that it starts on a read-only root, and what a reload does to clients."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest

from proofs.conftest import require_engine
from proofs.stack import DEADLINE, Stack, until

pytestmark = pytest.mark.xdist_group("compose")


@pytest.fixture(scope="module")
def contained() -> Iterator[Stack]:
    """nginx alone in its container, without an app; it may be that it did not start."""
    require_engine()
    # Each of these is longer than a few commands of the engine take.
    rows = {"CLIENT_KEEPALIVE_MIN_SECONDS": "30", "NGINX_SHUTDOWN_SECONDS": "30", "STOP_GRACE_SECONDS": "40"}
    stack = Stack("compose", "contained", **rows)
    try:
        stack.compose("up", "--detach", "--no-deps", "nginx")
        yield stack
    finally:
        stack.down()


def answering(stack: Stack) -> str:
    """The container's id, once nginx answers. Fails with the end of its log where it does not."""
    (container,) = stack.compose("ps", "--all", "--quiet", "nginx").split()
    end = time.monotonic() + 20
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{stack.url}/nginx-health", timeout=5).status_code == 200:
                return container
        log = subprocess.run(["docker", "logs", container], capture_output=True, text=True).stderr
        errors = [line.partition("[emerg] ")[2] for line in log.splitlines() if "[emerg]" in line]
        assert not errors, f"nginx does not start: {errors[-1].partition(': ')[2]}"
        assert time.monotonic() < end, f"nginx does not answer: {log[-300:]}"
        time.sleep(0.1)


def test_nginx_starts_on_a_read_only_root_and_takes_large_bodies(contained: Stack) -> None:
    answering(contained)
    answer = httpx.post(f"{contained.url}/upload", content=b"x" * 60_000, timeout=DEADLINE)
    assert answer.status_code == 503, f"without an app a body that goes to disk got {answer.status_code}"


def test_a_reload_leaves_idle_client_connections_open_for_what_is_on_its_way(contained: Stack) -> None:
    container = answering(contained)
    with socket.create_connection(("127.0.0.1", contained.http_port), timeout=30) as connection:
        connection.sendall(b"GET /nginx-health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        before = {pid for pid, title in titles(container).items() if "worker process" in title}
        contained.compose("exec", "-T", "nginx", "nginx", "-c", "/run/nginx/nginx.conf", "-s", "reload")

        def old_ones_leave() -> bool:
            now = titles(container)
            return all(leaving(now, pid) for pid in before)

        until("the old workers are leaving", old_ones_leave)
        try:
            connection.sendall(b"GET /nginx-health HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = connection.recv(4096)
        except OSError as error:
            answer = str(error).encode()
    assert answer.startswith(b"HTTP/1.1 200"), f"on a connection from before a reload a request got {answer!r}"


def titles(container: str) -> dict[str, str]:
    """What the container's processes call themselves, by pid."""
    lines = subprocess.check_output(["docker", "top", container, "-o", "pid,args"], text=True).splitlines()[1:]
    return dict(line.split(maxsplit=1) for line in lines)


def leaving(found: dict[str, str], pid: str) -> bool:
    return pid not in found or "shutting down" in found[pid]
