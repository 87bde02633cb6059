"""Three machines of one Docker Swarm, as far as the kernel can tell: engines in namespaces of this host, on a switch.

Each has a network, processes, mounts and a host name of its own, so that its power and its cable can be cut. It takes
root, `ip`, `nsenter`, `unshare`, and the binaries of the Docker engine that runs here. `python -m proofs.cluster`
starts one to try things on, and stops it at Ctrl-C.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from proofs import certificates
from proofs.conftest import engine_answers, lacks, require_engine
from proofs.stack import until
from stack.cluster import ELECTION_SECONDS, LEADERLESS

BOOT = """
set -e
echo {name} >/proc/sys/kernel/hostname
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
# /sys/class/net is that of whoever mounted it; the control groups stay this host's.
mkdir /run/cgroup && mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys && mount --rbind /run/cgroup /sys/fs/cgroup && umount -l /run/cgroup
exec docker-init -s -- dockerd --data-root {folder}/docker -H unix://{folder}/docker.sock \\
    --cgroup-parent {group} --no-new-privileges={hardened} --log-level warn
"""
# As docs/cluster.md has it made before a machine joins: with IPv6 clients of IPv6 arrive as themselves.
GATEWAY = ["network", "create", "--ipv6", "--opt", "com.docker.network.bridge.name=docker_gwbridge",
           "--opt", "com.docker.network.bridge.enable_icc=false", "docker_gwbridge"]  # fmt: skip
REGISTRY_PORT = 5000


def run(*command: str, check: bool = True, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout.strip()


def engine_binaries() -> Path | None:
    """The folder with dockerd and its kin: that of PATH, or of the engine that runs."""
    if found := shutil.which("dockerd"):
        return Path(found).resolve().parent
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            exe = (process / "exe").readlink()
            if exe.name == "dockerd":
                return exe.parent
    return None


class Node:
    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster, self.number = cluster, number
        self.name = f"node{number}"
        self.namespace = f"proof-{cluster.number}-{self.name}"
        self.cable = f"c{cluster.number}-{number}"
        self.address = cluster.ipv4(number)
        self.address6 = cluster.ipv6(number)
        self.folder = cluster.folder / self.name
        self.host = f"unix://{self.folder}/docker.sock"
        self.init = 0
        self.id = ""

    def docker(self, *arguments: str, check: bool = True, **options: Any) -> str:
        """What this engine says; asked again, where it must succeed, while its swarm elects a leader."""
        end = time.monotonic() + ELECTION_SECONDS
        while True:
            try:
                return run("docker", "-H", self.host, *arguments, check=check, **options)
            except AssertionError as error:
                if not any(words in str(error) for words in LEADERLESS) or time.monotonic() > end:
                    raise
            time.sleep(1)

    def inside(self, *command: str) -> list[str]:
        """The words as a command that runs on that machine's network."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def plug(self) -> None:
        run("ip", "netns", "add", self.namespace)
        inner = ("ip", "-n", self.namespace)
        run(*inner, "link", "set", "lo", "up")
        run("ip", "-n", self.cluster.lan, "link", "add", self.cable, "type", "veth",
            "peer", "name", "eth0", "netns", self.namespace)  # fmt: skip
        run("ip", "-n", self.cluster.lan, "link", "set", self.cable, "master", "lan", "up")
        run(*inner, "address", "add", f"{self.address}/24", "dev", "eth0")
        run(*inner, "address", "add", f"{self.address6}/64", "dev", "eth0", "nodad")
        run(*inner, "link", "set", "eth0", "up")

    def unplug(self) -> None:
        """Nothing is left of its network, nor of what its kernel knew of connections."""
        run("ip", "-n", self.cluster.lan, "link", "delete", self.cable)
        run("ip", "netns", "delete", self.namespace)

    def start(self, hardened: str = "true") -> None:
        """Switch it on: its processes, and process 1 takes all others with it."""
        if not Path(f"/run/netns/{self.namespace}").exists():
            self.plug()
        (self.folder / "docker").mkdir(parents=True, exist_ok=True)
        (self.folder / "docker.sock").unlink(missing_ok=True)
        group = f"/{self.cluster.lan}/{self.name}"
        boot = self.folder / "boot"
        boot.write_text(BOOT.format(name=self.name, folder=self.folder, group=group, hardened=hardened))
        self.mend()
        log = (self.folder / "log").open("ab")
        path = f"{self.cluster.binaries}:{os.environ['PATH']}"
        starter = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork",
             "--kill-child", "sh", str(boot)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"PATH": path},
        )  # fmt: skip
        children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children")
        self.starter = starter
        self.init = int(until("its first process", lambda: children.read_text().split())[0])

    def ready(self) -> None:
        until(f"the engine of {self.name}", lambda: self.docker("info", "-f", "{{.ID}}", check=False))

    def engine(self) -> int:
        """The process id of its dockerd, as this host counts."""
        return int(Path(f"/proc/{self.init}/task/{self.init}/children").read_text().split()[0])

    def cut(self) -> None:
        """The network cable is out."""
        run("ip", "-n", self.cluster.lan, "link", "set", self.cable, "down")

    def mend(self) -> None:
        run("ip", "-n", self.cluster.lan, "link", "set", self.cable, "up")

    def kill(self) -> None:
        """Power cut: nothing is said to anyone."""
        self.cut()
        self.off()
        self.unplug()

    def stop_engine(self) -> None:
        """As `systemctl stop docker`: it stops its containers, and the machine stays on."""
        os.kill(self.engine(), 15)
        self.starter.wait(timeout=60)
        self.init = 0

    def off(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.init, 9)
        self.starter.wait(timeout=30)
        self.init = 0

    def cpu_seconds(self) -> float:
        """What its containers have used so far."""
        group = f"{self.cluster.lan}/{self.name}"
        first = Path("/sys/fs/cgroup/cpuacct", group, "cpuacct.usage")
        if first.exists():
            return int(first.read_text()) / 1e9
        second = dict(line.split() for line in Path("/sys/fs/cgroup", group, "cpu.stat").read_text().splitlines())
        return int(second["usage_usec"]) / 1e6

    def forget_swarm(self) -> None:
        """Off, it forgets the swarm that it was in; its images stay."""
        shutil.rmtree(self.folder / "docker/swarm")

    def containers(self, service: str) -> list[dict[str, Any]]:
        """What its engine knows of this service's running containers."""
        ids = self.docker("ps", "--quiet", "--filter", f"label=com.docker.swarm.service.name={service}").split()
        # One that is just gone is not found, and fails the command that shows the others all the same.
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", *ids, check=False) or "[]") if ids else []
        return found


