"""An application for the proofs of overload: requests that last until the proof says so, and answers of its own."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from uuid import uuid4

Message = MutableMapping[str, Any]


Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """/hold leaves a file `NAME.*` in the stack's folder, and answers when there is one `NAME` (its query)."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    status, headers = 200, [(b"content-type", b"application/json")]
    if scope["path"] == "/hold":
        release = Path(os.environ["RUN_DIR"]) / scope["query_string"].decode()
        release.with_suffix(f".{uuid4().hex}").touch()
        while not release.exists():  # noqa: ASYNC110 (another process releases it)
            await asyncio.sleep(0.02)
    elif scope["path"] == "/busy":
        status = 503
        headers.append((b"retry-after", b"7"))
    elif scope["path"] == "/die":
        os._exit(1)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"pid": os.getpid()}).encode()})
