import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest

from bench import burst_load, open_loop
from bench.open_loop import Arrival, percentile, poisson
from bench.processes import CannotRun
from tests.bench.in_thread import serving

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BAD = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"


class Server:
    """Answers each request after 0.2 s where its path is /slow, after two others where it is /last, at once otherwise;
    with 502 where it is /bad.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0
        self.loop = asyncio.new_event_loop()
        self.under_way = self.most_under_way = 0
        self.answered: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError):  # a burst leaves in the middle of an answer
            while line := await reader.readline():
                while (await reader.readline()).strip():
                    pass
                path = line.split()[1]
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
                await asyncio.sleep(0.2 if path == b"/slow" else 0)
                end = self.loop.time() + 20
                while path == b"/last" and len(self.answered) < 2 and self.loop.time() < end:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                self.under_way -= 1
                self.answered.append(path)
                writer.write(BAD if path == b"/bad" else OK)
        writer.close()

    async def main(self, up: threading.Event) -> None:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        up.set()
        self.ending = asyncio.Event()
        await self.ending.wait()
        server.close()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    with serving(one):
        yield one


def test_the_same_seed_gives_the_same_arrivals_and_each_seed_as_many_and_as_many_slow_ones() -> None:
    first, again, other = (poisson(200, 5, "/", "/slow", 0.05, seed) for seed in (3, 3, 4))
    assert first == again != other
    for arrivals in (first, other):
        assert len(arrivals) == 1000
        assert sum(arrival.path == "/slow" for arrival in arrivals) == 50
        assert [arrival.due for arrival in arrivals] == sorted(arrival.due for arrival in arrivals)


def test_a_slow_answer_holds_back_no_request_that_is_due(server: Server) -> None:
    open_loop.run(server.port, [Arrival(0.0, "/last"), Arrival(0.05, "/"), Arrival(0.06, "/")])
    assert server.answered == [b"/", b"/", b"/last"]


def test_an_answer_takes_as_long_as_its_client_waits(server: Server) -> None:
    assert open_loop.run(server.port, [Arrival(0.0, "/slow")])["/slow"][0] >= 200


def test_a_connection_is_used_again(server: Server) -> None:
    open_loop.capacity(server.port, "/", "/", 0.05, connections=1, seconds=0.2)
    assert len(server.answered) > 1
    assert server.connections == 1


def test_the_closed_loop_finds_what_the_server_can_do(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its clock: ten answers are a second.
    monkeypatch.setattr(open_loop, "time", SimpleNamespace(perf_counter=lambda: len(server.answered) / 10))
    rate = open_loop.capacity(server.port, "/slow", "/slow", 0.05, connections=2, seconds=0.9)
    assert rate == pytest.approx(10)
    assert server.most_under_way == 2


def test_a_request_that_fails_ends_the_measurement(server: Server) -> None:
    with pytest.raises(CannotRun, match="GET /bad: status 502"):
        open_loop.run(server.port, [Arrival(0.0, "/bad")])


def test_each_connection_of_a_burst_gives_one_first_answer(server: Server) -> None:
    assert len(burst_load.first_answers(server.port, connections=20, seconds=0.1)) == 20
    assert server.connections == 20


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([7.0], 0.99) == 7
