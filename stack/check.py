"""`make check`: what can be known about the configuration without starting it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from app.server import budget, cpus, space
from app.server.settings import SettingsError, read
from stack import compose, debian, native
from stack.console import Failure, say
from stack.render import render
from stack.settings import GIVEN, ROOT, StackSettings, project, rows

BIN = Path(sys.executable).parent


def check() -> int:
    """Run every check and print a line for each; the exit status is 1 if one failed."""
    table = rows()
    try:
        settings = read(StackSettings, GIVEN | table)
    except SettingsError as error:
        say(f"FAILED  settings\n{error}")
        return 1
    engine = compose.engine()
    binary = debian.found("nginx")
    if not binary:
        instead = "that of the image is asked below" if engine else "make up installs it, or says how"
        say(f"skipped nginx -t: no nginx is installed here; {instead}")
    checks: list[tuple[str, Callable[[], str]]] = [
        ("timeout budget", lambda: _budget(budget.violations(settings), len(budget.RULES))),
        ("space budget", lambda: _budget(space.violations(settings), len(space.RULES))),
        ("workers fit the CPUs", lambda: _workers(settings, in_compose=engine is not None)),
        ("nginx -t and gixy" if binary else "gixy", lambda: _nginx(binary, settings, table)),
        ("ruff check", lambda: _tool("ruff", "check", ".")),
        ("ruff format", lambda: _tool("ruff", "format", "--check", ".")),
        ("mypy", lambda: _tool("mypy")),
    ]
    if engine:
        checks.append(("docker compose config", lambda: _run([*compose.COMPOSE, "config", "--quiet"])))
        checks.append(("nginx -t in the image", _nginx_in_the_image))
    else:
        say("skipped docker compose config: no Docker engine answers")
    failed = 0
    for name, run in checks:
        try:
            note = run()
            say(f"ok      {name}{': ' + note if note else ''}")
        except Failure as failure:
            failed = 1
            say(f"FAILED  {name}\n{failure}")
    return failed


def _budget(broken: list[str], rules: int) -> str:
    if broken:
        raise Failure("\n".join(broken))
    return f"{rules} rules hold"


def _workers(settings: StackSettings, in_compose: bool) -> str:
    usable = min(cpus.usable(), settings.app_cpus) if in_compose else cpus.usable()
    hold_to_cpus(settings.workers, usable)
    return f"WORKERS={settings.workers} on {usable:g} CPUs, one for each"


def hold_to_cpus(workers: int, usable: float) -> None:
    """Raises Failure with one line where WORKERS does not fit the CPUs that the app may use."""
    fitting = max(1, int(usable))
    if workers > fitting:
        raise Failure(
            f"WORKERS={workers} is more than the {usable:g} CPUs the app may use: async workers only take turns then "
            f"(slower tail, more memory); set WORKERS={fitting}, or give the app more CPUs (APP_CPUS)"
        )
    if workers < fitting:
        raise Failure(
            f"WORKERS={workers} leaves some of the {usable:g} CPUs the app may use idle: an event loop runs on one "
            f"CPU; set WORKERS={fitting}"
        )


def _nginx(binary: str | None, settings: StackSettings, table: dict[str, str]) -> str:
    note = ""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        # `nginx -t` opens what it is to listen on: a socket file is in nobody's way.
        values = native.environment(settings, table) | {
            "NGINX_RUN": folder,
            "NGINX_ACCESS_LOG": f"{folder}/log",
        }
        values["NGINX_LISTEN"] = f"unix:{folder}/socket"
        if binary:
            version = native.nginx_version(binary)
            if left_out := render(values, run, version):
                note = f"nginx {'.'.join(map(str, version))} lacks {', '.join(left_out)}"
            _run([binary, "-t", "-q", "-e", "stderr", "-c", f"{folder}/nginx.conf"])
        # As the image reads it: with every directive.
        render(values, run, (1, 30))
        # proxy_buffering is off: what a slow reader costs then is in the space budget (docs/limits.md).
        _run([str(BIN / "gixy"), "--skips", "proxy_buffering_off", f"{folder}/nginx.conf"])
    return note


def _nginx_in_the_image() -> str:
    # A project of its own: Compose makes the networks of a container that it runs, and leaves them.
    own = [*compose.COMPOSE, "--project-name", f"{project()}-check-{os.getpid()}"]
    try:
        return _run([*own, "run", "--rm", "--no-deps", "--quiet-pull", "--no-TTY", "nginx",
                     "nginx", "-t", "-q", "-c", "/run/nginx/nginx.conf"])  # fmt: skip
    finally:
        _run([*own, "down", "--volumes"])


def _tool(name: str, *arguments: str) -> str:
    return _run([str(BIN / name), *arguments])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise Failure((done.stdout + done.stderr).strip())
    return ""
