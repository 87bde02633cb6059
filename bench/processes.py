"""The processes of an experiment: started from the stack's own configuration, on ports of their own, and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from app.server.settings import read
from stack import native
from stack.console import Failure, answers, wait_for
from stack.render import fill, render
from stack.settings import GIVEN, ROOT, StackSettings, app_variables, rows

# All load comes from one address, and stands for many: there is space for all of it.
SPACE = {
    "CLIENT_MAX_REQUESTS_IN_FLIGHT": "7500",
    "NGINX_MAX_REQUESTS_IN_FLIGHT": "7600",
    "NGINX_WORKER_CONNECTIONS": "16384",
    "NGINX_MEMORY": "100g",
    "APP_MEMORY": "100g",
    "APP_PIDS": "100000",
}


# As in docker-compose.yml.
IMAGE = "nginx:1.30"


class CannotRun(Exception):
    """There is nothing to measure; the text says why."""


def free_ports(count: int) -> range:
    """Ports in a row that nothing listens on, below those that the kernel gives to outgoing connections.

    A connection to the app, tried before it listens, could otherwise take the very port that the app is about to.
    """
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    # Not those of the proofs, which run this too.
    below = min(first_outgoing, 22_000)
    for first in random.sample(range(min(10_000, below // 2), below - count), k=100):
        ports = range(first, first + count)
        if all(_is_free(port) for port in ports):
            return ports
    raise CannotRun(f"no {count} free ports in a row below {below}")


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def environ(**values: str) -> Iterator[None]:
    """These variables of the environment, for a while; the stack's functions read their settings from it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def process(
    command: str,
    environ: dict[str, str],
    log: Path,
    ready: Callable[[], bool],
    start_seconds: float,
    stop_seconds: float,
) -> Iterator[int]:
    """A process until the end of the block; its pid, once `ready` says so.

    `command` must `exec`. In a session of its own: Ctrl-C must reach it by way of the harness, or it would be gone
    while its variant is still measured.
    """
    with open(log, "w") as output:
        child = subprocess.Popen(
            command, shell=True, cwd=ROOT, env=os.environ | environ, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip

    def up() -> bool:
        if child.poll() is not None:
            raise Failure("it ended")
        return ready()

    try:
        try:
            wait_for("its readiness", up, start_seconds)
        except Failure as failure:
            raise CannotRun(f"{command}: {failure}; its log ends: {log.read_text()[-600:]}") from None
        yield child.pid
    finally:
        _stop(child, stop_seconds)


def _stop(child: subprocess.Popen[bytes], seconds: float) -> None:
    """TERM, then KILL to what is left of its session: a worker whose master was killed would serve on."""
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=seconds)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _listens(port: int) -> dict[str, str]:
    """nginx on loopback alone, its counters on another address of it."""
    return {
        "NGINX_LISTEN": f"127.0.0.1:{port}",
        "NGINX_LISTEN_IPV6": f"[::1]:{port}",
        "NGINX_LISTEN_STATUS": f"127.0.0.2:{port}",
    }


def _change(folder: Path, changes: Mapping[str, str]) -> None:
    """Replace each text by another in the configuration. Raises CannotRun where a text is not there."""
    for before, after in changes.items():
        files = [file for file in folder.glob("*.conf") if before in file.read_text()]
        if not files:
            raise CannotRun(f"the configuration of nginx has no {before!r}")
        for file in files:
            file.write_text(file.read_text().replace(before, after))


