"""The demo application, by which the proofs and the benches judge the stack. Your own app goes beside it, into app/."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException, Query, Request, WebSocket, WebSocketDisconnect
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from app.demo.ledger import Ledger

app = FastAPI(title="Demo", docs_url="/docs", redoc_url=None)
LAB = os.environ.get("ENABLE_LAB") == "1"
KEY = r"^[A-Za-z0-9_-]{1,64}$"


@cache
def ledger() -> Ledger:
    return Ledger(Path(os.environ["DATA_DIR"]) / "ledger")


class Served(BaseModel):
    pid: int
    replica: str
    client: str
    scheme: str
    host: str
    request_id: str


@app.get("/")
async def who_served_this(request: Request) -> Served:
    """Which process answered, and what it knows of you: the client's address and scheme come by way of nginx."""
    return Served(
        pid=os.getpid(),
        replica=socket.gethostname(),
        client=request.client.host if request.client else "",
        scheme=request.url.scheme,
        host=request.headers.get("host", ""),
        request_id=request.headers.get("x-request-id", ""),
    )


class Item(BaseModel):
    sku: str
    name: str
    price_cents: int


@app.get("/items")
async def items(n: Annotated[int, Query(ge=0, le=1000)] = 20) -> list[Item]:
    return [Item(sku=f"sku-{i}", name=f"Item number {i}", price_cents=100 + i) for i in range(n)]


class Work(BaseModel):
    kind: str
    ms: int
    pid: int


@app.get("/work/io")
async def awaited_io(ms: Annotated[int, Query(ge=0, le=60_000)] = 50) -> Work:
    """What a request to a database looks like to the event loop: it waits, others go on."""
    await asyncio.sleep(ms / 1000)
    return Work(kind="io", ms=ms, pid=os.getpid())


@app.get("/work/cpu")
def cpu_in_the_thread_pool(ms: Annotated[int, Query(ge=0, le=5_000)] = 5) -> Work:
    """`def`, not `async def`: FastAPI runs it in a thread, and the event loop goes on."""
    _burn(ms)
    return Work(kind="cpu", ms=ms, pid=os.getpid())


@app.get("/work/block", include_in_schema=LAB)
async def the_mistake(ms: Annotated[int, Query(ge=0, le=60_000)] = 50) -> Work:
    """CPU work in an `async def`: everybody on this worker waits. Answers 404 unless ENABLE_LAB=1."""
    if not LAB:
        raise HTTPException(404)
    time.sleep(ms / 1000)  # noqa: ASYNC251 (the mistake is the point)
    return Work(kind="block", ms=ms, pid=os.getpid())


def _burn(ms: int) -> None:
    end = time.thread_time() + ms / 1000
    while time.thread_time() < end:
        sum(range(1000))


class Customer(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$", max_length=200)]
    address: Annotated[str, Field(max_length=500)]


class Line(BaseModel):
    sku: Annotated[str, Field(min_length=1, max_length=64)]
    quantity: Annotated[int, Field(ge=1, le=1000)]
    unit_price_cents: Annotated[int, Field(ge=0, le=100_000_000)]


class Order(BaseModel):
    customer: Customer
    lines: Annotated[list[Line], Field(min_length=1, max_length=50)]
    note: Annotated[str, Field(max_length=1000)] = ""


class Receipt(BaseModel):
    key: str
    applied: bool
    total_cents: int
    lines: int


@app.post("/orders", status_code=201)
async def place_order(order: Order, idempotency_key: Annotated[str, Header(pattern=KEY)]) -> Receipt:
    """Applied once for each Idempotency-Key, however often it is sent: `applied` is false for a repeat."""
    try:
        applied = ledger().deliver(idempotency_key)
    except OSError as error:
        raise HTTPException(507, f"the order is not applied: {error.strerror}") from None
    return Receipt(
        key=idempotency_key,
        applied=applied,
        total_cents=sum(line.quantity * line.unit_price_cents for line in order.lines),
        lines=len(order.lines),
    )


class Applied(BaseModel):
    key: str
    deliveries: int
    applied: int


@app.get("/orders/{key}")
async def order_applied(key: Annotated[str, PathParameter(pattern=KEY)]) -> Applied:
    """How often an order has arrived, and how often it was applied, in all workers of all replicas."""
    deliveries = ledger().deliveries(key)
    return Applied(key=key, deliveries=deliveries, applied=min(deliveries, 1))


class LedgerSummary(BaseModel):
    keys: int
    deliveries: int
    repeated: dict[str, int]


@app.get("/orders")
async def ledger_summary(prefix: Annotated[str, Query(max_length=64)] = "") -> LedgerSummary:
    """The ledger of all keys with this prefix in three numbers; at most 1,000 of those that arrived more than once."""
    keys, deliveries, repeated = ledger().summary(prefix, most=1000)
    return LedgerSummary(keys=keys, deliveries=deliveries, repeated=repeated)


@app.get("/events")
async def events(
    count: Annotated[int, Query(ge=1, le=100_000)] = 5,
    interval_ms: Annotated[int, Query(ge=0, le=5_000)] = 1000,
) -> StreamingResponse:
    """An event stream. On a stop it is cancelled, and says goodbye."""

    async def stream() -> AsyncIterator[str]:
        try:
            for number in range(count):
                yield f"id: {number}\ndata: {time.time()}\n\n"
                await asyncio.sleep(interval_ms / 1000)
        except asyncio.CancelledError:
            yield "event: bye\ndata: the server stops, connect again\n\n"
            raise

    return StreamingResponse(stream(), media_type="text/event-stream")


@app.websocket("/ws/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


class Upload(BaseModel):
    bytes: int
    sha256: str


@app.post("/upload")
async def upload(request: Request) -> Upload:
    """Reads the body as it comes, so that a large one is never in memory as a whole."""
    size, digest = 0, hashlib.sha256()
    async for chunk in request.stream():
        size += len(chunk)
        digest.update(chunk)
    return Upload(bytes=size, sha256=digest.hexdigest())
