from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.server import cpus


@pytest.fixture
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.usefixtures("sixteen_cpus")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        # a parent's quota counts as well as the group's own
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n"}, 2),
        # version 1, seen from inside a container: the path is the host's, the group is the mount's top
        ({"proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 16),
    ],
)  # fmt: skip
def test_the_smaller_of_affinity_and_quota_counts(tmp_path: Path, files: dict[str, str], expected: float) -> None:
    assert cpus.usable(tree(tmp_path, files)) == expected


def test_this_machine_has_some() -> None:
    assert 0 < cpus.usable() <= (os.cpu_count() or 1)