class Bench:
    """The stack's app and nginx as `make up` runs them natively, under a name, with ports and a folder of their own.

    `changed` are rows of .env with other values.
    """

    def __init__(self, name: str, **changed: str) -> None:
        self._project = f"bench-{os.getpid()}-{name}"
        # The load is plain HTTP, without a header before it, but for those who ask for more. A worker replaced in the
        # middle of a slice costs more than the slice.
        usual = {
            "TLS": "off",
            "HTTP3": "off",
            "PROXY_PROTOCOL_FROM": "",
            "MAX_REQUESTS": "0",
            "MAX_REQUESTS_JITTER": "0",
        }
        table = rows() | usual | changed | SPACE
        ports = free_ports(read(StackSettings, GIVEN | table).workers + 5)  # each worker may have one
        # The two ports before the app's are those of nginx's counters and the observer.
        table |= {"HTTP_PORT": str(ports[0]), "LIVE_PORT": str(ports[2]), "APP_PORT": str(ports[5])}
        with self._named():
            self._settings = read(StackSettings, GIVEN | table)
            self._commands = native.commands(self._settings)
            self.folder = native.folder()
            self.environ = app_variables(table) | native.environment(self._settings, table)
        self.environ |= _listens(ports[0])
        self.app_url = f"http://127.0.0.1:{ports[5]}"
        self.url = f"http://127.0.0.1:{ports[0]}"
        self.http_port = ports[0]
        self.app_port = ports[5]
        self._other_port = ports[1]

    def _process(self, command: str, log: str, ready: Callable[[], bool]) -> contextlib.AbstractContextManager[int]:
        seconds = (self._settings.ready_seconds, self._settings.stop_grace_seconds)
        return process(command, self.environ, self.folder / log, ready, *seconds)

    def _named(self) -> contextlib.AbstractContextManager[None]:
        return environ(COMPOSE_PROJECT_NAME=self._project)

    @contextlib.contextmanager
    def own_folder(self) -> Iterator[None]:
        (self.folder / "data").mkdir(parents=True)
        try:
            yield
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def app(self, arguments: str = "", module: str = "app.server") -> Iterator[int]:
        """Gunicorn with the stack's configuration and master; `arguments` are its own, an application among them.

        `module` starts it. No request has reached the app when it is ready.
        """
        command = self._commands["app"].removesuffix("app.server") + module
        with self._process(f"{command} {arguments}", "app.log", self._master_says_ready) as pid:
            yield pid

    @contextlib.contextmanager
    def stock_app(self, worker_class: str) -> Iterator[int]:
        """Gunicorn with the stack's configuration and its own master, which knows no readiness: `/` has answered."""
        command = (
            f"exec {native.BIN}/gunicorn --config {ROOT}/app/server/gunicorn.conf.py --worker-class {worker_class}"
        )
        with self._process(command, "app.log", lambda: answers(f"{self.app_url}/")) as pid:
            yield pid

    @contextlib.contextmanager
    def other_app(self, command: str) -> Iterator[int]:
        """Any server with the stack's settings in its environment; it has answered `/`, with whatever status below 500.

        `command` listens on APP_PORT, as `app_port` says.
        """
        with self._process(f"exec {command}", "app.log", lambda: answers(f"{self.app_url}/")) as pid:
            yield pid

    def _master_says_ready(self) -> bool:
        try:
            status = json.loads((self.folder / f"app-{self.environ['APP_PORT']}.status.json").read_text())
        except FileNotFoundError:
            return False
        return bool(status["state"] == "ready")

    @contextlib.contextmanager
    def nginx(self) -> Iterator[int]:
        """nginx with the stack's configuration. It is ready without the app's help."""
        render(self.environ, self.folder / "nginx", native.nginx_version(native.nginx()))
        with self._process(self._commands["nginx"], "nginx.log", lambda: answers(f"{self.url}/nginx-health")) as pid:
            yield pid

    @property
    def live_url(self) -> str:
        return f"http://127.0.0.1:{self.environ['LIVE_PORT']}"

    @contextlib.contextmanager
    def live(self) -> Iterator[int]:
        """The live service, which reads what nginx() and the observers say."""
        with self._process(self._commands["live"], "live.log", lambda: answers(f"{self.live_url}/")) as pid:
            yield pid

    @contextlib.contextmanager
    def changed_nginx(
        self, name: str, changes: Mapping[str, str], given: Mapping[str, str] | None = None
    ) -> Iterator[tuple[int, str]]:
        """nginx with the stack's configuration, in which each text is replaced by another, before the same app; its
        pid and its URL. Raises CannotRun where a text is not there: it would be the same configuration.

        `given` are variables that the configuration is made with.
        """
        folder = self.folder / name
        port = free_ports(1)[0]
        values = self.environ | _listens(port) | {"NGINX_RUN": str(folder)} | dict(given or {})
        render(values, folder, native.nginx_version(native.nginx()))
        _change(folder, changes)
        command = self._commands["nginx"].replace(f"{self.folder}/nginx/nginx.conf", f"{folder}/nginx.conf")
        url = f"http://127.0.0.1:{port}"
        with self._process(command, f"{name}.log", lambda: answers(f"{url}/nginx-health")) as pid:
            yield pid, url

    @contextlib.contextmanager
    def nginx_of(self, image: bool, name: str, changes: Mapping[str, str]) -> Iterator[tuple[int, int, int]]:
        """nginx with `changes` as in changed_nginx; its pid, its port of HTTP, and that of HTTPS where TLS says so.

        `image`: that of docker-compose.yml, in the host's network, and not the one that is installed here.
        """
        folder = self.folder / name
        port, https = free_ports(2)
        values = self.environ | _listens(port) | {"NGINX_RUN": str(folder)}
        values |= {"NGINX_LISTEN_TLS": f"127.0.0.1:{https}", "NGINX_LISTEN_TLS_IPV6": f"[::1]:{https}"}
        values |= {"NGINX_LISTEN_QUIC": f"127.0.0.1:{https}", "NGINX_LISTEN_QUIC_IPV6": f"[::1]:{https}"}
        render(values, folder, (1, 30) if image else native.nginx_version(native.nginx()))
        _change(folder, changes)
        command = self._commands["nginx"].replace(f"{self.folder}/nginx/nginx.conf", f"{folder}/nginx.conf")
        container = f"{self._project}-{name}"
        if image:
            mounted = " ".join(f"--volume {each}:{each}" for each in (self.folder, values["NGINX_CERTIFICATES"]))
            docker = f"exec docker run --rm --name {container} --network host {mounted} --entrypoint nginx {IMAGE}"
            command = command.replace(f"exec {native.nginx()}", docker)
        url = f"http://127.0.0.1:{port}"
        with self._process(command, f"{name}.log", lambda: answers(f"{url}/nginx-health")) as pid:
            if image:
                inspect = ["docker", "inspect", "--format", "{{.State.Pid}}", container]
                pid = int(subprocess.check_output(inspect, text=True))
            yield pid, port, https

    @contextlib.contextmanager
    def other_nginx(self, template: Path) -> Iterator[tuple[int, str]]:
        """nginx with the configuration in `template`, before the same app; its pid and its URL."""
        folder = self.folder / template.stem
        folder.mkdir()
        values = self.environ | {"NGINX_RUN": str(folder), "NGINX_LISTEN": f"127.0.0.1:{self._other_port}"}
        (folder / "nginx.conf").write_text(fill(template.read_text(), values))
        command = self._commands["nginx"].replace(f"{self.folder}/nginx/nginx.conf", f"{folder}/nginx.conf")
        url = f"http://127.0.0.1:{self._other_port}"
        with self._process(command, f"{template.stem}.log", lambda: answers(f"{url}/")) as pid:
            yield pid, url
