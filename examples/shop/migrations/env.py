"""How Alembic reaches the database: all migrations that are due, in one transaction."""

import asyncio

from alembic import context
from app.shop.database import url
from app.shop.models import Base
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


async def main() -> None:
    # A migration that was killed must not go on in the database, where it would hold its locks.
    engine = create_async_engine(url(), connect_args={"server_settings": {"client_connection_check_interval": "1s"}})
    async with engine.begin() as connection:
        # Of two at a time, on whatever machines, the second waits, and finds nothing left to do.
        await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('migrations'))"))
        # All requests for a table queue up behind a change that waits for its lock: better to fail, and be tried again.
        await connection.execute(text("SET LOCAL lock_timeout = '1s'"))
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(main())
