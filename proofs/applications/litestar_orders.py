"""Litestar, made by a factory.

Needed: the package litestar; APP_MODULE with the factory's parentheses. No row and no line more.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
from litestar import Litestar, Request, get, post
from litestar.response import Redirect, Stream


@dataclass
class Order:
    item: str
    quantity: int
    total: int = 0


@post("/orders")
async def place(data: Order) -> Order:
    return Order(data.item, data.quantity, total=3 * data.quantity)


@get("/where")
async def where(request: Request) -> dict[str, str]:
    assert request.client
    return {"url": str(request.url), "client": request.client.host}


@get("/old")
async def old() -> Redirect:
    return Redirect("/where")


async def half_seconds() -> AsyncIterator[str]:
    for n in range(8):
        yield f"{n}\n"
        await anyio.sleep(0.5)


@get("/ticks")
async def ticks() -> Stream:
    return Stream(half_seconds(), media_type="text/plain")


def create_app() -> Litestar:
    return Litestar([place, where, old, ticks])
