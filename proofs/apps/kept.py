"""Answers with the headers that a request asks for, and how often each was asked for.

APP_MODULE=proofs.apps.kept:app
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

app = FastAPI()
DATA = Path(os.environ["DATA_DIR"])


def times(name: str) -> int:
    """How often this was asked for, of all workers together."""
    path = DATA / f"asked-{name}"
    return path.stat().st_size if path.exists() else 0


async def kept(
    request: Request,
    name: str,
    header: Annotated[list[str], Query()] = [],  # noqa: B006 (FastAPI copies it)
    status: int = 200,
    ms: int = 0,
    size: int = 0,
    number: int = 0,
    later: str = "",
) -> Response:
    """Its body has how often it was asked for, and what the client sent. `later` is its Cache-Control from the second
    time on; `number` makes another address.
    """
    with (DATA / f"asked-{name}").open("ab") as file:
        file.write(b".")
    await asyncio.sleep(ms / 1000)
    if (DATA / f"broken-{name}").exists():
        return PlainTextResponse("broken", 500)
    body = f"{times(name)} {request.headers.get('accept-language', '')} {(await request.body()).decode()}".encode()
    answer = Response(body.ljust(size, b"."), status, media_type="text/plain")
    for line in header:
        key, _, value = line.partition(": ")
        answer.headers.append(key, value)
    if later and times(name) > 1:
        answer.headers["Cache-Control"] = later
    return answer


app.add_api_route("/kept/{name}", kept, methods=["GET", "POST"])
app.add_api_route("/other/{name}", kept)


@app.get("/kept/stream/{name}")
async def stream(name: str) -> StreamingResponse:
    """A piece, and another when /go-on/{name} has been asked for."""

    async def pieces() -> object:
        yield b"first"
        while not (DATA / f"go-on-{name}").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        yield b"second"

    with (DATA / f"asked-{name}").open("ab") as file:
        file.write(b".")
    return StreamingResponse(pieces(), media_type="text/plain", headers={"Cache-Control": "max-age=60"})  # type: ignore[arg-type]


@app.get("/asked/{name}")
def asked(name: str) -> int:
    return times(name)


@app.post("/go-on/{name}")
def go_on(name: str) -> None:
    (DATA / f"go-on-{name}").touch()


@app.post("/break/{name}")
def break_it(name: str) -> None:
    """From now on it answers 500."""
    (DATA / f"broken-{name}").touch()
