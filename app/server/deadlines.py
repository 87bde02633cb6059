"""Timers of one length: the first that was set is the first that is due, so one of the loop's is enough for all."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol


class Due(Protocol):
    def on_deadline(self) -> None: ...


class Deadlines:
    """Calls `on_deadline` of each that is still in `begun` when `seconds` are over: a request that is not done, a
    connection that is idle. To set and cancel a timer of the loop for each costs CPU.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begun: dict[Due, float] = {}  # when (monotonic), in that order
        self._timer: asyncio.TimerHandle | None = None

    def add(self, one: Due, now: float) -> None:
        self.begun[one] = now
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        while self.begun:
            one, begun = next(iter(self.begun.items()))
            left = begun + self.seconds - monotonic()
            if left > 0:
                self._timer = asyncio.get_running_loop().call_later(left, self._look)
                return
            del self.begun[one]
            one.on_deadline()
