"""What a worker process is doing: the worker class sets it, /readyz answers with it."""

from __future__ import annotations

from typing import Literal

State = Literal["starting", "ready", "draining"]

state: State = "starting"
