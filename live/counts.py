"""nginx's log for counting: a line a request, read as it grows, given back to the kernel, added up.

nginx appends to a file in memory that has a size (Compose: the volume `counts`). What was read is punched out of the
file: it takes no room any more, and no line can be lost between reading and giving back, as with a file that is
truncated. While nobody reads, the file fills up; nginx then serves on, and the lines that found no room are lost.
"""

from __future__ import annotations

import ctypes
import os
import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# nginx's buffer for it, in bytes (nginx.conf): with less room than this, a line may have found none.
NGINX_BUFFER = 16_384
# Seconds of history that a page which has just been opened gets.
HISTORY = 120
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Why a request got its answer. The first is the app's own answer, whatever its status; all others are nginx's.
CAUSES = ("app", "cache", "full", "client_limit", "silent", "lost", "down", "client_left", "host", "too_large",
          "bad_request", "nginx")  # fmt: skip
RESULTS = ("answered", "failed", "silent", "cut")
# Requests for an answer of the app: how long a refusal took says nothing of how fast the answers are.
TIMED = ("app", "cache", "silent", "lost")
# nginx's words for an answer that its cache gave, whether or not the app was asked if it is still right.
FROM_CACHE = ("HIT", "STALE", "UPDATING", "REVALIDATED")
_BY_STATUS = {413: "too_large", 421: "host", 429: "client_limit", 499: "client_left", 502: "lost", 504: "silent"}
_BAD = (0, 400, 405, 408, 414, 494, 495, 496, 497, 501, 505)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_PUNCH_HOLE_KEEP_SIZE = 3  # fallocate(2)


class Line(NamedTuple):
    """One request, as nginx's log format `count` has it."""

    status: int
    cause: str
    tries: tuple[tuple[str, str], ...]  # the address of a worker, and what came of it
    milliseconds: int | None  # None for a stream, whose length says nothing of how fast an answer was


def parse(line: bytes) -> Line | None:
    """None for a line that is no whole one, as when the file was full in its middle."""
    try:
        status_text, addresses, statuses, rest = line.decode("ascii", "replace").split("|", 3)
        kind, header_times, cached, seconds = rest.rsplit("|", 3)
        status = int(status_text)
        whole, _, thousandths = seconds.partition(".")
        milliseconds = int(whole) * 1000 + int(thousandths)
    except ValueError:
        return None
    if len(status_text) != 3 or len(thousandths) != 3:
        return None
    # Apart by ", ", and by " : " where another chance begins; "app" stands where nginx found no worker with a place.
    tried = list(zip(*(each.replace(" : ", ", ").split(", ") for each in (addresses, statuses, header_times)),
                     strict=False))  # fmt: skip
    tries = tuple((address, _result(code, header)) for address, code, header in tried if ":" in address)
    if cached in FROM_CACHE:
        cause = "cache"
    elif tries and tries[-1][1] == "answered":
        cause = "app"  # also where nginx makes a 206 or a 304 of it
    else:
        cause = _cause(status, tries)
    stream = status == 101 or kind.startswith("text/event-stream")
    return Line(status, cause, tries, None if stream else milliseconds)


def _result(status: str, header_time: str) -> str:
    """What came of one try. Without a header the status is nginx's own word for it."""
    if header_time != "-":
        return "answered"
    return {"502": "failed", "504": "silent"}.get(status, "cut")


def _cause(status: int, tries: tuple[tuple[str, str], ...]) -> str:
    if status == 503:
        return "down" if tries else "full"
    return "bad_request" if status in _BAD else _BY_STATUS.get(status, "nginx")


def percentile(times: Counter[int], share: float) -> int | None:
    """The smallest number of milliseconds that this share of the requests did not exceed; None without requests."""
    left = share * times.total()
    for milliseconds in sorted(times):
        left -= times[milliseconds]
        if left <= 0:
            return milliseconds
    return None


class Second(NamedTuple):
    """What was answered in one second: requests by group (see `group`), and percentiles in milliseconds."""

    served: int
    refused: int
    failed: int
    client: int
    p50: int | None
    p95: int | None
    p99: int | None


def group(cause: str, status: int) -> str:
    """served, refused (overload), failed (the stack's or the app's fault), or client (the client's)."""
    if cause == "app":
        return "failed" if status >= 500 else "served"
    return {"full": "refused", "client_limit": "refused", "silent": "failed", "lost": "failed", "down": "failed",
            "nginx": "served", "cache": "served"}.get(cause, "client")  # fmt: skip


