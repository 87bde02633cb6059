"""A stack of a test's own: its project name, its ports, its small time budget. Started as a person would start it."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
DEADLINE = 60  # seconds; generous, because the machine may be slow. Nothing here measures speed.

# What the proofs rely on, whatever you have made of .env; and seconds instead of minutes, in the same order.
SMALL_BUDGET = {
    "APP_MODULE": "app.demo.main:app",
    "APP_ENV_FILE": os.devnull,
    "APP_MIGRATE": "",
    "APP_MIGRATE_SECONDS": "60",
    "WORKERS": "2",
    "WORKER_START": "fork",
    "WORKER_LISTENERS": "per-worker",
    "STICKY_SESSIONS": "none",
    "STATIC_ROOT": "",
    "CACHE_MB": "0",
    "CACHE_PATHS": "",
    "APP_REPLICAS": "1",
    "ENABLE_LAB": "0",
    "IPV6": "true",
    "LOCUST": "off",
    "METRICS": "off",
    "PROMETHEUS_KEEP_DAYS": "15",
    "PROMETHEUS_KEEP_MB": "1024",
    "FORWARDED_HEADERS_FROM": "",
    "PROXY_PROTOCOL_FROM": "",
    "SERVER_NAMES": "~.",
    "TLS": "off",
    "HTTP3": "off",
    "TLS_FOLDER": "./certificates",
    "HSTS_SECONDS": "0",
    "CLIENT_HEADER_TIMEOUT_SECONDS": "2",
    "CLIENT_BODY_TIMEOUT_SECONDS": "2",
    "CLIENT_SEND_TIMEOUT_SECONDS": "2",
    "PROXY_CONNECT_TIMEOUT_MS": "200",
    "PROXY_NEXT_UPSTREAM_TIMEOUT_MS": "1000",
    "PROXY_SEND_TIMEOUT_SECONDS": "4",
    "PROXY_READ_TIMEOUT_SECONDS": "4",
    "UPSTREAM_KEEPALIVE_SECONDS": "1",
    "REQUEST_DEADLINE_SECONDS": "2",
    "ANSWER_STALL_SECONDS": "3",
    "EVENT_STREAM_PING_SECONDS": "1",
    "APP_KEEPALIVE_SECONDS": "5",
    "WEBSOCKET_PING_SECONDS": "1",
    "DRAIN_SECONDS": "2",
    "UVICORN_GRACEFUL_SECONDS": "4",
    "GUNICORN_GRACEFUL_SECONDS": "6",
    "REPLACED_WORKER_SECONDS": "8",
    "NGINX_SHUTDOWN_SECONDS": "6",
    "STOP_GRACE_SECONDS": "10",
    "APP_START_SECONDS": "60",
    "WORKER_TIMEOUT_SECONDS": "10",
    "LONGEST_BLOCK_SECONDS": "2",
    "CLIENT_MAX_BODY_BYTES": "65536",
    "CLIENT_BODY_BUFFER_BYTES": "10000",
    "APP_MAX_REQUESTS_IN_FLIGHT": "1000",
    # All clients of a proof have one address, and it must not be that which is refused.
    "CLIENT_MAX_REQUESTS_IN_FLIGHT": "5000",
    "CLIENT_MAX_UPLOADS_IN_FLIGHT": "1000",
    "NGINX_MAX_REQUESTS_IN_FLIGHT": "6000",
    "NGINX_MAX_UPLOADS_IN_FLIGHT": "1100",
    "NGINX_WORKERS": "2",
    "NGINX_WORKER_CONNECTIONS": "12500",
    "NGINX_MEMORY": "8g",
    "NGINX_TMP": "152m",
    "APP_MEMORY": "2g",
    "APP_TMP": "144m",
    "APP_PIDS": "8192",
    "DATABASE_POOL_SIZE": "0",
    "DATABASE_MAX_CONNECTIONS": "0",
    "MAX_REQUESTS": "100000",
    "MAX_REQUESTS_JITTER": "20000",
    "WORKER_MEMORY_MB": "160",
    "LOG_LEVEL": "info",
    "SLOW_REQUEST_MS": "1000",
    "APP_CPUS": "2.0",
}

# As committed. For stacks whose long answers are proved to outlive the deadline: nothing else is to cut them where a
# machine stands still.
MOVES = {"CLIENT_SEND_TIMEOUT_SECONDS": "10", "ANSWER_STALL_SECONDS": "30", "PROXY_READ_TIMEOUT_SECONDS": "35"}

# For stacks under load, on a machine that may be slow for a while: what is proved there is loss, not time. The drain
# is still shorter than a restart, and idle connections still die while requests come.
PATIENT_BUDGET = {
    "CLIENT_HEADER_TIMEOUT_SECONDS": "10",  # a client without a CPU connects, and then asks
    "DRAIN_SECONDS": "4",  # an nginx without a CPU uses a connection past its time
    "PROXY_NEXT_UPSTREAM_TIMEOUT_MS": "4000",
    "PROXY_READ_TIMEOUT_SECONDS": "14",
    "REQUEST_DEADLINE_SECONDS": "10",
    "ANSWER_STALL_SECONDS": "12",
    "UVICORN_GRACEFUL_SECONDS": "12",
    "GUNICORN_GRACEFUL_SECONDS": "16",
    "REPLACED_WORKER_SECONDS": "20",
    "NGINX_SHUTDOWN_SECONDS": "16",
    "STOP_GRACE_SECONDS": "20",
    "WORKER_TIMEOUT_SECONDS": "40",
    "LONGEST_BLOCK_SECONDS": "15",
}


_given_ports = random.randrange(1_250)


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row, outside the range from which the kernel gives its own.

    Each process of pytest-xdist has a range of its own, and goes through it in a circle: between a look at ports and
    the start of a stack nobody else must be given them.
    """
    global _given_ports
    each = 1_250
    low = 22_000 + each * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8)
    while True:
        if _given_ports + count > each:
            _given_ports = 0
        first = low + _given_ports
        _given_ports += count
        try:
            for port in range(first, first + count):
                with socket.socket() as trial:
                    trial.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def until(what: str, happened: Callable[[], Any], seconds: float = DEADLINE) -> Any:
    """Ask until the answer is true, and return it. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (answer := happened()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
    return answer


def alive(pid: int) -> bool:
    """Whether there is such a process, and not only its exit status."""
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter when it ends between open and read
        return False


Patch = tuple[str, str, str]  # a file of the tree, what stands in it, what stands there instead


def tree_files() -> list[str]:
    """The paths of the tree's files, without what git ignores."""
    listed = subprocess.check_output(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT)
    return [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def patched(patches: Sequence[Patch]) -> dict[str, str]:
    """The text of each file that the patches change, changed."""
    texts: dict[str, str] = {}
    for name, before, after in patches:
        text = texts.get(name) or (ROOT / name).read_text()
        assert before in text, f"{name} has no {before!r} that could be changed"
        texts[name] = text.replace(before, after)
    return texts


def patched_copy(patches: Sequence[Patch]) -> Path:
    """A copy of the tree in a temporary folder, with a setting or more changed. Whoever asks removes it."""
    root = Path(tempfile.mkdtemp(prefix="proof-tree-"))
    for name in tree_files():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)  # for a copy of the copy
    for name, text in patched(patches).items():
        (root / name).write_text(text)
    return root


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that is being written: the last one may not be whole yet."""
    return path.read_text().rpartition("\n")[0].splitlines()


class Stack:
    """`way` is "compose" or "native"; `rows` override those of .env, `patches` and `files` change a copy of it all."""

    def __init__(
        self, way: str, name: str, *, patches: Sequence[Patch] = (), files: Mapping[str, str] | None = None, **rows: str
    ) -> None:
        self.way = way
        self.root = patched_copy(patches) if patches or files else ROOT
        for path, text in (files or {}).items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)
        ports = free_ports(20)
        self.http_port, self.locust_port, self.app_port = ports, ports + 1, ports + 5
        # Before the app's are those of its observer (+ 4) and of nginx's counters (+ 3).
        self.live_port = ports + 18
        self.prometheus_port = ports + 17
        self.https_port = ports + 19
        self.project = f"proof-{name}-{ports}"
        self.rows = (
            SMALL_BUDGET
            | {
                "HTTP_PORT": str(self.http_port),
                "LOCUST_UI_PORT": str(self.locust_port),
                "LOCUST_MASTER_PORT": str(ports + 2),
                "APP_PORT": str(self.app_port),
                "LIVE_PORT": str(self.live_port),
                "PROMETHEUS_PORT": str(self.prometheus_port),
                "HTTPS_PORT": str(self.https_port),
            }
            | rows
        )
        self.environ = {k: v for k, v in os.environ.items() if k not in self.rows} | self.rows
        self.environ |= {"COMPOSE_PROJECT_NAME": self.project, "WAY": way, "PYTHONUNBUFFERED": "1"}
        # Without docker-compose.override.yml: your services are not the proofs'.
        self.environ["COMPOSE_FILE"] = str(self.root / "docker-compose.yml")
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.live_url = f"http://127.0.0.1:{self.live_port}"
        if self.rows["TLS"] != "off":
            self.url = f"https://localhost:{self.https_port}"

    def make(self, command: str, **rows: str) -> subprocess.CompletedProcess[str]:
        """What `make COMMAND` runs, with its output."""
        return subprocess.run(
            [sys.executable, "-m", "stack", command],
            cwd=self.root, env=self.environ | rows, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def add(self, package: str) -> None:
        """Put a package into the group `app` of the stack's copy of the tree, as a person does."""
        uv = shutil.which("uv") or str(ROOT / ".uv/bin/uv")
        command = [uv, "add", "--quiet", "--no-sync", "--group", "app", package]
        subprocess.run(command, cwd=self.root, check=True)

    def run_in_a_copy(self, commands: str) -> subprocess.CompletedProcess[str]:
        """Run a page's commands as its reader does, in a copy of the tree, which is the stack's from then on."""
        if self.root == ROOT:
            self.root = patched_copy([])
            del self.environ["COMPOSE_FILE"]
        path = f"{ROOT}/.uv/bin:{Path(sys.executable).parent}:{self.environ['PATH']}"
        environ = self.environ | {"PATH": path, "UV_NO_SYNC": "1"}
        return subprocess.run(["bash", "-euc", commands], cwd=self.root, env=environ, capture_output=True, text=True)

    def up(self) -> None:
        done = self.make("up")
        said = f"{done.stdout}{done.stderr}".strip()
        assert done.returncode == 0, f"make up failed: {said.splitlines()[-1] if said else ''}\n{said}"

    def down(self) -> None:
        if self.way == "compose":
            self.compose("down", "--volumes", "--rmi", "local", "--remove-orphans")
            mine = f"label=com.docker.compose.project={self.project}"  # a deploy leaves the image it has replaced
            prune = ["docker", "image", "prune", "--force", "--filter", mine]
            # The engine does one at a time, and refuses another stack's meanwhile.
            until("its images' end", lambda: subprocess.run(prune, capture_output=True).returncode == 0)
        else:
            self.make("down")
            shutil.rmtree(self.folder, ignore_errors=True)
        Path(f"/tmp/{self.project}-{os.getuid()}.deploy.lock").unlink(missing_ok=True)
        if self.root != ROOT:
            shutil.rmtree(self.root)

    @property
    def folder(self) -> Path:
        """Where the native way keeps this stack's files."""
        return Path(f"/tmp/{self.project}-{os.getuid()}")

    def status(self, container: str = "") -> dict[str, Any]:
        """The master's account of itself and its workers (of one container, in Compose)."""
        if self.way == "compose":
            container = container or self.containers("app")[0]
            text = subprocess.check_output(["docker", "exec", container, "cat", "/tmp/app-8000.status.json"], text=True)
        else:
            text = (self.folder / f"app-{self.app_port}.status.json").read_text()
        status: dict[str, Any] = json.loads(text)
        return status

    @property
    def master(self) -> int:
        """The pid of the app's master."""
        pid: int = self.status()["master"]
        return pid

    def workers(self, container: str = "") -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = self.status(container)["workers"]
        return workers

    def observer(self, path: str, container: str = "") -> str:
        """What the observer answers (of one container, in Compose)."""
        if self.way == "native":
            return httpx.get(f"http://127.0.0.1:{self.app_port - 1}{path}", timeout=DEADLINE).text
        ask = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:7999{path}').read().decode())"
        container = container or self.containers("app")[0]
        return subprocess.check_output(["docker", "exec", container, "python", "-c", ask], text=True)

    def metrics(self, container: str = "") -> dict[str, float]:
        """The observer's metrics, by series."""
        lines = [line for line in self.observer("/metrics", container).splitlines() if line and line[0] != "#"]
        return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}

    def metric(self, name: str, *labels: str, container: str = "") -> float:
        """The sum of the series of this name that have all these labels, each as `status="200"`."""
        found = self.metrics(container).items()
        return sum(
            value for series, value in found if series.partition("{")[0] == name and all(e in series for e in labels)
        )

    def kill(self, pid: int, signal: str = "KILL", container: str = "") -> None:
        """Signal a process of the app; `pid` as the process itself sees it."""
        if self.way == "compose":
            kill = f"import os, signal; os.kill({pid}, signal.SIG{signal})"
            container = container or self.containers("app")[0]
            subprocess.run(["docker", "exec", container, "python", "-c", kill], check=True, capture_output=True)
        else:
            subprocess.run(["kill", f"-{signal}", str(pid)], check=True)

    def trust(self, *protocols: str) -> ssl.SSLContext:
        """Trusts the stack's own certificate and no other; offers `protocols` in the handshake (ALPN)."""
        context = ssl.create_default_context(cafile=self.root / self.rows["TLS_FOLDER"] / "site.pem")
        context.set_alpn_protocols(list(protocols))
        return context

    def client(self, **options: Any) -> httpx.Client:
        verify = self.trust() if self.url.startswith("https:") else True
        return httpx.Client(base_url=self.url, timeout=DEADLINE, **{"verify": verify} | options)

    def compose(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["docker", "compose", "--project-directory", str(self.root), *arguments],
            cwd=self.root, env=self.environ, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"docker compose {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def scale(self, count: int) -> None:
        """Have so many app containers, all of them healthy."""
        self.compose("up", "--detach", "--no-recreate", "--scale", f"app={count}", "app")
        until(f"{count} healthy replicas", lambda: self.health() == ["healthy"] * count, seconds=4 * DEADLINE)

    def health(self) -> list[str]:
        return [self.inspect(container)["State"]["Health"]["Status"] for container in self.containers("app")]

    def containers(self, service: str) -> list[str]:
        """The ids of this service's running containers."""
        return self.compose("ps", "--quiet", service).split()

    def inspect(self, container: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(subprocess.check_output(["docker", "inspect", container]))
        return found[0]

    def app_log(self) -> list[dict[str, Any]]:
        """The JSON lines that the app has logged so far."""
        if self.way == "compose":
            lines = self.compose("logs", "--no-log-prefix", "app").splitlines()
        else:
            lines = [line.partition("| ")[2] for line in whole_lines(self.folder / "stack.log") if " app " in line]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def access_log(self) -> list[dict[str, Any]]:
        """nginx's access log so far; a line may be a second late."""
        if self.way == "compose":
            lines = self.compose("logs", "--no-log-prefix", "nginx").splitlines()
        else:
            lines = whole_lines(self.folder / "access.log")
        return [json.loads(line) for line in lines if line.startswith("{")]
