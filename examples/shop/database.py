"""The one way to the database: a transaction that is committed, or that failed in a way the client can act on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from asyncpg import PostgresError
from fastapi import HTTPException
from sqlalchemy import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

# Of PostgreSQL's errors: it stops, is not up yet, has no connection left, or the connection broke.
AWAY = ("57P", "08", "53")


def url() -> URL:
    """DATABASE_URL, with the password of DATABASE_PASSWORD_FILE where that is set."""
    address = make_url(os.environ["DATABASE_URL"])
    if file := os.environ.get("DATABASE_PASSWORD_FILE"):
        return address.set(password=Path(file).read_text().strip())
    return address


pool_size = int(os.environ["DATABASE_POOL_SIZE"])
if pool_size < 1:
    raise ValueError(f"DATABASE_POOL_SIZE={pool_size}: must be at least 1; set the row in .env")
DEADLINE_SECONDS = int(os.environ["REQUEST_DEADLINE_SECONDS"])
# For a place in the pool and a connection that answers. A database that stands still must not hold requests for longer.
CONNECT_SECONDS = DEADLINE_SECONDS / 2
longest_ms = str(1000 * DEADLINE_SECONDS)

engine = create_async_engine(
    url(),
    pool_size=pool_size,
    # No connection beyond the row: the stack holds the sum of all pools against max_connections.
    max_overflow=0,
    # Without it the first request on each connection fails after the database was restarted.
    pool_pre_ping=True,
    connect_args={
        "server_settings": {
            # The stack's deadline cancels a query. These end it where its worker was killed, or frozen, with it.
            "statement_timeout": longest_ms,
            "idle_in_transaction_session_timeout": longest_ms,
        },
    },
)


@asynccontextmanager
async def transaction() -> AsyncIterator[AsyncSession]:
    """A session whose transaction is committed at the end of the block, and rolled back where the block fails.

    Raises HTTPException, 503, where the database does not answer. Whether a commit that was under way was done is not
    known then: the client sends its order again, with the same key.
    """
    async with AsyncSession(engine, expire_on_commit=False) as session:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await session.connection()
        except (OSError, PostgresError, SQLAlchemyError) as error:  # TimeoutError is an OSError
            raise _away() from error
        try:
            yield session
            await session.commit()
        except DBAPIError as error:
            if error.connection_invalidated or str(getattr(error.orig, "sqlstate", "")).startswith(AWAY):
                raise _away() from error
            raise


def _away() -> HTTPException:
    return HTTPException(503, "the database does not answer: send the same again in a moment", {"Retry-After": "1"})
