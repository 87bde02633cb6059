"""Strawberry GraphQL, asked by the client gql: queries, and a subscription over WebSocket."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest
from gql import Client, gql
from gql.transport.httpx import HTTPXTransport
from gql.transport.websockets import WebsocketsTransport

from proofs.conftest import started
from proofs.stack import DEADLINE, Stack

pytestmark = pytest.mark.xdist_group(__name__)


@pytest.fixture(scope="module")
def prices() -> Iterator[Stack]:
    yield from started(Stack("native", "strawberry", APP_MODULE="proofs.applications.strawberry_prices:app"))


def test_a_query_is_answered(prices: Stack) -> None:
    with Client(transport=HTTPXTransport(f"{prices.url}/", timeout=DEADLINE)) as session:
        assert session.execute(gql('{ price(item: "tea") }')) == {"price": 9}


def test_its_page_for_trying_queries_is_compressed(prices: Stack) -> None:
    with prices.client() as client:
        page = client.get("/", headers={"Accept": "text/html", "Accept-Encoding": "gzip"})
    assert (page.status_code, page.headers.get("content-encoding")) == (200, "gzip")
    assert "GraphiQL" in page.text


def test_a_subscription_may_be_silent_for_longer_than_any_timeout(prices: Stack) -> None:
    limits = ("PROXY_READ_TIMEOUT_SECONDS", "ANSWER_STALL_SECONDS", "REQUEST_DEADLINE_SECONDS")
    silence = 2 * max(int(prices.rows[limit]) for limit in limits)

    async def subscription() -> list[int]:
        transport = WebsocketsTransport(
            prices.url.replace("http", "ws") + "/",
            close_timeout=1,
            connect_timeout=DEADLINE,
            ack_timeout=DEADLINE,
            connect_args={"open_timeout": DEADLINE},
        )
        async with Client(transport=transport) as session:
            wanted = gql(f"subscription {{ prices(silence: {silence}) }}")
            return [answer["prices"] async for answer in session.subscribe(wanted)]

    assert anyio.run(subscription) == [3, 4]
