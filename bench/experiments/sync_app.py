"""Applications for the experiment `sync`: /slow waits 20 ms in three ways, / answers at once."""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI
from pydantic import BaseModel

WAIT_SECONDS = 0.02
FAST, SLOW = "/", "/slow"


class Answer(BaseModel):
    kind: str


async def fast() -> Answer:
    return Answer(kind="fast")


async def awaits() -> Answer:
    await asyncio.sleep(WAIT_SECONDS)
    return Answer(kind="slow")


def in_the_thread_pool() -> Answer:
    time.sleep(WAIT_SECONDS)
    return Answer(kind="slow")


async def blocks() -> Answer:
    time.sleep(WAIT_SECONDS)  # noqa: ASYNC251 (the mistake is the point)
    return Answer(kind="slow")


awaiting, threaded, blocking = FastAPI(), FastAPI(), FastAPI()
for app, endpoint in ((awaiting, awaits), (threaded, in_the_thread_pool), (blocking, blocks)):
    app.get(FAST)(fast)
    app.get(SLOW)(endpoint)
