"""The stack as plain processes, for a machine without a Docker engine. honcho supervises them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from app.server.settings import Settings as AppSettings
from stack import cache, certificate, debian, static
from stack.alone import alone
from stack.console import Failure, accepts, answers, app_fault, say, wait_for
from stack.render import reload_line, render, render_prometheus
from stack.settings import GIVEN, ROOT, StackSettings, app_variables, project

BIN = Path(sys.executable).parent
LOCK = "supervisor.lock"


def folder() -> Path:
    """Where a native stack keeps its lock, logs, data and rendered configuration."""
    return Path(tempfile.gettempdir()) / f"{project()}-{os.getuid()}"


def nginx() -> str:
    """The path of nginx, installed first where that is possible. Raises Failure with the command where it is not."""
    if path := debian.found("nginx"):
        return path
    if not debian.can_install():
        raise Failure(
            "nginx is not installed, and only root on Debian or Ubuntu can have it installed from here: "
            "sudo apt-get install nginx-light (or your system's command), then the same make again"
        )
    debian.install("nginx-light")
    path = debian.found("nginx") or "nginx"
    # The package starts a server of its own on port 80; this stack's is another.
    subprocess.run([path, "-s", "stop"], capture_output=True)
    return path


def nginx_version(path: str) -> tuple[int, ...]:
    """The version of this nginx. Raises Failure when it is older than 1.22."""
    text = subprocess.run([path, "-v"], capture_output=True, text=True).stderr
    version = tuple(int(n) for n in re.findall(r"\d+", text.partition("/")[2])[:3])
    if version < (1, 22):
        raise Failure(f"{path} is nginx {'.'.join(map(str, version))}; it must be 1.22 or newer")
    return version


def hold_to_http3(settings: StackSettings, path: str) -> None:
    """Raises Failure with one line where this nginx has no HTTP/3 and the row asks for it."""
    built = subprocess.run([path, "-V"], capture_output=True, text=True).stderr
    if settings.http3 == "on" and "--with-http_v3_module" not in built:
        raise Failure(
            f"HTTP3=on: {path} was built without HTTP/3 ({built.split()[2]}); set HTTP3=off, or install nginx 1.25 or "
            "newer with --with-http_v3_module"
        )


def prometheus() -> str:
    """The path of Prometheus. Raises Failure with one line where it is not installed."""
    if path := debian.found("prometheus"):
        return path
    raise Failure(
        "METRICS=on: prometheus is not installed; sudo apt-get install prometheus (and systemctl disable --now "
        "prometheus: the package starts one of its own, on port 9090), or set METRICS=off"
    )


def environment(settings: StackSettings, table: dict[str, str]) -> dict[str, str]:
    """What all processes of the stack get: .env, and what this way of running gives in Compose's stead."""
    run = folder()
    proxied = " proxy_protocol" if settings.proxy_protocol_from else ""
    return table | GIVEN | {
        "DATA_DIR": str(run / "data"),
        "RUN_DIR": str(run),
        "NGINX_RUN": str(run / "nginx"),
        "NGINX_LISTEN": f"{settings.http_port}{proxied}",
        "NGINX_LISTEN_IPV6": f"[::]:{settings.http_port}{proxied}",
        "NGINX_LISTEN_INSIDE": f"127.0.0.1:{settings.http_port} [::1]:{settings.http_port}",
        "NGINX_LISTEN_TLS": f"{settings.https_port}{proxied}",
        "NGINX_LISTEN_TLS_IPV6": f"[::]:{settings.https_port}{proxied}",
        "NGINX_LISTEN_TLS_INSIDE": f"127.0.0.1:{settings.https_port} [::1]:{settings.https_port}",
        "NGINX_LISTEN_QUIC": f"{settings.https_port}",
        "NGINX_LISTEN_QUIC_IPV6": f"[::]:{settings.https_port}",
        "NGINX_STATIC": str(static.folder(settings)),
        "NGINX_CERTIFICATES": str(certificate.folder(settings)),
        "RENEW_PUBLISHED": str(certificate.folder(settings)),
        "RENEW_STATE": str(certificate.folder(settings) / "account"),
        "NGINX_ACCESS_LOG": str(run / "access.log"),
        # nginx's counters, the port before that of the app's observer.
        "NGINX_LISTEN_STATUS": f"127.0.0.1:{settings.app_port - 2}",
        "NGINX_COUNTS": str(run / "counts.log"),
        "LIVE_HOST": "127.0.0.1",
        "LIVE_NGINX_STATUS": f"127.0.0.1:{settings.app_port - 2}",
        "UPSTREAM_HOST": GIVEN["APP_HOST"],
        "LOCUST_HOST": (
            f"http://127.0.0.1:{settings.http_port}"
            if settings.tls == "off"
            else f"https://127.0.0.1:{settings.https_port}"
        ),
        "LOADTEST_TRUSTED": str(certificate.trusted(settings)),
    }  # fmt: skip


