"""An append-only ledger that all workers of all replicas share: one file on a volume.

A delivery is one line, written with one append, which the kernel puts behind all others at once. The first line of a
key is the one that counts: every process that reads the file agrees on which that is, and no process ever holds a
lock that a killed or frozen one could keep.

A full volume may take a part of a line. It cannot be cut off again, because another process may have written behind
it. So each line begins with a blank, and only its last two words count: what was torn before them has no line end.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections import Counter
from pathlib import Path


class Ledger:
    """`path` is created when missing. Not for use by several threads: each process has one, on its event loop."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._name = uuid.uuid4().hex  # pids and host names come again after a restart
        self._written = 0
        self._read = 0
        self._deliveries: Counter[str] = Counter()

    def deliver(self, key: str) -> bool:
        """Note that `key` has arrived; true for the first time, whichever process that was in.

        `key` must have no blank and no line end. Raises OSError when the volume is full; nothing is applied then.
        """
        self._written += 1
        own = f"{self._name}:{self._written}"
        line = f" {key} {own}\n".encode()
        if os.write(self._file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._catch_up(own)

    def deliveries(self, key: str) -> int:
        """How often `key` has arrived, in any process."""
        self._catch_up()
        return self._deliveries[key]

    def summary(self, prefix: str, most: int) -> tuple[int, int, dict[str, int]]:
        """Of the keys with `prefix`: how many, their deliveries, and those delivered more than once, `most` of them."""
        self._catch_up()
        counts = {key: n for key, n in self._deliveries.items() if key.startswith(prefix)}
        repeated = {key: n for key, n in counts.items() if n > 1}
        return len(counts), sum(counts.values()), dict(list(repeated.items())[:most])

    def _catch_up(self, own: str = "") -> bool:
        """Read what was appended since; true if the line of `own` is among it and the first of its key."""
        first = False
        while chunk := os.pread(self._file, 1 << 20, self._read):
            complete = chunk.rfind(b"\n") + 1
            if not complete:
                break
            self._read += complete
            for line in chunk[:complete].decode().splitlines():
                key, delivery = line.split(" ")[-2:]
                self._deliveries[key] += 1
                first = first or (delivery == own and self._deliveries[key] == 1)
        return first
