"""One command at a time of those that migrate the database or replace containers."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stack.console import Failure
from stack.settings import project


@contextmanager
def alone() -> Iterator[None]:
    """Holds a lock of this stack's. Raises Failure where another command holds it."""
    path = Path(tempfile.gettempdir()) / f"{project()}-{os.getuid()}.deploy.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(
                "another deploy or start of this stack is running; wait for its end, then try again"
            ) from None
        yield
