"""An application whose capacity is known: a request keeps its worker for 10 ms, so one worker does 100 in a second."""

from __future__ import annotations

import time
from typing import Any

SECONDS = 0.01


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Asleep, not at work: how fast the CPU is, and who else uses it, is of little account."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    time.sleep(SECONDS)  # noqa: ASYNC251 (that nothing else runs is the point)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
