"""An application for the experiment `overload`: two handlers whose worker can do so many a second, and not more.

Neither takes the CPU that the load would then miss.
"""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI
from pydantic import BaseModel

AWAITING, BLOCKING = "/awaiting", "/blocking"
# As the connections that a worker has to its database: one query takes so long, and so many run at a time.
POOL, QUERY_SECONDS = 5, 0.05
BLOCK_SECONDS = 0.01

app = FastAPI()
pool = asyncio.Semaphore(POOL)


class Answer(BaseModel):
    kind: str


@app.get(AWAITING)
async def awaiting() -> Answer:
    async with pool:
        await asyncio.sleep(QUERY_SECONDS)
    return Answer(kind="awaiting")


@app.get(BLOCKING)
async def blocking() -> Answer:
    time.sleep(BLOCK_SECONDS)  # noqa: ASYNC251 (the mistake is the point)
    return Answer(kind="blocking")
