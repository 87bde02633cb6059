"""The stack in containers: Docker Compose with an engine that answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stack import cache, certificate, static
from stack.alone import alone
from stack.console import Failure, accepts, app_fault, say
from stack.render import reload_line
from stack.settings import ROOT, StackSettings, project

COMPOSE = ["docker", "compose", "--progress", "quiet", "--project-directory", str(ROOT)]


def engine() -> str | None:
    """The version of the Docker engine that answers; None where none does."""
    try:
        asked = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None


def run(*arguments: str, check: bool = True) -> int:
    """Run `docker compose` with its output shown. Raises Failure when it fails and `check` is set."""
    status = subprocess.run([*COMPOSE, *arguments]).returncode
    if check and status:
        raise Failure(f"docker compose {' '.join(arguments)}: exit status {status}")
    return status


def build(*services: str) -> None:
    """Build the images of these services, or of all. Raises Failure when that fails."""
    run("build", "--quiet", *services)


def containers(service: str = "") -> list[dict[str, Any]]:
    """Compose's own record of each container of this stack, running or not."""
    command = [*COMPOSE, "ps", "--all", "--format", "json", *([service] if service else [])]
    asked = subprocess.run(command, capture_output=True, text=True)
    return [json.loads(line) for line in asked.stdout.splitlines() if line.startswith("{")]


def running() -> bool:
    return any(c["Service"] == "nginx" and c["State"] == "running" for c in containers())


def check_configuration() -> None:
    """Raises Failure with one line: a variable or a secret's file that is required and missing, a fault in a file.

    Also where nginx, another user in its container than the owner of the clone, may not read its configuration.
    """
    mounted = ROOT / "nginx"
    for file in (mounted, *mounted.rglob("*")):
        static.hold_to_readable(file, mounted)
    # Compose looks for these when it makes a container, which may be after others were replaced.
    for name, secret in configuration().get("secrets", {}).items():
        if "file" in secret and not Path(secret["file"]).is_file():
            raise Failure(f"the secret {name} has no file {secret['file']}: write it there")


def configuration(*profiles: str) -> dict[str, Any]:
    """What Compose makes of its files and variables. Raises Failure with its line where it refuses them.

    With `profiles` beside those of COMPOSE_PROFILES.
    """
    more = [f"--profile={profile}" for profile in profiles]
    asked = subprocess.run([*COMPOSE, *more, "config", "--format", "json"], capture_output=True, text=True)
    if asked.returncode:
        raise Failure(asked.stderr.strip())
    found: dict[str, Any] = json.loads(asked.stdout)
    return found


def memory_limits() -> dict[str, tuple[int, int]]:
    """Of each service the bytes that one container may use, and how many containers it has."""
    found = {}
    for name, service in configuration()["services"].items():
        deploy = service.get("deploy", {})
        limit = int(deploy.get("resources", {}).get("limits", {}).get("memory", 0))  # one of your own may have none
        found[name] = limit, deploy.get("replicas", 1)
    return found


def images(*services: str) -> list[str]:
    """The names of the images that these services are built into."""
    found = configuration()
    return [found["services"][service].get("image") or f"{found['name']}-{service}" for service in services]


def up(settings: StackSettings, table: dict[str, str]) -> None:
    del table  # Compose reads .env by itself
    with alone():
        _up(settings)