def commands(settings: StackSettings) -> dict[str, str]:
    """The stack's processes by name, as shell commands; `exec`, so that signals reach them and not a shell."""
    run = folder()
    # Started as root, nginx would give its workers to "nobody", who cannot reach a folder that is root's own.
    user = "user root; " if os.getuid() == 0 else ""
    found = {
        "app": f"exec {BIN}/python -m app.server",
        "nginx": f"exec {nginx()} -e stderr -c {run}/nginx/nginx.conf -g '{user}daemon off;'",
        # Started again when it ends: honcho would end the stack with it.
        "live": f"exec env APP_REPLICAS=1 {BIN}/python -m stack.again {BIN}/python -m live",
    }
    after = f"exec {BIN}/python -m stack.after http://127.0.0.1"
    if settings.metrics == "on":
        found["prometheus"] = (
            f"exec {BIN}/python -m stack.again {prometheus()} --config.file={run}/prometheus.yml "
            f"--storage.tsdb.path={run}/prometheus --storage.tsdb.retention.time={settings.prometheus_keep_days}d "
            f"--storage.tsdb.retention.size={settings.prometheus_keep_mb}MB --log.level=warn "
            f"--web.listen-address=127.0.0.1:{settings.prometheus_port}"
        )
    if settings.tls == "acme":
        # Once nginx can answer the CA.
        found["acme"] = f"{after}:{settings.http_port}/nginx-health {BIN}/python -m renew"
    if settings.locust == "on":
        # After the app, as in Compose: its imports would take the CPU from those of the workers.
        locust = f"{after}:{settings.app_port}/readyz {BIN}/locust -f {ROOT}/loadtest/locustfile.py"
        found["locust"] = (
            f"{locust} --master --master-bind-port {settings.locust_master_port} "
            f"--class-picker --web-host 127.0.0.1 --web-port {settings.locust_ui_port}"
        )
        found["locust-worker"] = f"{locust} --worker --master-port {settings.locust_master_port}"
    return found


def take_lock() -> IO[str]:
    """The file that the supervisor holds a lock on as long as it lives. Raises Failure where another one does.

    A lock of fcntl's, not flock's: the processes that honcho forks do not hold it on. It is given up when this process
    closes the file, and also when it opens it a second time and closes that.
    """
    file = (folder() / LOCK).open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Failure("another supervisor runs this stack") from None
    return file


def _supervisor() -> int | None:
    """The pid of this stack's supervisor, by the kernel's word: a number in a file may be another's by now."""
    layout = "hhqqi"  # struct flock of fcntl(2)
    try:
        with (folder() / LOCK).open() as file:
            asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except OSError:
        return None
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None


