"""The stack on the machines of a Docker Swarm. Commands go to a manager: DOCKER_HOST or the chosen Docker context.

`docker stack deploy` ends with status 0 whatever becomes of the new version, so what its tasks say is asked here.
"""

from __future__ import annotations

import base64
import getpass
import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stack import certificate, compose
from stack.alone import alone
from stack.console import Failure, app_fault, say
from stack.settings import StackSettings, project
from stack.stackfile import StackFile, bytes_of, generate

PLATFORMS = {"x86_64": "amd64", "aarch64": "arm64"}
NAMESPACE = "com.docker.stack.namespace"


def _docker(*arguments: str, check: bool = True, text: str | None = None) -> str:
    try:
        done = subprocess.run(["docker", *arguments], input=text, capture_output=True, text=True, timeout=900)
    except FileNotFoundError:
        raise Failure("no docker command is installed here; WAY=swarm takes one (docs/cluster.md)") from None
    if done.returncode and check:
        said = (done.stderr.strip() or "failed").splitlines()[-1]
        raise Failure(f"docker {' '.join(arguments[:3])}: {said}")
    return done.stdout


def _json(*arguments: str) -> Any:
    return json.loads(_docker(*arguments))


def _where() -> str:
    return os.environ.get("DOCKER_HOST") or f"context {_docker('context', 'show').strip()}"


def manager() -> list[dict[str, Any]]:
    """The nodes, as the manager knows them. Raises Failure with a line where no manager answers that may decide."""
    asked = subprocess.run(["docker", "info", "--format", "{{json .Swarm}}"], capture_output=True, text=True)
    if asked.returncode or not asked.stdout.startswith("{"):
        raise Failure(f"{_where()}: no engine answers; set DOCKER_HOST=ssh://user@manager, or choose a Docker context")
    swarm = json.loads(asked.stdout)
    if swarm["LocalNodeState"] not in ("active", "locked") and not swarm.get("ControlAvailable"):
        raise Failure(f"{_where()}: this engine is in no swarm; docker swarm init makes one (docs/cluster.md)")
    if not swarm.get("ControlAvailable"):
        managers = ", ".join(each["Addr"].rpartition(":")[0] for each in swarm.get("RemoteManagers") or [])
        raise Failure(f"{_where()}: this node is a worker; ask a manager: {managers}")
    listed = subprocess.run(["docker", "node", "ls", "--quiet"], capture_output=True, text=True)
    if listed.returncode:
        raise Failure(
            "the swarm has no leader: more than half of its managers must answer. What runs, serves on; nothing can be "
            "deployed until they are back (docs/cluster.md)"
        )
    found: list[dict[str, Any]] = _json("node", "inspect", *listed.stdout.split())
    return found


def _serving(nodes: list[dict[str, Any]]) -> dict[str, str]:
    """The names of the nodes that take containers now, by their ids."""
    return {
        node["ID"]: node["Description"]["Hostname"]
        for node in nodes
        if node["Status"]["State"] == "ready" and node["Spec"]["Availability"] == "active"
    }


def _configuration(settings: StackSettings) -> dict[str, Any]:
    """What Compose makes of its files. Raises Failure for a row that Swarm cannot honour."""
    if not settings.registry:
        raise Failure("REGISTRY is empty: the nodes pull the app's image from it; set it, as registry.example.com/team")
    if settings.sticky_sessions != "none":
        raise Failure(
            f"STICKY_SESSIONS={settings.sticky_sessions} with WAY=swarm: nginx asks its own machine's app first; let "
            "the balancer in front keep a client on one node, and set STICKY_SESSIONS=none"
        )
    if settings.tls == "acme":
        raise Failure(
            "TLS=acme with WAY=swarm: each node would ask the CA for a certificate of its own; set TLS=files, with a "
            "certificate that was made elsewhere (docs/cluster.md)"
        )
    if settings.app_replicas != 1:
        raise Failure(
            f"APP_REPLICAS={settings.app_replicas} with WAY=swarm: each node has one app container; set "
            "APP_REPLICAS=1, and WORKERS for the CPUs of a node"
        )
    certificate.prepare(settings, in_compose=True)
    compose.check_configuration()
    return compose.configuration()


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
        if node["ID"] in _serving(nodes) and has < needs:
            raise Failure(
                f"{node['Description']['Hostname']} has {has >> 20} MiB of memory, and its part of the stack may take "
                f"{needs >> 20} MiB, with the app twice while it is replaced: lower NGINX_MEMORY and APP_MEMORY "
                "(docs/limits.md), or drain that node"
            )


