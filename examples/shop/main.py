"""A shop: orders in PostgreSQL, each once, however often and to however many workers it is sent."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert

from .database import transaction
from .models import Order

app = FastAPI(title="Shop")


class NewOrder(BaseModel):
    sku: Annotated[str, Field(min_length=1, max_length=64)]
    quantity: Annotated[int, Field(ge=1, le=1000)]


class PlacedOrder(NewOrder):
    model_config = ConfigDict(from_attributes=True)

    id: int
    placed_at: datetime


@app.post("/orders", status_code=201)
async def place_order(
    order: NewOrder, idempotency_key: Annotated[str, Header(min_length=1, max_length=64)]
) -> PlacedOrder:
    """Place an order; the same key again gets the same order, and 409 if it is for something else."""
    async with transaction() as session:
        new = insert(Order).values(key=idempotency_key, **order.model_dump())
        new = new.on_conflict_do_nothing(index_elements=[Order.key]).returning(Order)
        placed = (await session.scalars(new)).one_or_none()
        if placed is None:  # the key was there
            placed = (await session.scalars(select(Order).where(Order.key == idempotency_key))).one()
    # Outside the block, so after the commit: what is answered 201 is there.
    if (placed.sku, placed.quantity) != (order.sku, order.quantity):
        raise HTTPException(409, "this Idempotency-Key was used for another order")
    return PlacedOrder.model_validate(placed)


@app.get("/orders/{number}")
async def order(number: int) -> PlacedOrder:
    async with transaction() as session:
        found = await session.get(Order, number)
    if found is None:
        raise HTTPException(404, "no such order")
    return PlacedOrder.model_validate(found)


@app.get("/health/database")
async def database_health() -> dict[str, str]:
    """For your monitoring. It is apart from /readyz: a worker is not replaced because the database is away."""
    async with transaction() as session:
        await session.execute(text("SELECT 1"))
    return {"database": "up"}
