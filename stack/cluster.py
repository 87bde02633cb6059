"""A Docker Swarm, as the manager that is asked knows it, and whether its nodes can run the stack.

That manager is DOCKER_HOST's or the chosen Docker context's.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import Any

from stack.console import Failure
from stack.settings import StackSettings, project
from stack.stackfile import StackFile, bytes_of

PLATFORMS = {"x86_64": "amd64", "aarch64": "arm64"}
NAMESPACE = "com.docker.stack.namespace"
# The leader that dies, and a manager that comes back, set off an election: 10 to 45 s without a leader.
ELECTION_SECONDS = 45
LEADERLESS = ("does not have a leader", "code = Unavailable", "code = DeadlineExceeded")
# The stream of a log of several nodes now and then does not end (moby/moby#38640), and does not while an engine stands
# still. Asked again it mostly does.
LOG_SILENCE_SECONDS, LOG_TRIES = 10, 2
NO_NEW_PRIVILEGES = (
    'no-new-privileges is not set for its engine, and Swarm sets it for no service: put {"no-new-privileges": true} '
    "into /etc/docker/daemon.json there and restart the engine (docs/cluster.md)"
)


def docker(*arguments: str, check: bool = True, text: str | None = None) -> str:
    """What the command prints. While the managers elect a leader it is tried again.

    What was done all the same is then refused, as a name that is taken. Raises Failure with the engine's line.
    """
    end = time.monotonic() + ELECTION_SECONDS
    while True:
        try:
            done = subprocess.run(["docker", *arguments], input=text, capture_output=True, text=True, timeout=900)
        except FileNotFoundError:
            raise Failure("no docker command is installed here; WAY=swarm takes one (docs/cluster.md)") from None
        if not done.returncode or not any(word in done.stderr for word in LEADERLESS) or time.monotonic() > end:
            break
        time.sleep(1)
    if done.returncode and check:
        said = (done.stderr.strip() or "failed").splitlines()[-1]
        raise Failure(f"docker {' '.join(arguments[:3])}: {said}")
    return done.stdout


def docker_json(*arguments: str) -> Any:
    return json.loads(docker(*arguments))


def where() -> str:
    return os.environ.get("DOCKER_HOST") or f"context {docker('context', 'show').strip()}"


def check_manager() -> list[str]:
    """The ids of all nodes. Raises Failure with a line where no manager answers that may decide."""
    asked = subprocess.run(["docker", "info", "--format", "{{json .Swarm}}"], capture_output=True, text=True)
    if asked.returncode or not asked.stdout.startswith("{"):
        raise Failure(f"{where()}: no engine answers; set DOCKER_HOST=ssh://user@manager, or choose a Docker context")
    swarm = json.loads(asked.stdout)
    if swarm["LocalNodeState"] not in ("active", "locked") and not swarm.get("ControlAvailable"):
        raise Failure(f"{where()}: this engine is in no swarm; docker swarm init makes one (docs/cluster.md)")
    if not swarm.get("ControlAvailable"):
        managers = ", ".join(each["Addr"].rpartition(":")[0] for each in swarm.get("RemoteManagers") or [])
        raise Failure(f"{where()}: this node is a worker; ask a manager: {managers}")
    ids = docker("node", "ls", "--quiet", check=False).split()
    if not ids:
        raise Failure(
            "the swarm has no leader: more than half of its managers must answer. What runs, serves on; nothing can be "
            "deployed until they are back (docs/cluster.md)"
        )
    return ids


def nodes() -> list[dict[str, Any]]:
    """As the manager knows them. Raises Failure where none answers that may decide.

    A new leader has to hear of each node, or not to for some 15 s: an update would wait for an unknown one for good.
    """
    end = time.monotonic() + ELECTION_SECONDS
    while True:
        found: list[dict[str, Any]] = docker_json("node", "inspect", *check_manager())
        if all(node["Status"]["State"] != "unknown" for node in found) or time.monotonic() > end:
            return found
        time.sleep(1)


def here() -> str:
    """The id of the node that is asked."""
    return docker("info", "--format", "{{.Swarm.NodeID}}").strip()


def serving(nodes: list[dict[str, Any]]) -> dict[str, str]:
    """The names of the nodes that take containers now, by their ids."""
    return {
        node["ID"]: node["Description"]["Hostname"]
        for node in nodes
        if node["Status"]["State"] == "ready" and node["Spec"]["Availability"] == "active"
    }


def services(stack: str = "") -> list[dict[str, Any]]:
    ids = docker("service", "ls", "--quiet", "--filter", f"label={NAMESPACE}={stack or project()}").split()
    found: list[dict[str, Any]] = docker_json("service", "inspect", *ids) if ids else []
    return found


def tasks(service: str) -> list[dict[str, Any]]:
    ids = docker("service", "ps", "--quiet", "--no-trunc", service).split()
    if not ids:
        return []
    # One that is just gone is not found, and fails the command that shows the others all the same.
    found: list[dict[str, Any]] = json.loads(docker("inspect", "--type", "task", *ids, check=False) or "[]")
    return found


def log(of: str, *options: str) -> list[str]:
    """The lines of a service, or of a task, on all nodes that answer. Where they have no end it says so, and ends."""
    lines: list[str] = []
    for _ in range(LOG_TRIES):
        lines, whole = _log_once(["docker", "service", "logs", "--raw", *options, of])
        if whole:
            return lines
    fault = f"--- the log of {of} has not come to its end: lines of a node may be missing"
    print(f"{fault}; docker node ls shows whether one does not answer; ask again", file=sys.stderr, flush=True)
    return lines


def _log_once(command: list[str]) -> tuple[list[str], bool]:
    """What the command prints, and whether that is all: else no more has come for LOG_SILENCE_SECONDS."""
    said, whole = b"", False
    # The app logs to its error output.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as asked:
        assert asked.stdout is not None
        while not whole and select.select([asked.stdout], [], [], LOG_SILENCE_SECONDS)[0]:
            part = os.read(asked.stdout.fileno(), 65536)
            said += part
            whole = not part
        asked.kill()
    return said.decode(errors="replace").splitlines(), whole


class Patience:
    """Which nodes are done, and whether the next one still has time: it begins anew with each."""

    def __init__(self, seconds: float) -> None:
        self.done: set[str] = set()
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def note(self, done: set[str]) -> set[str]:
        """These are done, by their ids; returns those of them that were not before."""
        new = done - self.done
        if new:
            self.done |= new
            self._end = time.monotonic() + self._seconds
        return new

    def is_over(self) -> bool:
        return time.monotonic() > self._end


def check_nodes(nodes: list[dict[str, Any]], made: StackFile) -> None:
    """Raises Failure where a node cannot run its part: its memory."""
    needs = 0
    for service in made.document["services"].values():
        if service["deploy"].get("mode") == "global":
            limits = service["deploy"].get("resources", {}).get("limits", {})
            twice = service["deploy"]["update_config"]["order"] == "start-first"
            needs += bytes_of(str(limits.get("memory", 0))) * (1 + twice)
    for node in nodes:
        has = node["Description"]["Resources"]["MemoryBytes"]
        if node["ID"] in serving(nodes) and has < needs:
            raise Failure(
                f"{node['Description']['Hostname']} has {has >> 20} MiB of memory, and its part of the stack may take "
                f"{needs >> 20} MiB, with the app twice while it is replaced: lower NGINX_MEMORY and APP_MEMORY "
                "(docs/limits.md), or drain that node"
            )


def check_platforms(nodes: list[dict[str, Any]], image: str, platform: str) -> None:
    """Raises Failure where a node has another architecture than the image."""
    for node in nodes:
        has = node["Description"]["Platform"]["Architecture"]
        if node["ID"] in serving(nodes) and PLATFORMS.get(has, has) != platform:
            raise Failure(
                f"{node['Description']['Hostname']} is {PLATFORMS.get(has, has)}, and {image} is for {platform}: drain "
                "that node, or build on a machine of its kind"
            )


def wants_no_new_privileges(config: dict[str, Any]) -> bool:
    """`docker stack deploy` drops it, so the engines have to say it for all containers."""
    return any("no-new-privileges:true" in (s.get("security_opt") or []) for s in config["services"].values())


def check_engine(config: dict[str, Any]) -> None:
    """The manager's, at once. No manager knows how the other engines are set: try_on_all_nodes() sees."""
    has = docker("info", "--format", "{{.SecurityOptions}}")
    if wants_no_new_privileges(config) and "no-new-privileges" not in has:
        raise Failure(f"{where()}: {NO_NEW_PRIVILEGES}")


