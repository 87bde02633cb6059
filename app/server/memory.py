"""How much memory a process holds."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_mb(statm: Path = Path("/proc/self/statm")) -> int:
    """MiB of memory that this process holds, with what it shares with others; 0 where /proc does not tell."""
    try:
        return int(statm.read_text().split()[1]) * _PAGE_BYTES >> 20
    except OSError:
        return 0
