"""The demo application, with an answer of 1 GB and a Django site below /django: APP_MODULE=proofs.apps.space:app."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Query
from fastapi.responses import Response, StreamingResponse

from app.demo.main import app
from proofs.apps.django_site import application

GIGABYTE = 1_000_000_000
# 64 KiB, which compressing makes a quarter smaller.
PIECE = base64.b64encode(os.urandom(48 << 10))

app.mount("/django", application)


@app.get("/large")
async def large(media_type: str = "application/octet-stream") -> StreamingResponse:
    """1 GB with a length, as a file has one."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(GIGABYTE // len(PIECE)):
            yield PIECE
        yield PIECE[: GIGABYTE % len(PIECE)]

    headers = {"Content-Length": str(GIGABYTE)}
    return StreamingResponse(body(), media_type=media_type, headers=headers)


@app.get("/pieces")
async def pieces(media_type: str, count: Annotated[int, Query(le=100)], ms: int) -> StreamingResponse:
    """So many pieces under any type, each this long after the one before."""

    async def body() -> AsyncIterator[str]:
        for number in range(count):
            if number:
                await asyncio.sleep(ms / 1000)
            yield f"{number},{time.time()}\n"

    return StreamingResponse(body(), media_type=media_type)


@app.get("/text")
async def text(media_type: str, size: Annotated[int, Query(le=len(PIECE))]) -> Response:
    """A whole answer under any type."""
    return Response(PIECE[:size], media_type=media_type)


@app.get("/headers")
async def headers(size: Annotated[int, Query(le=30_000)]) -> Response:
    """An answer with so many bytes of headers, as with many cookies."""
    return Response("ok", headers={f"X-Long-{n}": "x" * 1000 for n in range(size // 1000)})