def try_on_all_nodes(image: str, no_new_privileges: bool, settings: StackSettings) -> None:
    """Each node pulls the app's image and runs a word in it. Raises Failure for the node that cannot, or may do more.

    Before anything is replaced: a node that fails later has been half updated.
    """
    service = f"{project()}_trial"
    look = "import sys; sys.exit('NoNewPrivs:\\t1' not in open('/proc/self/status').read())"
    docker("service", "rm", service, check=False)
    options = ["--detach", "--quiet", "--with-registry-auth", "--mode", "global-job", "--restart-condition", "none"]
    command = ["python", "-c", look if no_new_privileges else ""]
    docker("service", "create", *options, "--name", service, image, *command)
    seconds = settings.ready_seconds + settings.stop_grace_seconds
    patience = Patience(seconds)
    try:
        while True:
            names, trials = serving(nodes()), tasks(service)
            for task in trials:
                state, name = task["Status"]["State"], names.get(task.get("NodeID", ""), "")
                if state == "failed" and task["Status"].get("ContainerStatus", {}).get("ExitCode") == 1 and name:
                    raise Failure(f"{name}: {NO_NEW_PRIVILEGES}")
                if state in ("failed", "rejected") and name:
                    raise Failure(f"{name} cannot run {image}: {task['Status'].get('Err', 'it has ended')}")
            patience.note({task["NodeID"] for task in trials if task["Status"]["State"] == "complete"})
            if set(names) <= patience.done:
                return
            if patience.is_over():
                lacking = ", ".join(names[node] for node in set(names) - patience.done)
                raise Failure(f"{lacking}: {image} was not pulled and run within {seconds:g} s; nothing is changed")
            time.sleep(0.2)
    finally:
        docker("service", "rm", service, check=False)