def check_platforms(nodes: list[dict[str, Any]], image: str, platform: str) -> None:
    """Raises Failure where a node has another architecture than the image."""
    for node in nodes:
        has = node["Description"]["Platform"]["Architecture"]
        if node["ID"] in _serving(nodes) and PLATFORMS.get(has, has) != platform:
            raise Failure(
                f"{node['Description']['Hostname']} is {PLATFORMS.get(has, has)}, and {image} is for {platform}: drain "
                "that node, or build on a machine of its kind"
            )


def _check_engine(config: dict[str, Any]) -> None:
    """`docker stack deploy` drops no-new-privileges, so the engines have to say it for all containers."""
    asked = any("no-new-privileges:true" in (s.get("security_opt") or []) for s in config["services"].values())
    if asked and "no-new-privileges" not in _docker("info", "--format", "{{.SecurityOptions}}"):
        raise Failure(
            'no-new-privileges is not set for this engine, and Swarm sets it for no service: put {"no-new-privileges": '
            "true} into /etc/docker/daemon.json of each node and restart its engine (docs/cluster.md)"
        )


def _services() -> list[dict[str, Any]]:
    ids = _docker("service", "ls", "--quiet", "--filter", f"label={NAMESPACE}={project()}").split()
    found: list[dict[str, Any]] = _json("service", "inspect", *ids) if ids else []
    return found


def repository(settings: StackSettings, service: str) -> str:
    """The name of this service's image, without a tag."""
    return f"{settings.registry}/{project()}-{service}"


def _check_name(settings: StackSettings) -> bool:
    """Whether the stack is new. Raises Failure where another one has its name."""
    running = {s["Spec"]["Name"]: s["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] for s in _services()}
    mine = running.get(f"{project()}_app", "").startswith(f"{repository(settings, 'app')}:")
    if running and not mine:
        raise Failure(
            f"the swarm has another stack {project()} ({', '.join(sorted(running))}): its app is not from "
            f"{repository(settings, 'app')}; set COMPOSE_PROJECT_NAME to a name of your own"
        )
    return not running


@contextmanager
def _only_deploy() -> Iterator[None]:
    """One deploy of this stack at a time, from whichever machine: a name in Swarm can be given once."""
    name = f"{project()}_deploying"
    who = f"{getpass.getuser()}@{socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}"
    created = subprocess.run(
        ["docker", "config", "create", name, "-"], input=who, capture_output=True, text=True
    )  # fmt: skip
    if created.returncode:
        if "AlreadyExists" not in created.stderr:
            raise Failure(created.stderr.strip())
        other = _docker("config", "inspect", "--format", "{{json .Spec.Data}}", name, check=False).strip()
        said = base64.b64decode(other.strip('"')).decode() if other else "somebody"
        raise Failure(f"another deploy of {project()} runs: {said}; where that has died: docker config rm {name}")
    try:
        yield
    finally:
        _docker("config", "rm", name, check=False)


def _build(config: dict[str, Any], settings: StackSettings, left_out: dict[str, str]) -> dict[str, str]:
    """Build and push what the services are built from, each once; the names to deploy, with digests, by service.

    With VERSION nothing is built: the registry has it.
    """
    version = os.environ.get("VERSION", "")
    if version and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", version):
        raise Failure(f"VERSION={version}: must be a tag of the image, as 20261129-190512")
    tag = version or time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    by_recipe: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, service in config["services"].items():
        if "build" in service and name not in left_out:
            recipe = json.dumps(service["build"], sort_keys=True)
            names[name] = by_recipe.setdefault(recipe, f"{repository(settings, name)}:{tag}")
    if not version:
        services = {
            name: {"image": image, "build": config["services"][name]["build"]}
            for name, image in names.items()
            if image.startswith(f"{repository(settings, name)}:")
        }
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"name": project(), "services": services}, file)
            file.flush()
            say(f"builds and pushes {', '.join(sorted(set(names.values())))}")
            done = subprocess.run(
                ["docker", "compose", "--file", file.name, "build", "--push"],
                capture_output=True, text=True, env=_builder(),
            )  # fmt: skip
        if done.returncode:
            said = (done.stdout + done.stderr).strip()
            say(said)
            raise Failure(
                f"{said.splitlines()[-1] if said else 'build'}: not built or not pushed, so nothing is changed"
            )
    return {name: _pinned(image) for name, image in names.items()}


def _builder() -> dict[str, str]:
    """The environment for a build: by the engine of BUILD_HOST where that is set, else by the manager's."""
    return os.environ | ({"DOCKER_HOST": host} if (host := os.environ.get("BUILD_HOST")) else {})