class Counts:
    """All that the log has said since this process began; one thread reads, any may ask."""

    def __init__(self, path: Path, objectives: Iterable[float]) -> None:
        """`objectives`, in seconds, stand among the histogram's buckets: only there its percentiles are exact."""
        self.path = path
        self.lock = threading.Lock()
        self.bounds = tuple(sorted({*BUCKETS, *objectives}))
        self.responses: Counter[tuple[int, str, str]] = Counter()  # status, cause, address
        self.tries: Counter[tuple[str, str]] = Counter()  # address, result
        self.groups: Counter[str] = Counter()
        self.buckets = [0] * (len(self.bounds) + 1)
        self.sum = 0.0
        self.lines = 0
        self.lost = 0
        self.history: deque[Second] = deque(maxlen=HISTORY)
        self._now: Counter[str] = Counter()
        self._times: Counter[int] = Counter()
        self._recent: deque[Counter[int]] = deque(maxlen=5)
        self._second = 0
        self._file: int | None = None
        self._offset = 0
        self._rest = b""
        self._requests_when_read: int | None = None

    def read(self, now: float, requests: int | None) -> int:
        """Add up what nginx has written since the last call; the number of lines.

        `now` is a monotonic clock's, `requests` nginx's own count of requests (None: unknown). What of them is
        missing here is lost, where the file was full.
        """
        data, full = self._take()
        lines = (self._rest + data.lstrip(b"\0")).split(b"\n")
        self._rest = lines.pop()
        found = [parse(line) for line in lines]
        with self.lock:
            self._turn_to(int(now))
            good = 0
            for line in found:
                if line is None:
                    self.lost += 1
                else:
                    good += 1
                    self._add(line)
            self.lines += good
            if full:
                before = self._requests_when_read
                known = before is not None and requests is not None and requests >= before
                self.lost += max(1, requests - before - good) if known else 1  # type: ignore[operator]
        self._requests_when_read = requests
        return good

    def waiting(self) -> int:
        """The bytes that nginx has written and nobody has read."""
        if self._file is None:
            try:
                self._file = os.open(self.path, os.O_RDWR)
                # What another reader has read before this process began is a hole.
                self._offset = os.lseek(self._file, 0, os.SEEK_DATA)
            except OSError:
                return 0  # nginx has not written yet
        size = os.fstat(self._file).st_size
        if size < self._offset:  # somebody has truncated it
            self._offset, self._rest = 0, b""
        return size - self._offset

    def _take(self) -> tuple[bytes, bool]:
        """What is new, given back to the kernel; and whether nginx has found no room."""
        if not (size := self.waiting()) or self._file is None:
            return b"", False
        space = os.fstatvfs(self._file)
        full = space.f_bavail * space.f_frsize < NGINX_BUFFER
        data = os.pread(self._file, min(size, 1 << 20), self._offset)
        self._offset += len(data)
        _libc.fallocate(self._file, _PUNCH_HOLE_KEEP_SIZE, 0, self._offset)
        return data, full

    def _add(self, line: Line) -> None:
        address = line.tries[-1][0] if line.cause == "app" else ""
        self.responses[line.status, line.cause, address] += 1
        self.tries.update(line.tries)
        kind = group(line.cause, line.status)
        self.groups[kind] += 1
        self._now[kind] += 1
        if line.milliseconds is not None and line.cause in TIMED:
            self._times[line.milliseconds] += 1
            self.buckets[bisect_left(self.bounds, line.milliseconds / 1000)] += 1
            self.sum += line.milliseconds / 1000

    def _turn_to(self, second: int) -> None:
        """Close the seconds that are over: those in which nothing was read had no requests."""
        for _ in range(min(max(0, second - self._second), HISTORY) if self._second else 0):
            now, times = self._now, self._times
            quantiles = [percentile(times, share) for share in (0.5, 0.95, 0.99)]
            self.history.append(Second(now["served"], now["refused"], now["failed"], now["client"], *quantiles))
            self._recent.append(times)
            self._now, self._times = Counter(), Counter()
        self._second = second

    def percentiles(self) -> dict[str, int | None]:
        """Of the last five seconds, in milliseconds."""
        with self.lock:
            together: Counter[int] = sum(self._recent, self._times.copy())
        return {f"p{share}": percentile(together, share / 100) for share in (50, 95, 99)}
