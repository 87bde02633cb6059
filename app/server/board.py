"""Numbers that one process writes and others read at any time: named cells in a file in memory.

A plain add to a cell costs some 50 ns more than one to a list, and the number outlives its process, whatever ends that.
"""

from __future__ import annotations

import json
import mmap
import os
from contextlib import suppress
from pathlib import Path

NAMES_BYTES = 128 * 1024
CELLS = 16 * 1024
SIZE = NAMES_BYTES + 8 * CELLS
# Kept for those that must find room on a full board.
SPARE_BYTES, SPARE_CELLS = 1024, 64
# The first cell: how many bytes of names there are. It is written behind them, so that a reader finds whole lines.
NAMED = 0


class Full(Exception):
    """No room for another name or cell."""


class Board:
    """One writer. `values` are the cells, as floats: whole numbers are exact up to 2**53."""

    def __init__(self, path: Path | None = None) -> None:
        """Open the file, or make it; what it has is kept. None: memory that no other process sees.

        Raises OSError where the file cannot be made: its memory is taken at once, since a page that is missing later
        ends its writer with SIGBUS.
        """
        self.path = path
        if path is None:
            self._memory = mmap.mmap(-1, SIZE)
        else:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, SIZE)
                self._memory = mmap.mmap(descriptor, SIZE)
            except OSError:
                with suppress(OSError):
                    os.unlink(path)
                raise
            finally:
                os.close(descriptor)
        self.values = memoryview(self._memory).cast("d")[NAMES_BYTES // 8 :]
        self.cells: dict[tuple[str, ...], range] = {}
        self._read = 0  # bytes of names
        self._used = NAMED + 1  # cells
        self.learn()

    def learn(self) -> None:
        """Read the names that have been written since the last time."""
        named = int(self.values[NAMED])
        for line in self._memory[self._read : named].splitlines():
            size, *names = json.loads(line)
            self.cells[tuple(names)] = range(self._used, self._used + size)
            self._used += size
        self._read = named

    def cell(self, *names: str, size: int = 1, spare: bool = False) -> int:
        """The first of the `size` cells of this name; they are made, with 0, where there are none. Raises Full."""
        if (found := self.cells.get(names)) is None:
            line = json.dumps([size, *names]).encode() + b"\n"
            end = self._read + len(line)
            kept = (0, 0) if spare else (SPARE_BYTES, SPARE_CELLS)
            if end > NAMES_BYTES - kept[0] or self._used + size > CELLS - kept[1]:
                raise Full
            self._memory[self._read : end] = line
            self.values[NAMED] = end
            self.learn()
            found = self.cells[names]
        return found.start

    def get(self, *names: str) -> float:
        """The number of this name; 0 where there is none."""
        found = self.cells.get(names)
        return self.values[found.start] if found else 0.0

    def put(self, value: float, *names: str) -> None:
        self.values[self.cell(*names)] = value

    def add(self, value: float, *names: str) -> None:
        self.values[self.cell(*names)] += value
