"""The file for `docker stack deploy`, from what `docker compose config` makes of docker-compose.yml.

Each difference has its reason here. What Swarm cannot do is refused by name, before anything is changed: it would
ignore it without a word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.server import space
from stack.console import Failure
from stack.settings import project

Service = dict[str, Any]

# On every node; any other service has one container, or what its own `deploy` says.
EVERYWHERE = ("app", "nginx")
# Carried over as it is.
KEPT = (
    "cap_add",
    "cap_drop",
    "command",
    "dns",
    "dns_search",
    "entrypoint",
    "environment",
    "extra_hosts",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "labels",
    "logging",
    "read_only",
    "stdin_open",
    "stop_grace_period",
    "stop_signal",
    "sysctls",
    "tty",
    "ulimits",
    "user",
    "working_dir",
)
# Said to Swarm otherwise, below.
CONVERTED = ("configs", "deploy", "networks", "ports", "restart", "secrets", "security_opt", "tmpfs", "volumes")
# Done by make deploy: images are built and pushed, services deployed one after the other; profiles are chosen by now.
DONE_BEFORE = ("build", "depends_on", "develop", "profiles", "pull_policy")
RESTART = {"no": "none", "on-failure": "on-failure", "always": "any", "unless-stopped": "any"}
UNITS = {"": 1, "b": 1} | space.UNITS
# For how long after its start a task that ends counts as the new version's fault.
MONITOR = "5s"
# Where Locust's master leaves its report: in a folder that any user may write to, and that is not in memory.
REPORTS = "/var/tmp/reports"
# Swarm's own limits of what a config and a secret may hold.
MOST_BYTES = {"configs": 1_000_000, "secrets": 500_000}


@dataclass
class StackFile:
    """`document` is the whole file; `steps` are the names of its services in the order of `depends_on`.

    `once` are services that do one thing and end, as a migration; `left_out` those not deployed, with the reason.
    """

    document: dict[str, Any]
    steps: list[list[str]]
    once: list[str]
    left_out: dict[str, str]

    def part(self, names: list[str]) -> str:
        """The file with these services alone, and what they use."""
        services = {name: self.document["services"][name] for name in names}
        text = json.dumps(services)
        rest: dict[str, Any] = {}
        for kind in ("configs", "secrets", "volumes", "networks"):
            rest[kind] = {name: value for name, value in self.document[kind].items() if json.dumps(name) in text}
        return json.dumps({"version": "3.13", "services": services} | rest, indent=1)

    def lasting(self) -> list[str]:
        return [name for name in self.document["services"] if name not in self.once]


def generate(config: dict[str, Any], images: dict[str, str]) -> StackFile:
    """`config` is the JSON of `docker compose config`; `images` are the names of those that were built, by service.

    Raises Failure, a line, for what Swarm cannot honour.
    """
    left_out = dict(_left_out(config["services"]))
    chosen = {name: service for name, service in config["services"].items() if name not in left_out}
    chosen = {name: service for name, service in chosen.items() if service.get("deploy", {}).get("replicas") != 0}
    document: dict[str, Any] = {"services": {}, "configs": {}, "secrets": {}}
    for name, service in chosen.items():
        converted = _service(name, service, document, config)
        if name in images:
            converted["image"] = images[name]
        document["services"][name] = converted
    if {"app", "nginx"} <= set(chosen):
        # nginx asks the app of its own machine, by a name that only that one has, and the others where it is not there:
        # a request that rides on an idle connection to another machine is lost when that one loses its power.
        document["services"]["app"]["hostname"] = "app-{{.Node.ID}}"
        document["services"]["nginx"]["environment"]["UPSTREAM_HERE"] = "app-{{.Node.ID}}"
    if "live" in left_out and "NGINX_COUNTS" in document["services"].get("nginx", {}).get("environment", {}):
        # Nobody reads them there: a full file would be an error in nginx's log with each write.
        document["services"]["nginx"]["environment"]["NGINX_COUNTS"] = "/dev/null"
    document["volumes"] = {
        name: {key: value for key, value in (volume or {}).items() if key != "name" or volume.get("external")}
        for name, volume in config.get("volumes", {}).items()
    }
    document["networks"] = {name: _network(value or {}) for name, value in config["networks"].items()}
    # An internal network of one service leads nowhere: it was for one that is left out.
    for name, network in list(document["networks"].items()):
        members = [service for service in document["services"].values() if name in service["networks"]]
        if not members or (network.get("internal") and len(members) == 1 and len(members[0]["networks"]) > 1):
            del document["networks"][name]
            for service in members:
                del service["networks"][name]
    once = [name for name in chosen if config["services"][name].get("restart") == "no"]
    return StackFile(document, _steps(chosen), once, left_out)


def _left_out(services: dict[str, Service]) -> Iterator[tuple[str, str]]:
    """Swarm publishes on all addresses what Compose publishes on loopback; and what hangs on that alone."""
    out: set[str] = set()
    for name, service in services.items():
        if any(port.get("host_ip", "").startswith(("127.", "::1")) for port in service.get("ports", [])):
            out.add(name)
            yield name, "its port is for 127.0.0.1 alone, and Swarm would publish it to everybody"
    for name, service in services.items():
        if found := out & set(service.get("depends_on") or {}):
            yield name, f"it needs {found.pop()}"


def _steps(services: dict[str, Service]) -> list[list[str]]:
    """The names, those first that the next ones depend on."""
    left, steps = dict(services), []
    while left:
        step = [name for name, s in left.items() if not set(s.get("depends_on") or {}) & set(left)]
        steps.append(step)
        left = {name: service for name, service in left.items() if name not in step}
    return steps


def _service(name: str, service: Service, document: dict[str, Any], config: dict[str, Any]) -> Service:
    for key, value in service.items():
        if value not in (None, {}, [], "", False) and key not in (*KEPT, *CONVERTED, *DONE_BEFORE):
            raise Failure(f"{name}: Swarm has no {key}; take it out of the Compose file for WAY=swarm")
    # A null entrypoint is refused; a variable without a value is one of this shell, not of the container.
    made: Service = {key: service[key] for key in KEPT if service.get(key) is not None}
    made["environment"] = {key: value for key, value in service.get("environment", {}).items() if value is not None}
    if set(service.get("security_opt") or []) - {"no-new-privileges:true"}:
        raise Failure(f"{name}: of security_opt Swarm has none; no-new-privileges is the engines' own setting")
    made["networks"] = {}
    for network, options in (service.get("networks") or {}).items():
        if set(options or {}) - {"aliases"}:
            raise Failure(f"{name}: on a network Swarm gives the addresses itself; take {', '.join(options)} out")
        made["networks"][network] = options
    made["volumes"] = list(_mounts(name, service, made, document))
    for kind in ("configs", "secrets"):
        for entry in service.get(kind) or []:
            top = config[kind][entry["source"]]
            if not top.get("external") and "file" not in top:
                raise Failure(f"{name}: {kind} {entry['source']} must come from a file, or be external")
            target = entry.get("target") or entry["source"]
            if top.get("external"):
                document[kind][entry["source"]] = {"external": True, "name": top["name"]}
                made.setdefault(kind, []).append(entry)
            else:
                _add_file(name, kind, Path(top["file"]), target, made, document)
    # On the node's own address: the mesh of Swarm would hide the client's address, and take a hop to another machine.
    made["ports"] = [
        {"target": port["target"], "published": int(port["published"]), "protocol": port["protocol"], "mode": "host"}
        for port in service.get("ports") or []
    ]
    made["deploy"] = _deploy(name, service)
    return made


def _deploy(name: str, service: Service) -> Service:
    said = service.get("deploy", {})
    deploy: Service = {key: value for key, value in said.items() if value not in (None, {}) and key != "replicas"}
    limits = deploy.get("resources", {}).get("limits", {})
    if "cpus" in limits:
        limits["cpus"] = str(limits["cpus"])
    if "mode" not in deploy and name in EVERYWHERE:
        if said.get("replicas", 1) != 1:
            raise Failure(
                f"{name}: replicas: {said['replicas']}, but with WAY=swarm each node has one (APP_REPLICAS=1); WORKERS "
                "and more nodes make it carry more"
            )
        deploy["mode"] = "global"
    elif "mode" not in deploy:
        deploy["replicas"] = said.get("replicas", 1)
        kept = [v["source"] for v in service.get("volumes") or [] if v["type"] == "volume" and v.get("source")]
        if kept and not deploy.get("placement", {}).get("constraints") and service.get("restart") != "no":
            raise Failure(
                f"{name}: its volume {kept[0]} is a folder of one node, and Swarm may start it on any; pin it: "
                f"services.{name}.deploy.placement.constraints: [node.hostname == …]"
            )
    # By name each task has its address: one address for all takes IPVS, and knows nothing of nginx's idle connections.
    deploy.setdefault("endpoint_mode", "dnsrr")
    deploy.setdefault("restart_policy", {"condition": RESTART[service.get("restart", "no")], "delay": "1s"})
    # A port of the host and a volume are one container's at a time. Anything else overlaps: no moment without one.
    alone = bool(service.get("ports")) or (deploy.get("mode") != "global" and bool(service.get("volumes")))
    order = "stop-first" if alone else "start-first"
    step = {"parallelism": 1, "order": order, "monitor": MONITOR}
    deploy.setdefault("update_config", step | {"failure_action": "rollback"})
    deploy.setdefault("rollback_config", step | {"failure_action": "pause"})
    return deploy


def _mounts(name: str, service: Service, made: Service, document: dict[str, Any]) -> Iterator[Service]:
    # The short `tmpfs:` is ignored without a word. Of a mount it takes the size alone: whoever is in the container may
    # write to it.
    for entry in service.get("tmpfs") or []:
        target, _, options = entry.partition(":")
        size = next((word[5:] for word in options.split(",") if word.startswith("size=")), "")
        yield {"type": "tmpfs", "target": target} | ({"tmpfs": {"size": bytes_of(size)}} if size else {})
    for volume in service.get("volumes") or []:
        if volume["type"] != "bind":
            yield {key: value for key, value in volume.items() if value not in (None, {})}
            continue
        # A folder of this machine is on no other: its files travel with the stack.
        source, target = Path(volume["source"]), volume["target"]
        if not source.exists():
            raise Failure(f"{name}: {source} is not there, and should be {target} in its container")
        for file in sorted(f for f in source.rglob("*") if f.is_file()) if source.is_dir() else [source]:
            if not file.is_file():
                raise Failure(f"{name}: {file} is no file, so it cannot travel with the stack to other machines")
            inside = f"{target}/{file.relative_to(source)}" if source.is_dir() else target
            private = file.suffix in (".pem", ".key") or not file.stat().st_mode & 0o004
            _add_file(name, "secrets" if private else "configs", file, inside, made, document)


def _add_file(name: str, kind: str, file: Path, target: str, made: Service, document: dict[str, Any]) -> None:
    """By its content: what is in Swarm cannot be changed, and a name that stayed would leave the old text in place."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise Failure(f"{name}: {file}: {error.strerror}") from None
    if not 0 < len(text) <= MOST_BYTES[kind]:
        raise Failure(f"{name}: {file} has {len(text)} bytes; Swarm takes 1 to {MOST_BYTES[kind]} in {kind}")
    key = f"{re.sub(r'[^A-Za-z0-9_-]', '-', file.name)}-{hashlib.sha256(text).hexdigest()[:12]}"
    document[kind][key] = {"file": str(file)}
    entry: Service = {"source": key, "target": target, "mode": 0o555 if file.stat().st_mode & 0o100 else 0o444}
    if kind == "secrets":
        entry |= readers(made)
    made.setdefault(kind, []).append(entry)


