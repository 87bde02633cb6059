"""CPU time of process trees, from the kernel's accounting: far steadier than throughput on a shared machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


def parse(stat: str) -> tuple[int, int]:
    """The parent's pid and the ticks used, children that ended included, of a line of /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()  # the name before it may have blanks and brackets
    return int(fields[1]), sum(int(ticks) for ticks in fields[11:15])


def tree_seconds(root: int) -> float:
    """Seconds of CPU that process `root` and all below it have used, in user mode and in the kernel."""
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent, ticks = parse((folder / "stat").read_text())
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        children.setdefault(parent, []).append(int(folder.name))
        used[int(folder.name)] = ticks
    waiting, total = [root], 0
    while waiting:
        pid = waiting.pop()
        total += used.get(pid, 0)
        waiting += children.get(pid, [])
    return total * TICK_SECONDS


def machine_seconds() -> tuple[float, float, float]:
    """Of all CPUs, since the machine was started: seconds used, taken by its host, and idle."""
    fields = [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = fields
    used = user + nice + system + irq + softirq
    return used * TICK_SECONDS, steal * TICK_SECONDS, (idle + iowait) * TICK_SECONDS


class Others:
    """How busy other work has kept this machine's CPUs since this was made."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._before = _used()

    def share(self) -> float:
        """From 0 to 1. Processes of this one's own count as its own once they have ended and were waited for."""
        seconds = (time.monotonic() - self._begun) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (_used() - self._before) / seconds))


def _used() -> float:
    """Seconds of CPU that all processes of this machine have used, without this one and its children."""
    used, _stolen, _idle = machine_seconds()
    own = os.times()
    mine = own.user + own.system + own.children_user + own.children_system
    return used - mine