def _pinned(image: str) -> str:
    """The image by its digest, whatever becomes of the tag. The manager pulls it, as all nodes will."""
    pulled = subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, text=True)
    if pulled.returncode:
        raise Failure(f"{image}: the manager cannot pull it: {pulled.stderr.strip().splitlines()[-1]}")
    for digest in _json("image", "inspect", "--format", "{{json .RepoDigests}}", image):
        if digest.startswith(image.rpartition(":")[0] + "@"):
            return f"{image}@{digest.partition('@')[2]}"
    raise Failure(f"{image}: the registry gave no digest")


def deploy(settings: StackSettings) -> None:
    """Build, push, replace node by node, take back what does not get ready. Raises Failure; the old serves on then."""
    with alone():
        nodes = manager()
        config = _configuration(settings)
        made = generate(config, {})
        _check_engine(config)
        check_nodes(nodes, made)
        fresh = _check_name(settings)
        if not _serving(nodes):
            raise Failure("no node takes containers: all are drained or down; docker node ls shows them")
        with _only_deploy():
            images = _build(config, settings, made.left_out)
            for image in sorted(set(images.values())):
                platform = _docker("image", "inspect", "--format", "{{.Architecture}}", image.partition("@")[0]).strip()
                check_platforms(nodes, image.partition("@")[0], platform)
            made = generate(config, images)
            for name, reason in made.left_out.items():
                say(f"left out: {name}: {reason}")
            for node in nodes:
                if node["Status"]["State"] != "ready":
                    name, state = node["Description"]["Hostname"], node["Status"]["State"]
                    say(f"{name} is {state}: it gets the version on its return")
            try:
                _deploy_in_steps(made, settings)
            except Failure:
                if fresh:
                    _remove()
                    say("nothing was left running")
                raise
            _remove_unused()


def _deploy_in_steps(made: StackFile, settings: StackSettings) -> None:
    """One step of depends_on after the other: a migration before the app, and nginx when the app is well."""
    for step in made.steps:
        _stack_deploy(made.part(step))
        for name in step:
            _watch(name, settings, once=name in made.once)
    # All of it once more, which changes nothing: what has gone from the file goes from the swarm.
    _stack_deploy(made.part(made.lasting()), "--prune")


