"""Strawberry GraphQL, with a subscription over WebSocket.

Needed: the package strawberry-graphql. No row and no line more.
"""

from collections.abc import AsyncGenerator

import anyio
import strawberry
from strawberry.asgi import GraphQL


@strawberry.type
class Query:
    @strawberry.field
    def price(self, item: str) -> int:
        return 3 * len(item)


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def prices(self, silence: int) -> AsyncGenerator[int, None]:
        yield 3
        await anyio.sleep(silence)
        yield 4


app = GraphQL(strawberry.Schema(Query, subscription=Subscription))
