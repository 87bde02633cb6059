"""`make check`: what can be known about the configuration without starting it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml

from app.server import budget, cpus, space
from app.server.settings import SettingsError, read
from stack import certificate, compose, debian, native, static, swarm
from stack.console import Failure, run_checks, say
from stack.render import render
from stack.settings import GIVEN, ROOT, StackSettings, app_variables, faults, project, rows

BIN = Path(sys.executable).parent
# The stack's own code; beside it in app/ is the user's, in their own style.
CODE = ("app/demo", "app/server", "bench", "examples", "learn", "live", "loadtest", "prometheus", "proofs", "renew",
        "stack", "tests")  # fmt: skip


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
    checks: list[tuple[str, Callable[[], str | None]]] = [
        ("the budgets of time and space", lambda: _budget(settings)),
        (f"{table['APP_ENV_FILE']}, the app's own variables", lambda: _own(table)),
        ("workers fit the CPUs", lambda: _workers(settings, in_compose=engine is not None)),
        ("nginx -t and gixy" if binary else "gixy", lambda: _nginx(binary, settings, table)),
        ("ruff check", lambda: _tool("ruff", "check", *CODE)),
        ("ruff format", lambda: _tool("ruff", "format", "--check", *CODE)),
        ("mypy", lambda: _tool("mypy")),
    ]
    if settings.static_root:
        checks.append(("STATIC_ROOT", lambda: static.check(settings)))
    if command := promtool():
        checks.append(("the alerts and their tests", lambda: hold_rules(command)))
    else:
        say(
            "skipped the tests of the alerts: no promtool is installed here (package prometheus), nor is the image here"
        )
    if settings.tls == "files":
        checks.append(("the certificate", lambda: certificate.check(settings, in_compose=engine is not None)))
    if not engine and binary:
        checks.append(("nginx has HTTP/3, where it is asked for", lambda: native.hold_to_http3(settings, binary)))
    if os.environ.get("WAY") == "swarm":
        checks.append(("the swarm", lambda: swarm.check(settings)))
    elif engine:
        checks.append(("docker compose config", compose.check_configuration))
        if settings.tls != "files" or certificate.path(settings).exists():
            checks.append(("nginx -t in the image", _nginx_in_the_image))
        else:
            say("skipped nginx -t in the image: there is no certificate yet")
    else:
        say("skipped docker compose config: no Docker engine answers")
    return run_checks(checks)


def _own(table: dict[str, str]) -> str:
    try:
        return f"{len(app_variables(table))} of them"
    except SettingsError as error:
        raise Failure(str(error)) from None


def _budget(settings: StackSettings) -> str:
    if broken := faults(settings):
        raise Failure("\n".join(broken))
    return f"{len(budget.RULES) + len(space.RULES)} rules hold"


def _workers(settings: StackSettings, in_compose: bool) -> str:
    usable = min(cpus.usable(), settings.app_cpus) if in_compose else cpus.usable()
    hold_to_cpus(settings.workers, usable)
    one_each = settings.workers == cpus.whole(usable)
    return f"WORKERS={settings.workers} on {usable:g} CPUs, {'one for each' if one_each else 'the others stay idle'}"


def hold_to_cpus(workers: int, usable: float) -> None:
    """Raises Failure with one line where WORKERS is more than the CPUs that the app may use."""
    fitting = cpus.whole(usable)
    if workers > fitting:
        raise Failure(
            f"WORKERS={workers} is more than the {usable:g} CPUs the app may use: async workers only take turns then "
            f"(slower tail, more memory); set WORKERS={fitting}, or give the app more CPUs (APP_CPUS)"
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
        values["NGINX_LISTEN_TLS"] = f"unix:{folder}/socket-tls"
        values["NGINX_LISTEN_TLS_IPV6"] = f"unix:{folder}/socket-tls-ipv6"
        values["NGINX_LISTEN_IPV6"] = f"unix:{folder}/socket-ipv6"
        values["NGINX_LISTEN_STATUS"] = f"unix:{folder}/socket-status"
        values["NGINX_COUNTS"] = f"{folder}/counts"
        values["HTTP3"] = "off"  # there is no such socket for UDP
        values["NGINX_LISTEN_INSIDE"] = f"unix:{folder}/socket-inside"
        values["NGINX_LISTEN_TLS_INSIDE"] = f"unix:{folder}/socket-tls-inside"
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


def promtool() -> list[str] | None:
    """The command, in the folder prometheus/; None where neither the package nor the image is here."""
    if path := debian.found("promtool"):
        return [path]
    image = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]["image"]
    asked = ["docker", "image", "inspect", image]
    if not debian.found("docker") or subprocess.run(asked, capture_output=True).returncode:
        return None
    mounts = ["--volume", f"{ROOT}/prometheus:/etc/prometheus:ro", "--workdir", "/etc/prometheus"]
    return ["docker", "run", "--rm", "--network", "none", *mounts, "--entrypoint", "promtool", image]


def hold_rules(command: list[str]) -> str:
    """Raises Failure with promtool's words where the configuration is wrong, or a test of the rules fails."""
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]):
        _run([*command, *arguments], ROOT / "prometheus")
    return ""


def _nginx_in_the_image() -> str:
    # A project of its own: Compose makes the networks of a container that it runs, and leaves them. Without the user's
    # docker-compose.override.yml: a network with a fixed subnet cannot be made twice.
    own = [
        *compose.COMPOSE,
        "--file",
        str(ROOT / "docker-compose.yml"),
        "--project-name",
        f"{project()}-check-{os.getpid()}",
    ]
    try:
        return _run([*own, "run", "--rm", "--no-deps", "--quiet-pull", "--no-TTY", "nginx",
                     "nginx", "-t", "-q", "-c", "/run/nginx/nginx.conf"])  # fmt: skip
    finally:
        _run([*own, "down", "--volumes"])


def _tool(name: str, *arguments: str) -> str:
    return _run([str(BIN / name), *arguments])


def _run(command: list[str], folder: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise Failure((done.stdout + done.stderr).strip())
    return ""
