"""Memory of process trees: what a process has to itself, and its share of what it has in common with others (PSS)."""

from __future__ import annotations

import re
from pathlib import Path


def parse(rollup: str) -> int:
    """The bytes of PSS in the text of /proc/PID/smaps_rollup; 0 where it has none, as of a process that ends."""
    found = re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def tree_bytes(root: int) -> int:
    """Of process `root` and all below it. Not in it: what the kernel keeps for them, as the buffers of sockets."""
    waiting, total = [root], 0
    while waiting:
        folder = Path("/proc") / str(waiting.pop())
        try:
            total += parse((folder / "smaps_rollup").read_text())
            for thread in (folder / "task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return total
