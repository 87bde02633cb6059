"""What `make lab` adds to the bench: an end to the time it takes, and the page of all that was measured."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from bench import html, report
from bench.processes import CannotRun

ALL_SECONDS, ONE_SECONDS = 3000.0, 300.0


class _OutOfTime(KeyboardInterrupt):
    """Ends an experiment wherever it is: event loops let nothing else through."""


class Limits:
    """How long all experiments may take together, and each of them; it counts from now."""

    def __init__(self, all_seconds: float = ALL_SECONDS, one_seconds: float = ONE_SECONDS) -> None:
        self._all, self._one = all_seconds, one_seconds
        self._end = time.monotonic() + all_seconds

    @contextmanager
    def of_one(self, expected: float) -> Iterator[None]:
        """Raises CannotRun before the block where the time is too short for it, and from within when it is over."""
        left = self._end - time.monotonic()
        if left < expected:
            raise CannotRun(f"of {self._all / 60:.0f} min too little was left for the {expected:.0f} s that it takes")
        limit = min(self._one, left)

        def over(number: int, frame: FrameType | None) -> None:
            raise _OutOfTime

        before = signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            yield
        except _OutOfTime:
            raise CannotRun(f"it was not done within {limit:.0f} s, and was ended") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def write(results: Path, page: Path, names: Sequence[str], failed: Mapping[str, str]) -> Path:
    """Make `page` of the files in `results`; it says why there is nothing of the others of `names`."""
    stored = report.read(results, names)
    there = {each.experiment for each in stored}
    missing = {
        name: failed.get(name, f'it has not been run yet (make lab EXPERIMENTS="{name}")')
        for name in names
        if name not in there
    }
    for each in stored:
        if each.experiment in failed:
            each.result.notes.append(f"the last run came to nothing, this is an older one: {failed[each.experiment]}")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html.page(stored, missing))
    return page