def _up(settings: StackSettings) -> None:
    certificate.prepare(settings, in_compose=True)
    static.check(settings)
    check_configuration()
    there = containers()
    fresh = not there
    if fresh:
        for name, port in settings.published():
            if accepts(port):
                raise Failure(f"{name}={port}: the port is in use; stop what listens there, or: make up {name}=…")
    # Compose leaves what a profile no longer has.
    optional = {
        "acme": settings.tls == "acme",
        "prometheus": settings.metrics == "on",
        "locust": settings.locust == "on",
        "locust-worker": settings.locust == "on",
    }
    if gone := [container["Service"] for container in there if not optional.get(container["Service"], True)]:
        run("--profile", "*", "rm", "--stop", "--force", *dict.fromkeys(gone))
    # Not `up --build`: a failed build must leave what runs as it is.
    build()
    try:
        migrate(settings)
    except (Failure, KeyboardInterrupt):
        if fresh:
            run("down", "--timeout", "5", check=False)
        raise
    # Without a second migration.
    up = ["up", "--detach", "--quiet-pull", "--scale", "migrate=0"]
    if run(*up, check=False) or not _all_well(settings.ready_seconds):
        why = ""
        if settings.ipv6 == "true" and not _has_network("edge"):
            why = (
                "the engine made no network with addresses of IPv6, which IPV6=true asks for: engine 27 or newer makes "
                "one, on a kernel with IPv6; without: make up IPV6=false"
            )
        for container in containers():
            if _state(container) != "well":
                say(f"--- {container['Name']}: {container['State']} {container['Health']}, the end of its log:")
                log = ["docker", "logs", "--tail", "15", container["Name"]]
                said = subprocess.run(log, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
                say(said.rstrip())
                why = why or app_fault(said) or ""
        if fresh:
            run("down", "--timeout", "5", check=False)
        left = ", nothing was left running" * fresh
        raise Failure(f"the stack did not come up{f' ({why})' * bool(why)}{left}; the log above says why")
    certificate.hold_to_served(settings, in_compose=True)
    empty_cache(settings)


def empty_cache(settings: StackSettings) -> None:
    """What nginx keeps of the app's answers may be the old code's."""
    if settings.cache_mb:
        run("exec", "--no-TTY", "nginx", *cache.empty("/run/nginx/cache"))


def _has_network(name: str) -> bool:
    mine = [f"label=com.docker.compose.project={project()}", f"label=com.docker.compose.network={name}"]
    filters = [word for label in mine for word in ("--filter", label)]
    return bool(subprocess.run(["docker", "network", "ls", "--quiet", *filters], capture_output=True).stdout)


def migrate(settings: StackSettings, *options: str) -> None:
    """Run APP_MIGRATE in the image that was built last. Raises Failure where it fails; what runs, serves on."""
    if not settings.app_migrate:
        return
    command = ["run", "--rm", "--quiet-pull", *options, *([] if sys.stdout.isatty() else ["--no-TTY"]), "migrate"]
    if run(*command, check=False):
        raise Failure("the database was not migrated (its log is above), so nothing was started or replaced")
    say(f"migrated: {settings.app_migrate}")


def _all_well(seconds: float) -> bool:
    """Wait until every container is well; False as soon as one cannot become so.

    Not `up --wait`: it takes a service that does one thing and ends, such as a migration, for one that failed.
    """
    end = time.monotonic() + seconds
    while states := {_state(container) for container in containers()} - {"well"}:
        if states != {"starting"} or time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _state(container: dict[str, Any]) -> str:
    """ "well" when it is healthy, runs and has no health check, or has done its work; else what it is."""
    if container["State"] == "running":
        return "well" if container["Health"] in ("healthy", "") else str(container["Health"])
    return "well" if (container["State"], container["ExitCode"]) == ("exited", 0) else str(container["State"])


def down(settings: StackSettings) -> None:
    del settings
    run("--profile", "*", "down", "--remove-orphans")


def logs() -> None:
    run("logs", "--follow", "--tail", "100", check=False)


def log_lines() -> Iterator[tuple[str, str]]:
    """All that nginx and the replicas have logged and is still there, each line with its tier."""
    for tier in ("app", "nginx"):
        asked = subprocess.run([*COMPOSE, "logs", "--no-log-prefix", tier], capture_output=True, text=True)
        yield from ((tier, line) for line in asked.stdout.splitlines())


def ps() -> None:
    run("ps")


def _nginx_texts() -> bytes:
    """What nginx's configuration in its container is now."""
    command = [*COMPOSE, "exec", "--no-TTY", "nginx", "sh", "-c", "cat /run/nginx/*.conf"]
    return subprocess.run(command, capture_output=True).stdout


def reload(settings: StackSettings, table: dict[str, str]) -> None:
    del table
    static.check(settings)
    replicas = [c["Name"] for c in containers("app") if c["State"] == "running"]
    if not replicas:
        raise Failure("no stack is running; make up starts one")
    for replica in replicas:  # one after the other: a fault in the code stops at the first
        if subprocess.run(["docker", "exec", replica, "python", "-m", "app.server.reload"]).returncode:
            raise Failure(f"{replica}: the old code serves on")
    # The entrypoint fills the templates anew; a fault in them leaves nginx as it is.
    conf = ["-c", "/run/nginx/nginx.conf"]
    before = _nginx_texts()
    run("exec", "--no-TTY", "nginx", "/docker-entrypoint.sh", "nginx", "-t", "-q", *conf)
    # Only if there is something new to read: a reload ends the connections of HTTP/3.
    if _nginx_texts() != before:
        run("exec", "--no-TTY", "nginx", "nginx", *conf, "-s", "reload")
        say(reload_line(settings))
    empty_cache(settings)
    say("code and rows of .env are those that the containers were made with: make deploy brings new ones to the app, "
        "make up makes a new nginx")  # fmt: skip


def loadtest(settings: StackSettings, table: dict[str, str]) -> int:
    """Run the load test beside the running stack; its exit status."""
    del settings, table
    reports = ROOT / "reports"
    reports.mkdir(exist_ok=True)
    build("locust")  # the requests of loadtest/ as they are now
    command = ["run", "--rm", "--no-deps", "--user", f"{os.getuid()}:{os.getgid()}"]
    command += ["--volume", f"{reports}:/reports", "--workdir", "/srv"]
    if not sys.stdout.isatty():
        command.append("--no-TTY")
    command += ["--entrypoint", "python -m loadtest /reports", "locust"]
    return run(*command, check=False)
