from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from app.server.edge import REQUESTS_IN_A_SHORT_TURN, SHORT_TURNS, Edge, Message, Receive, Scope, Send

MANY = 5 * REQUESTS_IN_A_SHORT_TURN + 3


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Message) -> None:
    raise AssertionError(f"nothing is sent here, and yet: {message}")


class Turns:
    """An application that notes in which turn of the loop each request begins; `scope` has its number."""

    def __init__(self) -> None:
        self.turn = 0
        self.begun: list[tuple[int, int]] = []  # number, turn

    def next_turn(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self.next_turn)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.append((scope["number"], self.turn))

    @property
    def in_each_turn(self) -> list[int]:
        turns = [turn for _, turn in self.begun]
        return [turns.count(turn) for turn in sorted(set(turns))]


def ask(edge: Edge, number: int) -> asyncio.Task[None]:
    scope: dict[str, Any] = {"type": "http", "number": number}
    return asyncio.ensure_future(edge(scope, receive, send))  # type: ignore[arg-type]


def test_all_that_have_come_begin_in_one_turn_of_the_loop() -> None:
    turns = Turns()
    edge = Edge(turns, lambda line: None)

    async def burst() -> None:
        turns.next_turn()
        await asyncio.gather(*(ask(edge, number) for number in range(MANY)))

    asyncio.run(burst())
    assert turns.begun == [(number, turns.begun[0][1]) for number in range(MANY)]


def test_while_connections_are_new_so_many_begin_in_a_turn_and_all_in_the_order_they_came() -> None:
    turns = Turns()
    edge = Edge(turns, lambda line: None)

    async def burst() -> None:
        turns.next_turn()
        edge.connections_are_new()
        first = [ask(edge, number) for number in range(MANY)]
        await asyncio.sleep(0)
        edge.connections_are_new()
        await asyncio.gather(*first, *(ask(edge, number) for number in range(MANY, 2 * MANY)))

    asyncio.run(burst())
    assert [number for number, _ in turns.begun] == list(range(2 * MANY))
    short, rest = turns.in_each_turn[: SHORT_TURNS - 1], turns.in_each_turn[SHORT_TURNS - 1 :]
    assert short == [REQUESTS_IN_A_SHORT_TURN] * len(short)
    assert sum(rest[:-1]) <= 2 * REQUESTS_IN_A_SHORT_TURN
    assert edge.short_turns == 0
    assert not edge.waiting


def test_a_request_that_comes_alone_waits_for_nothing() -> None:
    turns = Turns()
    edge = Edge(turns, lambda line: None)

    async def one_by_one() -> None:
        turns.next_turn()
        edge.connections_are_new()
        for number in range(3):
            before = turns.turn
            await ask(edge, number)
            assert turns.begun[-1] == (number, before + 1), "it was not begun in the first turn that it could be"

    asyncio.run(one_by_one())


def test_requests_that_are_cancelled_while_they_wait_hold_up_nobody() -> None:
    turns = Turns()
    edge = Edge(turns, lambda line: None)

    async def burst() -> None:
        edge.connections_are_new()
        tasks = [ask(edge, number) for number in range(MANY)]
        await asyncio.sleep(0)
        for task in tasks[REQUESTS_IN_A_SHORT_TURN:-1]:
            task.cancel()
        async with asyncio.timeout(10):
            await tasks[-1]
            await ask(edge, MANY)
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(burst())
    assert [number for number, _ in turns.begun] == [*range(REQUESTS_IN_A_SHORT_TURN), MANY - 1, MANY]


def test_a_lifespan_is_not_counted_and_its_failure_is_told() -> None:
    told: list[str] = []

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed", "message": "Traceback …\nValueError: no database\n"})

    async def said(message: Message) -> None:
        assert message["type"] == "lifespan.startup.failed"

    edge = Edge(fails, told.append)
    asyncio.run(edge({"type": "lifespan"}, receive, said))  # type: ignore[arg-type]
    assert told == ["failed lifespan startup: ValueError: no database"]
    assert edge.begun == 0


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_cancellation_that_is_no_drains_goes_through(kind: str) -> None:
    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    async def cancelled() -> None:
        edge = Edge(waits, lambda line: None)
        task = asyncio.ensure_future(edge({"type": kind}, receive, send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
