"""How much memory a process holds, and whether the workers' limits fit into the container."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def resident_mb(statm: Path = Path("/proc/self/statm")) -> int:
    """MiB of memory that this process holds, with what it shares with others; 0 where /proc does not tell."""
    try:
        return int(statm.read_text().split()[1]) * _PAGE_BYTES >> 20
    except OSError:
        return 0


def advice(workers: int, worker_memory_mb: int, app_memory: str) -> str | None:
    """One line where WORKER_MEMORY_MB does not fit APP_MEMORY (as 512m); None where it does."""
    container_mb = int(app_memory[:-1]) * _UNITS[app_memory[-1]] >> 20
    fitting = container_mb // (workers + 1)
    if worker_memory_mb <= fitting:
        return None
    return (
        f"WORKER_MEMORY_MB={worker_memory_mb} for each of WORKERS={workers} and one replacement is more than "
        f"APP_MEMORY={app_memory}: the kernel kills a worker before it is replaced; "
        f"set WORKER_MEMORY_MB={fitting}, or give the app more memory"
    )
