"""Which networks this host or container is attached to, from the kernel's routing table."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path


def attached(routes: str) -> list[str]:
    """The directly connected IPv4 networks in `routes`, the text of /proc/net/route, as CIDR strings."""
    found = []
    for line in routes.splitlines()[1:]:
        _, destination, gateway, *rest = line.split()
        if gateway == "00000000" and destination != "00000000":
            address, mask = (ipaddress.IPv4Address(struct.pack("<L", int(h, 16))) for h in (destination, rest[4]))
            found.append(str(ipaddress.IPv4Network(f"{address}/{mask}")))
    return found


def trusted(setting: str) -> str:
    """What TRUSTED_PROXIES means to Uvicorn: "attached" is the attached networks, all else is taken as it is."""
    return ",".join(attached(Path("/proc/net/route").read_text())) if setting == "attached" else setting
