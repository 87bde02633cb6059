"""The stack on the machines of a Docker Swarm. Commands go to a manager: DOCKER_HOST or the chosen Docker context.

`docker stack deploy` ends with status 0 whatever becomes of the new version, so what its tasks say is asked here.
"""

from __future__ import annotations

import base64
import getpass
import json
import os
import re
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cryptography.fernet import Fernet

from app.server import budget, space
from stack import certificate, cluster, compose, static
from stack.alone import alone
from stack.console import Failure, app_fault, say, wait_for
from stack.settings import ROOT, StackSettings, project
from stack.stackfile import (
    REPORTS,
    StackFile,
    generate,
    give,
    load_configuration,
    put_into_image,
    share_certificate,
)

# States of a task whose container does not run any more.
ENDED = ("complete", "shutdown", "failed", "rejected", "orphaned", "remove")
# How long a key that Swarm keeps is in use. Who gets that of tickets can read what clients of TLS 1.2 said meanwhile.
KEY_DAYS = 7


def _configuration(settings: StackSettings, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """What Compose makes of its files, for these nodes. Raises Failure for a row that Swarm cannot honour."""
    if not settings.registry:
        raise Failure("REGISTRY is empty: the nodes pull the app's image from it; set it, as registry.example.com/team")
    if settings.sticky_sessions != "none":
        raise Failure(
            f"STICKY_SESSIONS={settings.sticky_sessions} with WAY=swarm: nginx asks its own machine's app first; let "
            "the balancer in front keep a client on one node, and set STICKY_SESSIONS=none"
        )
    if settings.app_replicas != 1:
        raise Failure(
            f"APP_REPLICAS={settings.app_replicas} with WAY=swarm: each node has one app container; set "
            "APP_REPLICAS=1, and WORKERS for the CPUs of a node"
        )
    # An app on each node: the database and nginx's list have to bear as many as there are nodes, and a deploy's.
    count = len(nodes)
    if broken := space.violations(settings.model_copy(update={"app_replicas": count})):
        raise Failure("\n".join(f"{count} nodes count as APP_REPLICAS={count}: {line}" for line in broken))
    # An engine that stops tells nginx and the app in the same moment, and leaves the network between the nodes at once:
    # what nginx, refused here, asks another node's app is lost.
    delay = max(settings.stop_delay_seconds, settings.client_keepalive_min_seconds)
    if broken := budget.violations(settings.model_copy(update={"stop_delay_seconds": delay})):
        raise Failure(
            f"CLIENT_KEEPALIVE_MIN_SECONDS makes STOP_DELAY_SECONDS={delay} with WAY=swarm: {'; '.join(broken)}"
        )
    certificate.prepare(settings, in_compose=True)
    static.check(settings)
    compose.check_configuration()
    config = compose.configuration()
    for name in ("app", "nginx"):
        config["services"][name]["environment"]["APP_REPLICAS"] = str(count)
    config["services"]["app"]["environment"]["STOP_DELAY_SECONDS"] = str(delay)
    if settings.static_root:
        put_into_image(config["services"]["nginx"])
    if settings.tls == "acme":
        share_certificate(config, _asks_the_ca(nodes))
    return config


def _asks_the_ca(nodes: list[dict[str, Any]]) -> str:
    """The node that does so far, or else the manager that is asked, or any: one that takes containers."""
    serving = cluster.serving(nodes)
    so_far = [
        constraint.removeprefix("node.id == ")
        for service in cluster.services()
        if service["Spec"]["Name"] == f"{project()}_acme"
        for constraint in service["Spec"]["TaskTemplate"]["Placement"].get("Constraints") or []
    ]
    here = cluster.here()
    return next((node for node in (*so_far, here, *serving) if node in serving), here)


def repository(settings: StackSettings, service: str) -> str:
    """The name of this service's image, without a tag."""
    return f"{settings.registry}/{project()}-{service}"


def _check_name(settings: StackSettings) -> bool:
    """Whether the stack is new. Raises Failure where another one has its name."""
    running = {s["Spec"]["Name"]: s["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] for s in cluster.services()}
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
    try:
        cluster.docker("config", "create", name, "-", text=who)
    except Failure:
        other = cluster.docker("config", "inspect", "--format", "{{json .Spec.Data}}", name, check=False).strip()
        said = base64.b64decode(other.strip('"')).decode()
        if not said:
            raise
        if said != who:  # else it was done, and a leader that died could not say so
            raise Failure(
                f"another deploy of {project()} runs: {said}; where that has died: docker config rm {name}"
            ) from None
    try:
        yield
    finally:
        cluster.docker("config", "rm", name, check=False)


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
    for digest in cluster.docker_json("image", "inspect", "--format", "{{json .RepoDigests}}", image):
        if digest.startswith(image.rpartition(":")[0] + "@"):
            return f"{image}@{digest.partition('@')[2]}"
    raise Failure(f"{image}: the registry gave no digest")


def _checked(settings: StackSettings) -> tuple[list[dict[str, Any]], dict[str, Any], StackFile, bool]:
    """The nodes, what Compose makes of its files, Swarm's file of that, and whether the stack is new.

    All that is known before anything is changed has been looked at. Raises Failure with a line.
    """
    nodes = cluster.nodes()
    config = _configuration(settings, nodes)
    made = generate(config, {})
    cluster.check_engine(config)
    cluster.check_nodes(nodes, made)
    return nodes, config, made, _check_name(settings)


def deploy(settings: StackSettings) -> None:
    """Build, push, replace node by node, take back what does not get ready. Raises Failure; the old serves on then."""
    with alone():
        nodes, config, made, fresh = _checked(settings)
        if not cluster.serving(nodes):
            raise Failure("no node takes containers: all are drained or down; docker node ls shows them")
        with _only_deploy():
            images = _build(config, settings, made.left_out)
            for tag in sorted({image.partition("@")[0] for image in images.values()}):
                platform = cluster.docker("image", "inspect", "--format", "{{.Architecture}}", tag).strip()
                cluster.check_platforms(nodes, tag, platform)
            cluster.try_on_all_nodes(images["app"], cluster.wants_no_new_privileges(config), settings)
            if settings.tls != "off":
                # The 80 bytes that nginx wants.
                key = _key("ticket-key", secrets.token_urlsafe(60))
                give(config, key, "nginx", "ticket-key", "NGINX_TICKET_KEY")
            if settings.tls == "acme":
                key = _key("seal", Fernet.generate_key().decode())
                for name in ("acme", "acme-copy"):
                    give(config, key, name, "seal", "RENEW_SEAL")
            made = generate(config, images)
            for name, reason in made.left_out.items():
                say(f"left out: {name}: {reason}")
            for node in nodes:
                if node["Status"]["State"] != "ready":
                    name, state = node["Description"]["Hostname"], node["Status"]["State"]
                    say(f"{name} is {state}: it gets the version on its return")
            try:
                _deploy_in_steps(made, settings, fresh)
            except Failure:
                if fresh:
                    _remove(settings)
                    say("nothing was left running")
                raise
            _remove_unused()


def _key(kind: str, new: str) -> str:
    """The name of Swarm's secret with a key of this kind: the last one, or else `new` where that is too old.

    Not a new one each time: it takes other containers. And not from the certificate's key, which lasts for months: it
    would open what was recorded in all of them.
    """
    prefix = f"{project()}_{kind}-"
    now = time.time()
    oldest, newest = (
        prefix + time.strftime("%Y%m%d-%H%M%S", time.gmtime(moment)) for moment in (now - KEY_DAYS * 86_400, now)
    )
    listed = cluster.docker("secret", "ls", "--filter", f"name={prefix}", "--format", "{{.Name}}").split()
    if fresh := [name for name in listed if oldest < name <= newest]:
        return max(fresh)
    cluster.docker("secret", "create", "--label", f"{cluster.NAMESPACE}={project()}", newest, "-", text=new)
    return newest


def _deploy_in_steps(made: StackFile, settings: StackSettings, fresh: bool) -> None:
    """One step of depends_on after the other: a migration before the app, and nginx when the app is well."""
    for step in made.steps:
        _stack_deploy(made.part(step))
        try:
            for name in step:
                _watch(name, settings, once=name in made.once)
        finally:
            if "app" in step and settings.cache_mb and not fresh:
                # What nginx keeps may be other code's. No manager reaches into a node's container: a new one is empty.
                cluster.docker("service", "update", "--detach", "--force", f"{project()}_nginx")
    # All of it once more, which changes nothing: what has gone from the file goes from the swarm.
    _stack_deploy(made.part(made.lasting()), "--prune")


def _stack_deploy(text: str, *options: str, stack: str = "") -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(text)
        file.flush()
        cluster.docker(
            "stack",
            "deploy",
            "--detach=true",
            "--with-registry-auth",
            *options,
            "--compose-file",
            file.name,
            stack or project(),
        )


def _version(template: dict[str, Any]) -> Any:
    """What makes a task another than before, without what is empty: Swarm writes that now as {}, now not at all."""

    def full(value: Any) -> Any:
        return {k: full(v) for k, v in value.items() if v not in (None, {}, [])} if isinstance(value, dict) else value

    return full({key: template.get(key) for key in ("ContainerSpec", "Resources", "ForceUpdate")})


def _watch(name: str, settings: StackSettings, *, once: bool) -> None:
    """Until each node that takes containers runs the service as it is now, and as it was no more.

    Raises Failure where that fails.
    """
    service = f"{project()}_{name}"
    seconds = settings.ready_seconds + settings.stop_grace_seconds
    if once:
        seconds = settings.app_migrate_seconds + settings.ready_seconds
    patience = cluster.Patience(seconds)
    while True:
        found = cluster.docker_json("service", "inspect", service)[0]
        state = (found.get("UpdateStatus") or {}).get("State", "")
        wanted = _version(found["Spec"]["TaskTemplate"])
        nodes = cluster.serving(cluster.nodes())
        tasks = cluster.tasks(service)
        mine = [task for task in tasks if _version(task["Spec"]) == wanted]
        well = {
            task["NodeID"]
            for task in mine
            if task["Status"]["State"] == ("complete" if once else "running")
            and (once or task["DesiredState"] == "running")
        }
        for node in patience.note(well):
            say(f"{name} on {nodes.get(node, node)}: {'done' if once else 'runs'}")
        bad = [task for task in mine if task["Status"]["State"] in ("failed", "rejected")]
        if state.startswith("rollback"):
            _until_rolled_back(service, seconds)
            _show_failed(service)
            raise Failure(f"{name}: the new version does not start or does not get ready{_why(service)}; rolled back")
        if state in ("paused", "rollback_paused") or (bad and (once or not state) and not well):
            _show_failed(service)
            raise Failure(f"{name}: it does not start{_why(service)}")
        everywhere = "Global" in found["Spec"]["Mode"]
        count = 1 if everywhere or once else found["Spec"]["Mode"]["Replicated"]["Replicas"]
        enough = set(nodes) <= well if everywhere and not once else len(well) >= min(count, 1)
        leaving = {
            task["NodeID"]
            for task in tasks
            if task["Status"]["State"] == "running" and task["DesiredState"] != "running" and task["NodeID"] in nodes
        }
        if enough and not leaving and state in ("", "completed"):
            return
        if patience.is_over():
            _show_failed(service)
            lacking = ", ".join(nodes[node] for node in (set(nodes) - well) | leaving) or "any node"
            raise Failure(f"{name}: not replaced within {seconds:g} s on {lacking}; docker service ps {service}")
        time.sleep(0.3)


def _until_rolled_back(service: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = (cluster.docker_json("service", "inspect", service)[0].get("UpdateStatus") or {}).get("State", "")
        if state in ("rollback_completed", "rollback_paused"):
            return
        time.sleep(0.3)


def _failed(service: str) -> list[dict[str, Any]]:
    tasks = [
        task for task in cluster.tasks(service) if task["Status"].get("Err") or task["Status"]["State"] == "failed"
    ]
    return sorted(tasks, key=lambda task: str(task["CreatedAt"]))[-1:]


def _log(task: dict[str, Any]) -> str:
    return "\n".join(cluster.log(task["ID"], "--tail", "15"))


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
    used = json.dumps(cluster.services())
    for kind in ("config", "secret"):
        listed = cluster.docker(
            kind, "ls", "--filter", f"label={cluster.NAMESPACE}={project()}", "--format", "{{.Name}}"
        ).split()
        if unused := [name for name in listed if json.dumps(name) not in used]:
            cluster.docker(kind, "rm", *unused, check=False)


def _remove(settings: StackSettings, stack: str = "") -> None:
    """The stack, with a wait for the end of its containers: that of docker stack rm itself may have no end."""
    tasks = [task["ID"] for service in cluster.services(stack) for task in cluster.tasks(service["Spec"]["Name"])]
    remove = ("stack", "rm", "--detach=true", stack or project())
    cluster.docker(*remove, check=False)
    end = time.monotonic() + settings.stop_grace_seconds + 10
    while tasks and time.monotonic() < end:
        found = json.loads(cluster.docker("inspect", "--type", "task", *tasks, check=False) or "[]")
        tasks = [task["ID"] for task in found if task["Status"]["State"] not in ENDED]
        time.sleep(0.2)
    # The swarm keeps a network as long as a task has it.
    cluster.docker(*remove, check=False)


def up(settings: StackSettings, table: dict[str, str]) -> None:
    del table
    deploy(settings)


def down(settings: StackSettings) -> None:
    cluster.check_manager()
    _remove(settings)


def ps() -> None:
    cluster.check_manager()
    subprocess.run(["docker", "node", "ls"])
    subprocess.run(["docker", "stack", "ps", "--filter", "desired-state=running", project()])


def logs() -> None:
    """Of nginx and the app on all nodes, each line with its node."""
    cluster.check_manager()
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
    cluster.check_manager()
    for tier in ("app", "nginx"):
        yield from ((tier, line) for line in cluster.log(f"{project()}_{tier}"))


def running() -> bool:
    cluster.check_manager()
    return bool(cluster.services())


def reload(settings: StackSettings, table: dict[str, str]) -> None:
    del settings, table
    raise Failure("on a swarm new code and rows come with make deploy WAY=swarm")


def check(settings: StackSettings) -> str:
    """What a deploy looks at before it changes anything. Raises Failure with a line."""
    nodes, *_ = _checked(settings)
    return f"{len(cluster.serving(nodes))} of {len(nodes)} nodes take containers"


def loadtest(settings: StackSettings, table: dict[str, str]) -> int:
    """Locust's workers on the nodes, its master on the manager that is asked; the exit status of the run.

    A stack beside the stack, on the network of nginx: no port of it is published, and the master has no web UI.
    """
    nodes, here = cluster.nodes(), cluster.here()
    if here not in cluster.serving(nodes):
        raise Failure(
            f"{cluster.where()}: this manager takes no containers, and the report is fetched from it; ask another"
        )
    stack = f"{project()}_loadtest"
    if cluster.services(stack):
        raise Failure(f"another load test of {project()} runs; where that has died: docker stack rm {stack}")
    if settings.tls != "off":
        # As Compose does. An empty one: public CAs alone are trusted.
        certificate.trusted(settings).mkdir(parents=True, exist_ok=True)
    config = load_configuration(compose.configuration("locust-on"), here, table["LOADTEST_PROCESSES"])
    made = generate(config, _build(config, settings, {}))
    of_master = f"label=com.docker.swarm.service.name={stack}_locust"

    def master() -> str:
        states = ("--filter", "status=running", "--filter", "status=exited")
        return cluster.docker("ps", "--all", "--quiet", "--no-trunc", "--filter", of_master, *states).strip()

    try:
        _stack_deploy(made.part(made.lasting() + made.once), stack=stack)
        wait_for("the start of Locust's master", lambda: bool(master()), settings.ready_seconds)
        container = master().split()[0]
        subprocess.run(["docker", "logs", "--follow", container])
        status = int(cluster.docker("inspect", "--format", "{{.State.ExitCode}}", container))
        reports = ROOT / "reports"
        reports.mkdir(exist_ok=True)
        cluster.docker("cp", f"{container}:{REPORTS}/.", str(reports), check=status < 2)
        return status
    finally:
        _remove(settings, stack)