def readers(service: Service) -> Service:
    """Who may read a secret of this service: its user alone, or whoever is in the container where the image decides."""
    uid, _, gid = str(service.get("user", "0")).partition(":")
    return {"mode": 0o400, "uid": uid, "gid": gid or uid} if uid.isdigit() and uid != "0" else {"mode": 0o444}


def _network(network: Service) -> Service:
    """Over all machines. Options of a bridge are not those of an overlay, which has IPv4 alone between containers."""
    if network.get("external"):
        return {"external": True, "name": network["name"]}
    made: Service = {"driver": "overlay"}
    if network.get("internal"):
        made["internal"] = True
    if network.get("ipam", {}).get("config"):
        made["ipam"] = {"config": [{"subnet": each["subnet"]} for each in network["ipam"]["config"]]}
    return made


def bytes_of(size: str) -> int:
    found = re.fullmatch(r"(\d+)([bkmg]?)", size.lower())
    if not found:
        raise Failure(f"{size}: must be a number with k, m or g, as 64m")
    return int(found[1]) * UNITS[found[2]]


# --- What Compose's configuration has otherwise on a swarm, before the file is made of it ----------------------------


def share_certificate(config: dict[str, Any], node: str) -> None:
    """One node's `acme` asks the CA. `acme-copy` of each has the certificate from it, and nginx of each its answers."""
    config["networks"]["renew"] = {"internal": True}
    acme, nginx = config["services"]["acme"], config["services"]["nginx"]
    config["services"]["acme-copy"] = acme | {
        "networks": {"renew": None},
        "volumes": [volume for volume in acme["volumes"] if volume.get("source") == "certificates"],
        "environment": acme["environment"] | {"RENEW_FROM": "http://acme:8000"},
        "deploy": {"mode": "global", "resources": {"limits": {"memory": "64m"}}},
    }
    # Two that write to nginx's folder could bring the old certificate back.
    acme["volumes"] = [volume for volume in acme["volumes"] if volume.get("source") != "certificates"]
    acme["environment"]["RENEW_PUBLISHED"] = f"{acme['environment']['RENEW_STATE']}/published"
    acme["networks"]["renew"] = nginx["networks"]["renew"] = None
    acme["deploy"]["placement"] = acme["deploy"].get("placement") or {"constraints": [f"node.id == {node}"]}
    nginx["environment"]["NGINX_ACME"] = "acme:8000"


