from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from app.server.asgi import Message, Receive, Scope, Send
from app.server.turns import REQUESTS_IN_A_SHORT_TURN, SHORT_TURNS, TurnGate

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


def ask(gate: TurnGate, number: int) -> asyncio.Task[None]:
    scope: dict[str, Any] = {"type": "http", "number": number}
    return asyncio.ensure_future(gate(scope, receive, send))  # type: ignore[arg-type]


def test_all_that_have_come_begin_in_one_turn_of_the_loop() -> None:
    turns = Turns()
    gate = TurnGate(turns)

    async def burst() -> None:
        turns.next_turn()
        await asyncio.gather(*(ask(gate, number) for number in range(MANY)))

    asyncio.run(burst())
    assert turns.begun == [(number, turns.begun[0][1]) for number in range(MANY)]


def test_while_connections_are_new_so_many_begin_in_a_turn_and_all_in_the_order_they_came() -> None:
    turns = Turns()
    gate = TurnGate(turns)

    async def burst() -> None:
        turns.next_turn()
        gate.shorten_turns()
        first = [ask(gate, number) for number in range(MANY)]
        await asyncio.sleep(0)
        gate.shorten_turns()
        await asyncio.gather(*first, *(ask(gate, number) for number in range(MANY, 2 * MANY)))

    asyncio.run(burst())
    assert [number for number, _ in turns.begun] == list(range(2 * MANY))
    short, rest = turns.in_each_turn[: SHORT_TURNS - 1], turns.in_each_turn[SHORT_TURNS - 1 :]
    assert short == [REQUESTS_IN_A_SHORT_TURN] * len(short)
    assert sum(rest[:-1]) <= 2 * REQUESTS_IN_A_SHORT_TURN
    assert gate.short_turns == 0
    assert not gate._waiting


def test_a_request_that_comes_alone_waits_for_nothing() -> None:
    turns = Turns()
    gate = TurnGate(turns)

    async def one_by_one() -> None:
        turns.next_turn()
        gate.shorten_turns()
        for number in range(3):
            before = turns.turn
            await ask(gate, number)
            assert turns.begun[-1] == (number, before + 1), "it was not begun in the first turn that it could be"

    asyncio.run(one_by_one())


def test_requests_that_are_cancelled_while_they_wait_hold_up_nobody() -> None:
    turns = Turns()
    gate = TurnGate(turns)

    async def burst() -> None:
        gate.shorten_turns()
        tasks = [ask(gate, number) for number in range(MANY)]
        await asyncio.sleep(0)
        for task in tasks[REQUESTS_IN_A_SHORT_TURN:-1]:
            task.cancel()
        async with asyncio.timeout(10):
            await tasks[-1]
            await ask(gate, MANY)
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(burst())
    assert [number for number, _ in turns.begun] == [*range(REQUESTS_IN_A_SHORT_TURN), MANY - 1, MANY]


def test_a_lifespan_waits_for_no_turn() -> None:
    begun: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["type"])

    async def burst() -> None:
        gate = TurnGate(app)
        gate.shorten_turns()
        for _ in range(REQUESTS_IN_A_SHORT_TURN + 1):
            await gate({"type": "lifespan"}, receive, send)

    asyncio.run(burst())
    assert begun == ["lifespan"] * (REQUESTS_IN_A_SHORT_TURN + 1)
