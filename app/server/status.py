"""The master's account of its workers: a small JSON file, for `make reload` and for whoever looks."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Literal, TypedDict

State = Literal["starting", "ready", "reloading", "failed"]


WorkerState = Literal["booting", "ready", "retiring", "draining", "finishing"]


class WorkerStatus(TypedDict):
    pid: int
    slot: int
    generation: int
    state: WorkerState


class Status(TypedDict):
    master: int
    master_started: str  # the number of the master's process may be another's by now
    generation: int  # the one that serves
    attempt: int  # the newest one, whatever became of it: each reload counts it up
    state: State
    reason: str  # why the newest attempt failed
    workers: list[WorkerStatus]


def path() -> Path:
    """RUN_DIR, or the system's folder for temporary files; the port tells two stacks on one machine apart."""
    folder = os.environ.get("RUN_DIR") or tempfile.gettempdir()
    return Path(folder) / f"app-{os.environ['APP_PORT']}.status.json"


def write(status: Status) -> None:
    """Replace the file in one step: a reader never sees half of it. Where it raises OSError, nothing is left of it."""
    target = path()
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(status, file)
        os.replace(name, target)
    except OSError:
        os.unlink(name)
        raise


def started(pid: int) -> str:
    """When this process was started, in the kernel's own units; "" where none has this number, or /proc is missing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def read() -> Status | None:
    """None when no master of this user has written one, or the one that has is gone."""
    try:
        with path().open() as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return None  # somebody else's file in a shared folder must not choose the process to signal
            status: Status = json.load(file)
            return status if started(status["master"]) == status["master_started"] else None
    except (FileNotFoundError, ValueError, KeyError):
        return None