def _stack_deploy(text: str, *options: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(text)
        file.flush()
        _docker(
            "stack",
            "deploy",
            "--detach=true",
            "--with-registry-auth",
            *options,
            "--compose-file",
            file.name,
            project(),
        )


def _tasks(service: str) -> list[dict[str, Any]]:
    ids = _docker("service", "ps", "--quiet", "--no-trunc", service).split()
    if not ids:
        return []
    # One that is just gone is not found, and fails the command that shows the others all the same.
    found: list[dict[str, Any]] = json.loads(_docker("inspect", "--type", "task", *ids, check=False) or "[]")
    return found


def _version(template: dict[str, Any]) -> Any:
    """What makes a task another than before, without what is empty: Swarm writes that now as {}, now not at all."""

    def full(value: Any) -> Any:
        return {k: full(v) for k, v in value.items() if v not in (None, {}, [])} if isinstance(value, dict) else value

    return full({key: template.get(key) for key in ("ContainerSpec", "Resources", "ForceUpdate")})


def _watch(name: str, settings: StackSettings, *, once: bool) -> None:
    """Until each node that takes containers runs the service as it is now. Raises Failure where that fails."""
    service = f"{project()}_{name}"
    seconds = settings.ready_seconds + settings.stop_grace_seconds
    if once:
        seconds = settings.app_migrate_seconds + settings.ready_seconds
    end = time.monotonic() + seconds
    seen: set[str] = set()
    while True:
        found = _json("service", "inspect", service)[0]
        state = (found.get("UpdateStatus") or {}).get("State", "")
        wanted = _version(found["Spec"]["TaskTemplate"])
        nodes = _serving(manager())
        tasks = _tasks(service)
        mine = [task for task in tasks if _version(task["Spec"]) == wanted]
        well = {
            task["NodeID"]
            for task in mine
            if task["Status"]["State"] == ("complete" if once else "running")
            and (once or task["DesiredState"] == "running")
        }
        for node in well - seen:
            say(f"{name} on {nodes.get(node, node)}: {'done' if once else 'runs'}")
            end = time.monotonic() + seconds  # for the next one
        seen |= well
        bad = [task for task in mine if task["Status"]["State"] in ("failed", "rejected")]
        if state.startswith("rollback"):
            end = _until_rolled_back(service, seconds)
            _show_failed(service)
            raise Failure(f"{name}: the new version does not start or does not get ready{_why(service)}; rolled back")
        if state in ("paused", "rollback_paused") or (bad and (once or not state) and not well):
            _show_failed(service)
            raise Failure(f"{name}: it does not start{_why(service)}")
        everywhere = "Global" in found["Spec"]["Mode"]
        count = 1 if everywhere or once else found["Spec"]["Mode"]["Replicated"]["Replicas"]
        enough = set(nodes) <= well if everywhere and not once else len(well) >= min(count, 1)
        if enough and state in ("", "completed"):
            return
        if time.monotonic() > end:
            _show_failed(service)
            lacking = ", ".join(nodes[node] for node in set(nodes) - well)
            raise Failure(
                f"{name}: not ready within {seconds:g} s on {lacking or 'any node'}; docker service ps {service}"
            )
        time.sleep(0.3)


def _until_rolled_back(service: str, seconds: float) -> float:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = (_json("service", "inspect", service)[0].get("UpdateStatus") or {}).get("State", "")
        if state in ("rollback_completed", "rollback_paused"):
            break
        time.sleep(0.3)
    return end


def _failed(service: str) -> list[dict[str, Any]]:
    tasks = [task for task in _tasks(service) if task["Status"].get("Err") or task["Status"]["State"] == "failed"]
    return sorted(tasks, key=lambda task: str(task["CreatedAt"]))[-1:]


def _log(task: dict[str, Any]) -> str:
    asked = subprocess.run(
        ["docker", "service", "logs", "--raw", "--tail", "15", task["ID"]], capture_output=True, text=True, timeout=60
    )
    return (asked.stdout + asked.stderr).strip()


def _why(service: str) -> str:
    for task in _failed(service):
        return f" ({app_fault(_log(task)) or task['Status'].get('Err', 'it has ended')})"
    return ""


def _show_failed(service: str) -> None:
    for task in _failed(service):
        say(f"--- {service}: {task['Status'].get('Err', '')}; the end of its log:")
        say(_log(task))


def _remove_unused() -> None:
    """Configs and secrets that neither the services nor their version before name."""
    used = json.dumps(_services())
    for kind in ("config", "secret"):
        listed = _docker(kind, "ls", "--filter", f"label={NAMESPACE}={project()}", "--format", "{{.Name}}").split()
        if unused := [name for name in listed if json.dumps(name) not in used]:
            _docker(kind, "rm", *unused, check=False)


def _remove() -> None:
    """The stack, and what docker stack rm does not wait for: a network can be removed when its containers are gone."""
    _docker("stack", "rm", "--detach=false", project(), check=False)


def up(settings: StackSettings, table: dict[str, str]) -> None:
    del table
    deploy(settings)


def down(settings: StackSettings) -> None:
    del settings
    manager()
    _remove()


def ps() -> None:
    manager()
    subprocess.run(["docker", "node", "ls"])
    subprocess.run(["docker", "stack", "ps", "--filter", "desired-state=running", project()])


def logs() -> None:
    """Of nginx and the app on all nodes, each line with its node."""
    manager()
    command = ["docker", "service", "logs", "--follow", "--tail", "100"]
    both = [subprocess.Popen([*command, f"{project()}_{name}"]) for name in ("app", "nginx")]
    try:
        for each in both:
            each.wait()
    finally:
        for each in both:
            each.terminate()


def log_lines() -> Iterator[tuple[str, str]]:
    """All that nginx and the app have logged on the nodes that answer, each line with its tier."""
    manager()
    for tier in ("app", "nginx"):
        said = _docker("service", "logs", "--raw", f"{project()}_{tier}", check=False)
        yield from ((tier, line) for line in said.splitlines())


def running() -> bool:
    manager()
    return bool(_services())


def reload(settings: StackSettings, table: dict[str, str]) -> None:
    del settings, table
    raise Failure("on a swarm new code and rows come with make deploy WAY=swarm")


def check(settings: StackSettings) -> str:
    """What a deploy looks at before it changes anything. Raises Failure with a line."""
    nodes = manager()
    config = _configuration(settings)
    made = generate(config, {})
    _check_engine(config)
    check_nodes(nodes, made)
    _check_name(settings)
    return f"{len(_serving(nodes))} of {len(nodes)} nodes take containers"


def loadtest(settings: StackSettings, table: dict[str, str]) -> int:
    del settings, table
    raise Failure("WAY=swarm has no load test yet: load it from another machine, with a stack of its own there")