def put_into_image(nginx: dict[str, Any]) -> None:
    """The folder of STATIC_ROOT: what travels as configs is small, not empty, and not thousands of files."""
    if "build" in nginx:
        raise Failure("STATIC_ROOT with WAY=swarm makes an image of nginx, and nginx has a build of your own: put the "
                      "files into that, and leave STATIC_ROOT empty")  # fmt: skip
    (mount,) = [volume for volume in nginx["volumes"] if volume["target"] == nginx["environment"]["NGINX_STATIC"]]
    nginx["volumes"].remove(mount)
    nginx["build"] = {
        "context": mount["source"],
        "dockerfile_inline": f"FROM {nginx['image']}\nCOPY . {mount['target']}\n",
    }


def give(config: dict[str, Any], key: str, name: str, kind: str, variable: str) -> None:
    """The service `name` gets the key as a file, and the file's name in the variable."""
    service, file = config["services"][name], f"/run/secrets/{kind}"
    config.setdefault("secrets", {})[kind] = {"external": True, "name": key}
    service["secrets"] = [*service.get("secrets", []), {"source": kind, "target": file} | readers(service)]
    service["environment"][variable] = file


def load_configuration(config: dict[str, Any], node: str, processes: str) -> dict[str, Any]:
    """What Compose makes of Locust's services, as a stack of their own beside that of `config`."""
    networks = {"edge": {"external": True, "name": f"{project()}_edge"}}
    both = {}
    for name in ("locust", "locust-worker"):
        service = {key: value for key, value in config["services"][name].items() if key not in ("ports", "depends_on")}
        both[name] = service | {"networks": {"edge": None}}
    limits = {name: service["deploy"]["resources"] for name, service in both.items()}
    both["locust"] |= {
        "entrypoint": ["python", "-m", "loadtest", REPORTS],
        "command": None,
        "healthcheck": None,  # it asks the web UI
        "restart": "no",
        # The report is fetched when it has ended: from what it has written, and not from memory.
        "read_only": False,
        "environment": both["locust"]["environment"] | {"LOADTEST_ELSEWHERE": "1"},
        "deploy": {"resources": limits["locust"], "placement": {"constraints": [f"node.id == {node}"]}},
    }
    both["locust-worker"] |= {
        # At the end of a run they leave with status 0, and are not to come again. What is no number the master refuses.
        "restart": "on-failure",
        "deploy": {"resources": limits["locust-worker"], "replicas": int(processes) if processes.isdigit() else 1},
    }
    return config | {"services": both, "networks": networks}
