"""`make deploy`: the running app containers give way to a new image, one after the other, and no request is lost.

For each old replica a new one starts beside it and gets ready; it refuses connections until then, so that nginx goes
elsewhere. Then the old one is stopped: it refuses new connections, and answers on those that are open.
"""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

from stack import compose
from stack.alone import alone
from stack.console import Failure, say
from stack.settings import StackSettings


def deploy(settings: StackSettings) -> None:
    """Build, replace, and take back what does not get ready. Raises Failure; the old replicas serve on then."""
    # Two deploys at once would migrate twice, and count the other's replicas as old.
    with alone():
        compose.check_configuration()
        old = _replicas()
        if not old:
            raise Failure("no stack is running, so there is nothing to replace; make up starts one")
        before = _inspect(old[0])
        compose.build("app", "migrate")
        try:
            compose.migrate(settings, "--no-deps")
        except (Failure, KeyboardInterrupt):
            _keep(before)
            raise
        if stopped := set(_replicas("--all")) - set(old):
            _docker("rm", *stopped)  # Compose would start these again, with the old image, in place of new ones
        for number, replica in enumerate(old, start=1):
            new = _start_one_more(len(old))
            try:
                _wait_until_ready(new, settings.ready_seconds)
            except (Failure, KeyboardInterrupt):
                _roll_back(new, before)
                compose.empty_cache(settings)
                if settings.app_migrate:
                    say(f"--- the database stays as {settings.app_migrate} has left it")
                raise
            # Until nginx has asked Docker's DNS again (every second) it does not know the new one.
            time.sleep(2)
            _docker("stop", "--time", str(settings.stop_grace_seconds), replica)
            _docker("rm", replica)
            say(f"replica {number} of {len(old)} replaced")
        compose.empty_cache(settings)


def _replicas(*options: str) -> list[str]:
    """The ids of the app containers: of the running ones, or with "--all" of every one."""
    asked = subprocess.run([*compose.COMPOSE, "ps", "--quiet", *options, "app"], capture_output=True, text=True)
    return asked.stdout.split()


def _start_one_more(count: int) -> str:
    """Start a replica of the new image beside `count` others; its id. Raises Failure where it is not one alone."""
    before = set(_replicas("--all"))
    compose.run("up", "--detach", "--no-deps", "--no-recreate", "--no-build", "--scale", f"app={count + 1}", "app")
    new = set(_replicas("--all")) - before
    if len(new) != 1:
        if new:
            _docker("rm", "--force", *new)
        raise Failure(
            f"{len(new)} new replicas instead of 1, so they are removed: something else starts or stops replicas of "
            "this stack; docker compose ps --all shows them; end it, then try again"
        )
    return new.pop()


def _wait_until_ready(container: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        state = _inspect(container)
        health = state["State"]["Health"]["Status"]
        if health == "healthy":
            return
        # `restart: unless-stopped` starts it again and again
        if state["RestartCount"] or state["State"]["Status"] == "exited":
            raise Failure("the new version does not start")
        if health == "unhealthy" or time.monotonic() > deadline:
            raise Failure("the new version does not get ready")
        time.sleep(0.2)


def _roll_back(new: str, before: dict[str, Any]) -> None:
    say("--- the end of the new version's log:")
    subprocess.run(["docker", "logs", "--tail", "15", new], stderr=subprocess.STDOUT)
    say("--- rolled back: it is removed, and the old version serves on")
    _docker("rm", "--force", new)
    _keep(before)


def _keep(before: dict[str, Any]) -> None:
    """Give the old image its names back, so that the next `docker compose up` does not start the bad one."""
    for image in compose.images("app", "migrate"):
        _docker("tag", before["Image"], image)


def _inspect(container: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(_docker("inspect", container))
    return found[0]


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"docker {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
