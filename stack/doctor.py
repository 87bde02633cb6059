"""`make doctor`: whether this machine, with these rows, is ready to serve strangers. It looks, and changes nothing.

docs/production.md has the list, and what no program can see.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

from stack import compose, native
from stack.console import CannotTell, Failure, Look, accepts, run_checks
from stack.settings import ROOT, StackSettings

# Images, logs of six containers at 50 MB each, and a second image while a deploy runs.
DISK_BYTES = 5 * 1024**3
# An engine that makes networks of IPv6 by itself; and one that knows all that docker-compose.yml asks for.
ENGINE_IPV6, ENGINE = 27, 25
SSH = 22


def doctor(settings: StackSettings) -> int:
    """Print a line for each check; the exit status is 1 if one failed."""
    engine = compose.engine()
    checks: list[tuple[str, Callable[[], str]]] = [
        ("Docker", lambda: _engine(settings, engine)),
        ("it starts again after a reboot", lambda: _starts_again(engine)),
        ("memory", lambda: _memory(settings, engine)),
        ("disk", lambda: _disk(engine)),
        ("clock", _clock),
        *((f"{name}={port}", partial(_port, name, port, engine)) for name, port in settings.published()),
        *((name, partial(_name, name)) for name in settings.acme_names.split() if settings.tls == "acme"),
        ("LOCUST", lambda: _row("LOCUST", settings.locust, "off", "strangers would pay for your load tests")),
        ("ENABLE_LAB", lambda: _row("ENABLE_LAB", settings.enable_lab, "0", "anybody may block a worker")),
        ("SERVER_NAMES", lambda: _names(settings)),
        ("HTTPS", lambda: _https(settings)),
        ("other open ports", lambda: _open(settings)),
    ]
    return run_checks(checks, before_fault=": ")


def _engine(settings: StackSettings, version: str | None) -> str:
    if version is None:
        raise CannotTell("no Docker engine answers (docker version): make up runs plain processes")
    needed = ENGINE_IPV6 if settings.ipv6 == "true" else ENGINE
    if int(version.partition(".")[0]) < needed:
        raise Failure(f"the engine is {version}, and with IPV6={settings.ipv6} it must be {needed} or newer: update it")
    compose.check_configuration()
    return version


def _starts_again(engine: str | None) -> str:
    if engine is None:
        raise CannotTell("plain processes end with the machine: a service of your system has to run make up")
    enabled = _said("systemctl", "is-enabled", "docker")
    if enabled != "enabled":
        raise Failure(f"Docker is {enabled} at boot: type systemctl enable docker")
    return "Docker is enabled at boot"


def _memory(settings: StackSettings, engine: str | None) -> str:
    if engine:
        limits = compose.memory_limits()
        needed = sum(limit * replicas for limit, replicas in limits.values()) + limits["app"][0]
        account = f"{_mb(needed)} MB may be used, with the further replica of a deploy"
    else:
        needed = settings.workers * settings.worker_memory_mb << 20
        account = f"the workers may use {_mb(needed)} MB"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    account += f"; the machine has {_mb(total)}"
    if needed > total:
        raise Failure(f"{account}: lower APP_MEMORY, NGINX_MEMORY, APP_REPLICAS or WORKERS, or take a larger machine")
    return account


def _disk(engine: str | None) -> str:
    folder = ROOT
    if engine:
        root = Path(_said("docker", "info", "--format", "{{.DockerRootDir}}"))
        folder = root if root.exists() else ROOT  # the engine may be on another machine
    free = shutil.disk_usage(folder).free
    account = f"{_mb(free)} MB are free at {folder}"
    if free < DISK_BYTES:
        raise Failure(f"{account}, and images and logs want {_mb(DISK_BYTES)}: docker system prune, or a larger disk")
    return account


def _clock() -> str:
    """A wrong clock makes certificates invalid."""
    if _said("timedatectl", "show", "--property=NTPSynchronized", "--value") != "yes":
        raise Failure("it is not kept right from outside: type timedatectl set-ntp true")
    return "kept right from outside"


def _port(name: str, port: int, engine: str | None) -> str:
    if not accepts(port):
        return "free"
    if (engine and compose.running()) or native.running():
        return "this stack's"
    raise Failure(f"another program listens there: stop it, or change {name}")


def _name(name: str) -> NoReturn:
    try:
        found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)})
    except OSError as error:
        raise Failure(f"its address is not known ({error}): the CA will not find this machine; mend your DNS") from None
    raise Look(f"DNS says {' '.join(found)}: is that how strangers reach this machine?")


def _row(name: str, value: str, wanted: str, otherwise: str) -> str:
    if value != wanted:
        raise Failure(f"it is {value}: set {name}={wanted}, or else {otherwise}")
    return wanted


def _names(settings: StackSettings) -> str:
    if settings.server_names == "~.":
        raise Failure("it is ~., every name there is: set it to your own, or else others' names lead to your app")
    return settings.server_names


def _https(settings: StackSettings) -> str:
    if settings.tls == "off" and not settings.forwarded_headers_from and not settings.proxy_protocol_from:
        raise Failure("TLS=off with no load balancer in front: set TLS=acme, or name the balancer (docs/https.md)")
    return f"TLS={settings.tls}" if settings.tls != "off" else "the load balancer's"


def _open(settings: StackSettings) -> str:
    """What else strangers may reach: ports of TCP that listen on more than loopback."""
    expected = {SSH, settings.http_port} | ({settings.https_port} if settings.tls != "off" else set())
    found = sorted({port for address, port in _listening() if not ip_address(address).is_loopback} - expected)
    if not found:
        return "none"
    ports = " ".join(map(str, found))
    raise Look(f"{ports}: strangers reach them, unless a firewall outside of this machine is closed")


def _listening() -> list[tuple[str, int]]:
    """The addresses and ports of TCP that are listened on, from the kernel's tables."""
    found = []
    for file, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        path = Path(f"/proc/net/{file}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            local, state = line.split()[1], line.split()[3]
            if state == "0A":
                address, port = local.split(":")
                raw = bytes.fromhex(address)  # words of four bytes, each the other way round
                words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
                found.append((socket.inet_ntop(family, words), int(port, 16)))
    return found


def _said(*command: str) -> str:
    """What a program says. Raises CannotTell where it is not there, or cannot say."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        raise CannotTell(f"there is no {command[0]} to ask") from None
    if not done.stdout.strip():
        raise CannotTell(f"{' '.join(command)} says nothing")
    return done.stdout.strip()


def _mb(count: int) -> str:
    return f"{count >> 20:,}"
