"""What stands behind the Makefile: python -m stack COMMAND."""

from __future__ import annotations

import argparse
import os
import sys
import time
from types import ModuleType

from app.server.settings import SettingsError
from stack import check, compose, deploy, doctor, native, swarm, trace, users
from stack.console import Failure, fail, say
from stack.settings import app_variables, checked


def choose_way() -> tuple[ModuleType, str]:
    """Compose, native or swarm, and why. WAY of the environment decides; else whether an engine answers."""
    asked = os.environ.get("WAY", "")
    if asked not in ("", "compose", "native", "swarm"):
        raise Failure(
            f"WAY={asked}: must be compose, native or swarm; leave it out to take Compose where an engine answers"
        )
    if asked == "swarm":
        return swarm, "WAY=swarm"
    if asked == "native":
        return native, "WAY=native"
    if not asked and native.running():
        return native, "a native stack is running"
    version = compose.engine()
    if version:
        return compose, f"Docker engine {version} answers"
    if asked:
        raise Failure("WAY=compose: no Docker engine answers (docker version); start one, or leave WAY out")
    return native, "no Docker engine answers"


def run(command: str) -> int:
    if command == "check":
        return check.check()
    settings, table = checked()
    if command not in ("down", "logs", "ps", "trace"):
        app_variables(table)  # for its faults
    if command == "doctor":
        return doctor.doctor(settings)
    if command == "users":
        users.write(settings)
        return 0
    module, reason = choose_way()
    name = module.__name__.rpartition(".")[2]
    if command == "loadtest":
        if not module.running():
            say(f"no stack is running; starting one ({name}: {reason})")
            module.up(settings, table)
        status: int = module.loadtest(settings, table)
        return status
    if module is swarm and command in ("up", "deploy"):
        swarm.deploy(settings)
    elif command == "up":
        say(f"{name}: {reason}")
        start = time.monotonic()
        module.up(settings, table)
        live = f"http://localhost:{settings.live_port}/ (live)"
        locust = f", http://localhost:{settings.locust_ui_port}/ (Locust)" if settings.locust == "on" else ""
        metrics = f", http://localhost:{settings.prometheus_port}/ (Prometheus)" if settings.metrics == "on" else ""
        say(f"up after {time.monotonic() - start:.1f} s: {settings.url()}/ (nginx), {live}{metrics}{locust}")
    elif command == "down":
        module.down(settings)
    elif command == "trace":
        trace.trace(os.environ.get("ID", ""), module.log_lines())
    elif command == "deploy" and module is compose:
        deploy.deploy(settings)
    elif command in ("reload", "deploy"):  # as plain processes there is no image: new code is a reload
        module.reload(settings, table)
    else:
        getattr(module, command)()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="stack", description="The commands behind the Makefile.")
    parser.add_argument(
        "command",
        choices=["up", "down", "logs", "ps", "trace", "check", "doctor", "loadtest", "users", "reload", "deploy"],
    )
    command = parser.parse_args().command
    try:
        return run(command)
    except SettingsError as error:
        fail(str(error), 2)
    except Failure as failure:
        fail(f"{command}: {failure}", 2 if command == "loadtest" else 1)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