class Cluster:
    """`manager` is the node that commands go to; `registry` is its registry's address, with a port."""

    def __init__(self, number: int, binaries: Path) -> None:
        self.number, self.binaries = number, binaries
        self.lan = f"proof-lan-{number}"
        self.folder = Path(tempfile.mkdtemp(prefix="proof-cluster-"))
        self.here = self.ipv4(254)
        self.registry = f"{self.here}:{REGISTRY_PORT}"
        self.trust = Path(f"/etc/docker/certs.d/{self.registry}")
        self.nodes = [Node(self, n) for n in (1, 2, 3)]
        self.manager = self.nodes[0]

    def ipv4(self, host: int) -> str:
        return f"198.18.{self.number}.{host}"

    def ipv6(self, host: int) -> str:
        return f"2001:db8:18:{self.number:x}::{host:x}"

    def up(self) -> None:
        self._network()
        self._registry()
        for node in self.nodes:
            node.start()
        with ThreadPoolExecutor() as threads:
            list(threads.map(self._prepare, self.nodes))
        self.join()

    def _network(self) -> None:
        """A switch in a namespace of its own: this host's firewall does not see what the nodes say to each other."""
        run("ip", "netns", "add", self.lan)
        run("ip", "-n", self.lan, "link", "add", "lan", "type", "bridge", "mcast_snooping", "0")
        run("ip", "-n", self.lan, "link", "set", "lan", "up")
        run("ip", "link", "add", self.lan, "type", "veth", "peer", "name", "host", "netns", self.lan)
        run("ip", "-n", self.lan, "link", "set", "host", "master", "lan", "up")
        for address in (f"{self.here}/24", *(f"{self.ipv4(host)}/24" for host in (100, 101))):
            run("ip", "address", "add", address, "dev", self.lan)
        run("ip", "address", "add", f"{self.ipv6(254)}/64", "dev", self.lan, "nodad")
        run("ip", "link", "set", self.lan, "up")

    def _registry(self) -> None:
        """With a certificate that the engines of this host trust, the nodes' too: they see its files."""
        key = certificates.make_key()
        names = [x509.IPAddress(ipaddress.ip_address(self.here))]
        pem = certificates.certificate_for(key, names)
        (self.folder / "site.pem").write_bytes(certificates.private(key) + pem)
        (self.folder / "site.pem").chmod(0o644)
        self.trust.mkdir(parents=True)
        (self.trust / "ca.crt").write_bytes(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.PEM))
        run("docker", "run", "--detach", "--name", self.lan, "--publish", f"{self.registry}:5000",
            "--volume", f"{self.folder}/site.pem:/site.pem:ro", "--env", "REGISTRY_HTTP_TLS_CERTIFICATE=/site.pem",
            "--env", "REGISTRY_HTTP_TLS_KEY=/site.pem", "registry:2")  # fmt: skip

    def _prepare(self, node: Node) -> None:
        node.ready()
        node.docker(*GATEWAY)
        # The public image, as a pull would have brought it.
        run("sh", "-c", f"docker save nginx:1.30 | docker -H {node.host} load")

    def join(self) -> None:
        """Make one swarm of three engines that are in none."""
        first, *others = self.nodes
        first.docker("swarm", "init", "--advertise-addr", first.address)
        token = first.docker("swarm", "join-token", "--quiet", "manager")
        for node in others:
            node.docker("swarm", "join", "--advertise-addr", node.address, "--token", token, f"{first.address}:2377")
        for node in self.nodes:
            node.id = node.docker("info", "--format", "{{.Swarm.NodeID}}")
        self.settle()

    def leader(self) -> Node:
        def found() -> Node | None:
            listed = self.manager.docker("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}", check=False)
            return next((node for node in self.nodes if f"{node.name} Leader" in listed.splitlines()), None)

        leader: Node = until("a leader", found, 2 * ELECTION_SECONDS)
        return leader

    def stop_registry(self) -> None:
        run("docker", "stop", self.lan)

    def start_registry(self) -> None:
        run("docker", "start", self.lan)

    def settle(self, seconds: float = 120) -> None:
        """Until every node is ready, and the managers agree."""

        def ready() -> bool:
            listed = self.manager.docker("node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}", check=False)
            return sorted(listed.splitlines()) == ["Ready Leader", *["Ready Reachable"] * (len(self.nodes) - 1)]

        until("all nodes are ready", ready, seconds)

    def down(self) -> None:
        for node in self.nodes:
            if node.init:
                node.off()
        run("docker", "rm", "--force", "--volumes", self.lan, check=False)
        for node in self.nodes:
            run("ip", "netns", "delete", node.namespace, check=False)
        run("ip", "link", "delete", self.lan, check=False)
        run("ip", "netns", "delete", self.lan, check=False)
        for group in (*Path("/sys/fs/cgroup").glob(f"*/{self.lan}"), Path(f"/sys/fs/cgroup/{self.lan}")):
            for folder in sorted(group.rglob("*/"), reverse=True):
                with suppress(OSError):
                    folder.rmdir()
            with suppress(OSError):
                group.rmdir()
        shutil.rmtree(self.trust, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def why_not() -> str:
    """Why this machine cannot make a cluster; "" where it can."""
    if os.getuid() != 0:
        return "only root may make a cluster of namespaces"
    for tool in ("ip", "nsenter", "unshare", "iptables"):
        if not shutil.which(tool):
            return f"a cluster takes {tool}, which is not installed"
    binaries = engine_binaries()
    if binaries is None:
        return "a cluster takes the binaries of Docker's engine (dockerd), which are not on this machine"
    for tool in ("containerd", "docker-init"):
        if not shutil.which(tool, path=f"{binaries}:{os.environ['PATH']}"):
            return f"a cluster takes {tool}, which is neither beside dockerd in {binaries} nor in PATH"
    images = run("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
    if "registry:2" not in images and subprocess.run(["docker", "pull", "--quiet", "registry:2"]).returncode:
        return "a cluster takes the image registry:2, which can not be pulled"
    link = ("ip", "link", "add", "proof-vxlan", "type", "vxlan", "id", "4095", "dstport", "4789")
    try:
        run(*link)
        run("ip", "link", "delete", "proof-vxlan")
    except AssertionError as error:
        return f"a cluster takes a kernel with VXLAN: {error}"
    return ""


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Three engines, joined. Skips where the machine cannot make them; fails there when REQUIRE_CLUSTER=1."""
    require_engine()
    if reason := why_not():
        lacks(reason, "REQUIRE_CLUSTER")
    binaries = engine_binaries()
    assert binaries
    taken = run("ip", "netns", "list")
    number = next(n for n in random.sample(range(255), 255) if f"proof-lan-{n}" not in taken)
    made = Cluster(number, binaries)
    try:
        made.up()
        yield made
    finally:
        made.down()


if __name__ == "__main__":
    if not engine_answers() or why_not():
        sys.exit(why_not() if engine_answers() else "no Docker engine answers (docker version)")
    with cluster() as tried:
        print("export BUILD_HOST=unix:///var/run/docker.sock WAY=swarm", flush=True)
        print(f"export DOCKER_HOST={tried.manager.host} REGISTRY={tried.registry}", flush=True)
        print(f"nodes: {' '.join(node.address for node in tried.nodes)}; Ctrl-C stops it", flush=True)
        with suppress(KeyboardInterrupt):
            time.sleep(86_400)
