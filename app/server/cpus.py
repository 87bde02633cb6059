"""How many CPUs this process may use: the affinity mask and the control groups' quota, whichever is less.

os.cpu_count() sees the host's CPUs; a container that may use two of 64 would start 32 times too many workers.
"""

from __future__ import annotations

import os
from pathlib import Path


def usable(root: Path = Path("/")) -> float:
    """CPUs, as a number that may have a fraction. `root` is where /proc and /sys are looked for."""
    affinity = float(len(os.sched_getaffinity(0)))
    return min([affinity, *_quotas(root)])


def whole(cpus: float) -> int:
    """As many processes as these CPUs can run at a time: at least 1."""
    return max(1, int(cpus))


def _quotas(root: Path) -> list[float]:
    """The quota of each control group from this process's own up to the top, cgroup v2 and v1."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts, quota_of = [root / "sys/fs/cgroup"], _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, quota_of = [root / "sys/fs/cgroup/cpu", root / "sys/fs/cgroup/cpu,cpuacct"], _quota_v1
        else:
            continue
        for mount in mounts:
            group = Path(path)
            # A container sees its own group as the top, while the path may still be the host's.
            for folder in [group, *group.parents]:
                quota = quota_of(mount / folder.relative_to("/"))
                if quota is not None:
                    found.append(quota)
    return found


def _quota_v2(folder: Path) -> float | None:
    words = _read(folder / "cpu.max").split()
    return int(words[0]) / int(words[1]) if words and words[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
