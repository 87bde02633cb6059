"""An application for the experiment `balance`: fast requests, and some that keep their worker's CPU for long."""

from __future__ import annotations

import time

from fastapi import FastAPI
from pydantic import BaseModel

SLOW_SECONDS = 0.1

app = FastAPI()


class Answer(BaseModel):
    kind: str


@app.get("/")
async def fast() -> Answer:
    return Answer(kind="fast")


@app.get("/slow")
async def slow() -> Answer:
    """CPU time of this thread, not time on the clock: a worker that has to share its CPU takes longer."""
    end = time.thread_time() + SLOW_SECONDS
    while time.thread_time() < end:
        sum(range(1000))
    return Answer(kind="slow")
