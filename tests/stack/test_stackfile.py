"""What becomes of docker-compose.yml on a swarm; each case is what `docker compose config` says of a service."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.server.settings import SettingsError, read
from stack import cluster, swarm
from stack.console import Failure
from stack.settings import GIVEN, StackSettings, rows
from stack.stackfile import generate, put_into_image


def config(**services: dict[str, Any]) -> dict[str, Any]:
    for name, service in services.items():
        service.setdefault("image", f"{name}:1")
        service.setdefault("networks", {"app": None})
    return {"services": services, "networks": {"app": {"internal": True}}, "volumes": {"data": {"name": "x_data"}}}


def test_each_value_of_a_service_is_carried_over() -> None:
    limits = {"cpus": 1.5, "memory": "1024", "pids": 7}
    kept = {"cap_drop": ["ALL"], "read_only": True, "user": "101:101", "sysctls": {"a": "1"}, "stop_grace_period": "9s",
            "healthcheck": {"test": ["CMD", "x"]}, "logging": {"driver": "json-file"}, "command": ["x"]}  # fmt: skip
    made = generate(config(app={**kept, "environment": {"A": "1"}, "deploy": {"resources": {"limits": limits}}}), {})
    service = made.document["services"]["app"]
    assert {key: service[key] for key in kept} == kept
    assert service["environment"] == {"A": "1"}
    assert service["deploy"]["resources"]["limits"] == {"cpus": "1.5", "memory": "1024", "pids": 7}
    assert service["deploy"]["mode"] == "global"
    assert service["deploy"]["update_config"]["order"] == "start-first"
    assert service["deploy"]["update_config"]["failure_action"] == "rollback"


def test_a_tmpfs_is_a_mount_with_its_size() -> None:
    made = generate(config(app={"tmpfs": ["/tmp:uid=1,size=2m"]}), {})
    assert made.document["services"]["app"]["volumes"] == [
        {"type": "tmpfs", "target": "/tmp", "tmpfs": {"size": 2 << 20}}
    ]


def test_a_port_is_each_nodes_own_and_its_service_never_overlaps() -> None:
    port = {"mode": "ingress", "target": 80, "published": "8080", "protocol": "tcp"}
    service = generate(config(nginx={"ports": [port]}), {}).document["services"]["nginx"]
    assert service["ports"] == [{"target": 80, "published": 8080, "protocol": "tcp", "mode": "host"}]
    assert service["deploy"]["update_config"]["order"] == "stop-first"


def test_what_is_published_on_loopback_is_left_out_with_what_needs_it() -> None:
    port = {"host_ip": "127.0.0.1", "target": 1, "published": "1", "protocol": "tcp"}
    made = generate(config(app={}, web={"ports": [port]}, web_worker={"depends_on": {"web": {}}}), {})
    assert list(made.document["services"]) == ["app"]
    assert list(made.left_out) == ["web", "web_worker"]


def test_files_travel_by_their_content_and_private_ones_as_secrets(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("one")
    (tmp_path / "site.pem").write_text("key")

    def names() -> tuple[str, str]:
        bind = {"type": "bind", "source": str(tmp_path), "target": "/there"}
        made = generate(config(nginx={"user": "101:101", "volumes": [bind]}), {})
        service = made.document["services"]["nginx"]
        (file,), (secret,) = service["configs"], service["secrets"]
        assert (file["target"], secret["target"]) == ("/there/a.conf", "/there/site.pem")
        assert (secret["uid"], secret["gid"], secret["mode"]) == ("101", "101", 0o400)
        return file["source"], secret["source"]

    before = names()
    (tmp_path / "a.conf").write_text("two")
    after = names()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_the_order_of_a_deploy_is_that_of_depends_on() -> None:
    made = generate(
        config(
            nginx={"depends_on": {"app": {}}},
            app={"depends_on": {"migrate": {}}},
            migrate={"restart": "no", "depends_on": {"database": {}}, "deploy": {"replicas": 1}},
            database={},
        ),
        {},
    )
    assert made.steps == [["database"], ["migrate"], ["app"], ["nginx"]]
    assert made.lasting() == ["nginx", "app", "database"]
    assert made.once == ["migrate"]
    assert json.loads(made.part(["database"]))["networks"] == {"app": {"driver": "overlay", "internal": True}}


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ({"privileged": True}, "app: Swarm has no privileged"),
        ({"network_mode": "host"}, "app: Swarm has no network_mode"),
        ({"security_opt": ["seccomp=unconfined"]}, "app: of security_opt"),
        ({"deploy": {"replicas": 2}}, "app: replicas: 2"),
        ({"networks": {"app": {"ipv4_address": "10.0.0.7"}}}, "app: on a network Swarm gives the addresses"),
        ({"volumes": [{"type": "bind", "source": "/nowhere", "target": "/x"}]}, "app: /nowhere is not there"),
        ({"volumes": [{"type": "bind", "source": "/dev/null", "target": "/x"}]}, "app: /dev/null is no file"),
        ({"tmpfs": ["/tmp:size=much"]}, "much: must be a number"),
    ],
)
def test_what_swarm_cannot_do_is_refused_by_name(service: dict[str, Any], said: str) -> None:
    with pytest.raises(Failure, match=re.escape(said)):
        generate(config(app=service), {})


def test_a_service_with_a_volume_has_to_be_pinned_to_a_node() -> None:
    volume = {"type": "volume", "source": "data", "target": "/data"}
    with pytest.raises(Failure, match="database: its volume data is a folder of one node"):
        generate(config(database={"volumes": [volume]}), {})
    pinned = {"placement": {"constraints": ["node.hostname == node1"]}}
    made = generate(config(database={"volumes": [volume], "deploy": pinned}), {})
    assert made.document["services"]["database"]["deploy"]["update_config"]["order"] == "stop-first"


def node(name: str, memory: int = 1 << 40, architecture: str = "x86_64", state: str = "ready") -> dict[str, Any]:
    described = {"Hostname": name, "Resources": {"MemoryBytes": memory}, "Platform": {"Architecture": architecture}}
    return {"ID": name, "Description": described, "Status": {"State": state}, "Spec": {"Availability": "active"}}


def test_a_node_that_cannot_run_its_part_is_named() -> None:
    made = generate(config(app={"deploy": {"resources": {"limits": {"memory": str(600 << 20)}}}}), {})
    cluster.check_nodes([node("a"), node("off", memory=1, state="down")], made)
    with pytest.raises(Failure, match=r"^small has 1024 MiB of memory, and its part of the stack may take 1200 MiB"):
        cluster.check_nodes([node("a"), node("small", memory=1 << 30)], made)
    cluster.check_platforms([node("a")], "x", "amd64")
    with pytest.raises(Failure, match=r"^arm is arm64, and x is for amd64"):
        cluster.check_platforms([node("a"), node("arm", architecture="aarch64")], "x", "amd64")


def test_the_image_is_in_the_registry_that_the_row_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "shop")
    settings = read(StackSettings, GIVEN | rows() | {"REGISTRY": "registry.example.com/team"})
    assert swarm.repository(settings, "app") == "registry.example.com/team/shop-app"


@pytest.mark.parametrize("registry", ["https://registry.example.com", "Registry", "registry.example.com/"])
def test_a_registry_is_a_host_and_a_path(registry: str) -> None:
    with pytest.raises(SettingsError, match=f"REGISTRY={re.escape(registry)}: must be a registry and a path"):
        read(StackSettings, GIVEN | rows() | {"REGISTRY": registry})


def test_static_files_do_not_take_the_place_of_a_build_of_your_own() -> None:
    with pytest.raises(Failure, match="nginx has a build of your own"):
        put_into_image({"build": {"context": "."}, "volumes": []})
