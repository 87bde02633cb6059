"""What this worker process is doing. The server sets it; the middleware around the application reads and adds to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

# What serves here; None before it does, and under another server. Python 3.11 asks the kernel to find it, each time.
loop: asyncio.AbstractEventLoop | None = None
state: Literal["starting", "ready", "draining"] = "starting"
# Why the application did not start; "" while it has not failed.
startup_failure = ""
# What ends each event stream that is open. A drain calls it at once: their clients connect again by themselves.
end_event_stream: set[Callable[[], None]] = set()