def _descendants(root: int) -> list[int]:
    """The pids of this process and of all that descend from it."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    tree = [root]
    for parent in tree:  # it grows on the way
        tree += [pid for pid, its_parent in pairs if its_parent == parent]
    return tree


def running() -> bool:
    return _supervisor() is not None


def _check_ports(settings: StackSettings) -> None:
    wanted = settings.published()
    if settings.locust == "on":
        wanted.append(("LOCUST_MASTER_PORT", settings.locust_master_port))
    wanted.append(("APP_PORT-1 (the observer)", settings.app_port - 1))
    wanted.append(("APP_PORT-2 (nginx's counters)", settings.app_port - 2))
    wanted += [("APP_PORT", settings.app_port + i) for i in range(settings.listeners)]
    taken: dict[int, str] = {}
    for name, port in wanted:
        advice = f"stop what listens there, or: make up {name.partition('-')[0]}=…"
        if port in taken:
            raise Failure(
                f"{name}: port {port} is {taken[port]}'s; each needs its own (APP_PORT one a worker, and one before)"
            )
        taken[port] = name
        if accepts(port):
            raise Failure(f"{name}={port}: the port is in use; {advice}")
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("0.0.0.0" if name in ("HTTP_PORT", "HTTPS_PORT") else "127.0.0.1", port))
            except PermissionError:
                raise Failure(
                    f"{name}={port}: you have no right to ports below 1024; type: make up {name}={8000 + port} "
                    "(or, as root: sysctl net.ipv4.ip_unprivileged_port_start=80)"
                ) from None
            except OSError as error:
                raise Failure(f"{name}={port}: {error.strerror}; {advice}") from None


def up(settings: StackSettings, table: dict[str, str]) -> None:
    if running():
        say("the stack is running already; make reload takes new code, make down stops it")
        return
    run = folder()
    binary = nginx()
    version = nginx_version(binary)
    hold_to_http3(settings, binary)
    if settings.metrics == "on":
        prometheus()
    _check_ports(settings)
    certificate.prepare(settings, in_compose=False)
    static.check(settings)
    environ = environment(settings, table)
    shutil.rmtree(run / "nginx/cache", ignore_errors=True)  # of the code that ran before
    (run / "data").mkdir(parents=True, exist_ok=True)
    _migrate(settings, table, environ, "nothing was started")
    left_out = render(environ, run / "nginx", version)
    render_prometheus(settings, run)
    if left_out:
        say(f"nginx {'.'.join(map(str, version))} has no {', '.join(left_out)}: left out (docs/native.md)")
    with open(run / "stack.log", "w") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "stack.supervise"],
            cwd=ROOT, env=os.environ | environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip

    def all_answer() -> bool:
        if supervisor.poll() is not None:
            raise Failure("a process of the stack ended")
        workers = [f"{settings.app_port + slot}/readyz" for slot in range(settings.listeners)]
        parts = [f"{settings.http_port}/nginx-health", f"{settings.live_port}/", *workers]
        if settings.metrics == "on":
            parts.append(f"{settings.prometheus_port}/-/ready")
        if settings.locust == "on":
            parts.append(f"{settings.locust_ui_port}/")
        return all(answers(f"http://127.0.0.1:{part}") for part in parts)

    try:
        wait_for("an answer of every part", all_answer, settings.ready_seconds)
    except (Failure, KeyboardInterrupt) as failure:
        supervisor.terminate()
        wait_for("its end", lambda: supervisor.poll() is not None, seconds=settings.stop_grace_seconds + 10)
        say("".join(f"    {line}\n" for line in _last_words(run / "stack.log")).rstrip())
        why = app_fault((run / "stack.log").read_text()) or failure
        raise Failure(f"the stack did not come up ({why}), nothing was left running; its log above says why") from None
    certificate.hold_to_served(settings, in_compose=False)


def _last_words(log: Path) -> list[str]:
    lines = log.read_text().splitlines()
    worse = [line for line in lines if re.search(r'"level": "(error|critical)"|\[(emerg|alert)\]|rror', line)]
    return (worse or lines)[-8:]


def down(settings: StackSettings) -> None:
    supervisor = _supervisor()
    if supervisor is None:
        say("no native stack is running")
        return
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(supervisor, signal.SIGTERM)
    wait_for("the end of the stack", lambda: not running(), seconds=settings.stop_grace_seconds + 10)


def logs() -> None:
    subprocess.run(["tail", "-n", "100", "-F", folder() / "stack.log", folder() / "access.log"])


def log_lines() -> Iterator[tuple[str, str]]:
    """All that nginx and the app have logged since the start, each line with its tier."""
    for line in _lines_of(folder() / "stack.log"):
        prefix, _, said = line.partition("| ")
        yield prefix.split()[-1] if prefix.split() else "", said
    yield from (("nginx", line) for line in _lines_of(folder() / "access.log"))


def _lines_of(file: Path) -> list[str]:
    return file.read_text(errors="replace").splitlines() if file.exists() else []


def ps() -> None:
    supervisor = _supervisor()
    if supervisor is None:
        say("no native stack is running")
        return
    pids = ",".join(map(str, _descendants(supervisor)))
    subprocess.run(["ps", "--forest", "-o", "pid,etime,pcpu,rss,args", "-p", pids])


def reload(settings: StackSettings, table: dict[str, str]) -> None:
    supervisor = _supervisor()
    if supervisor is None:
        raise Failure("no native stack is running; make up starts one")
    _hold_to_rows(supervisor, table)
    certificate.prepare(settings, in_compose=False)
    static.check(settings)
    hold_to_http3(settings, nginx())
    environ = environment(settings, table)
    _migrate(settings, table, environ, "the old code serves on")
    command = [sys.executable, "-m", "app.server.reload"]
    if subprocess.run(command, cwd=ROOT, env=os.environ | environ).returncode:
        raise Failure("the old code serves on")
    # Only if there is something new to read: before 1.27.4 a reload of nginx resets idle client connections.
    config = folder() / "nginx"
    before = _texts(config)
    render(environ, config, nginx_version(nginx()))
    if _texts(config) != before:
        proxy = int((config / "nginx.pid").read_text())
        if proxy not in _descendants(supervisor):
            raise Failure(f"nginx (pid {proxy} in {config}/nginx.pid) does not run; make down, then make up")
        os.kill(proxy, signal.SIGHUP)
        say(reload_line(settings))
    subprocess.run(cache.empty(f"{config}/cache"), check=True)


def _migrate(settings: StackSettings, table: dict[str, str], environ: dict[str, str], otherwise: str) -> None:
    """Run APP_MIGRATE with the code and the variables of the app. Raises Failure, with `otherwise`, where it fails."""
    if not settings.app_migrate:
        return
    environ = os.environ | environ | app_variables(table)
    with alone():
        if subprocess.run([sys.executable, "-m", "app.server.migrate"], cwd=ROOT, env=environ).returncode:
            raise Failure(f"the database was not migrated (its log is above), so {otherwise}")
    say(f"migrated: {settings.app_migrate}")


def _hold_to_rows(supervisor: int, table: dict[str, str]) -> None:
    """Raises Failure where a row of the app has changed: nginx would be told of it, and the app not."""
    pairs = os.fsdecode(Path(f"/proc/{supervisor}/environ").read_bytes()).split("\0")
    started = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    for name in map(str.upper, AppSettings.model_fields):
        if name in table and table[name] != started.get(name):
            raise Failure(
                f"{name}={table[name]}: the app was started with {started.get(name)}, and reads rows only then; "
                "make down, then make up"
            )


def _texts(config: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in config.glob("*.conf")}


def loadtest(settings: StackSettings, table: dict[str, str]) -> int:
    """Run the load test against the running stack; its exit status."""
    reports = ROOT / "reports"
    reports.mkdir(exist_ok=True)
    environ = os.environ | environment(settings, table)
    return subprocess.run([sys.executable, "-m", "loadtest", str(reports)], cwd=ROOT, env=environ).returncode
