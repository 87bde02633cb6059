"""Was the load generator itself the bottleneck? Then the figures are its own, not the server's."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

BUSY_SHARE = 0.9  # of one CPU: a Locust process is one thread and cannot use more
SAFE_SHARE = 0.7  # of one CPU: above it answers begin to wait for the process that reads them
BUSY_TIME_SHARE = 0.25  # of the measured seconds: a shorter burst does not decide a percentile


@dataclass
class Usage:
    """One Locust process, a sample each second: the share of the time on a CPU, and on one or waiting for one.

    The waiting counts because a process held back by a CPU limit or by its neighbours never reaches 90 % CPU, and
    answers late all the same.
    """

    name: str
    pid: int = field(default_factory=os.getpid)
    cpu: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._last = _seconds(self.pid)

    def sample(self, elapsed: float) -> None:
        """Add the shares of the `elapsed` seconds since the last call or the start."""
        now = _seconds(self.pid)
        on_cpu, waited = ((after - before) / elapsed for before, after in zip(self._last, now, strict=True))
        self.cpu.append(on_cpu)
        self.busy.append(on_cpu + waited)
        self._last = now

    def saturated(self) -> bool:
        return is_saturated(self.busy)

    def __str__(self) -> str:
        return f"{self.name}: CPU {_mean(self.cpu):.0%} on average, busy or waiting for a CPU {_mean(self.busy):.0%}"

    def summary(self) -> dict[str, str | float | bool]:
        """For summary.json: shares of one CPU, averages over the measured time."""
        return {
            "name": self.name,
            "cpu": round(_mean(self.cpu), 3),
            "busy": round(_mean(self.busy), 3),
            "saturated": self.saturated(),
        }


def requests_of_one(workers: Sequence[Usage], rps: float) -> int:
    """Requests in a second that one process may send, by the CPU that each took; 0 where none is known."""
    spent = sum(_mean(worker.cpu) for worker in workers)
    return int(SAFE_SHARE * rps / spent) if spent and rps else 0


def advice(of_one: int, rate: int) -> str:
    """How many processes a rate needs, in a line. `rate` is the one that is asked for, or 0."""
    asked = f"; LOADTEST_RATE={rate} needs {-(-rate // of_one)}" if rate else ""
    return (
        f"one Locust process sends up to {of_one} of these requests in a second, so LOADTEST_PROCESSES=2 up to "
        f"{2 * of_one}, and so on{asked}"
    )


def is_saturated(busy: list[float]) -> bool:
    """Whether the process was busy for a substantial part of the samples (shares of one CPU, 0 to 1)."""
    return bool(busy) and sum(share >= BUSY_SHARE for share in busy) >= BUSY_TIME_SHARE * len(busy)


def _mean(shares: list[float]) -> float:
    return sum(shares) / max(len(shares), 1)


def _seconds(pid: int) -> tuple[float, float]:
    """Seconds on a CPU and seconds waiting for one since the process began; zeros once it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0, 0.0
    try:
        waited = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # Linux has it, and not every sandbox
        waited = 0.0
    return times.user + times.system, waited
