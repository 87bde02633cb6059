"""An application that waits for a PostgreSQL, with a pool of as many connections as its row says.

`/wait` holds a connection for 20 ms, so that one bears 50 requests in a second. `/turn` lets one request at a time
into its 20 ms, whatever the number of connections.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

SECONDS = 0.02
STATEMENTS = {
    "/wait": f"SELECT pg_sleep({SECONDS})",
    "/turn": f"SELECT pg_advisory_xact_lock(1), pg_sleep({SECONDS})",
}


@cache
def engine() -> AsyncEngine:
    size = int(os.environ["DATABASE_POOL_SIZE"])
    return create_async_engine(os.environ["DATABASE_URL"], pool_size=size, max_overflow=0)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    async with engine().begin() as connection:
        await connection.execute(text(STATEMENTS[scope["path"]]))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
