"""The tables. A change here wants a migration: alembic -c app/shop/alembic.ini revision --autogenerate -m "what" """

from __future__ import annotations

from datetime import datetime

from sqlalchemy import DateTime, Identity, String, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    # Unique in the database: however many workers get the same order, one row is left.
    key: Mapped[str] = mapped_column(String(64), unique=True)
    sku: Mapped[str] = mapped_column(String(64))
    quantity: Mapped[int]
    placed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
