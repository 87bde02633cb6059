"""What nginx refuses by itself: too many at once from one address, and names it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from proofs.conftest import started
from proofs.stack import Stack
from proofs.test_proxy import assert_json_error, raw


@pytest.fixture(scope="module")
def strict() -> Iterator[Stack]:
    """Two requests in flight for each address, and one name."""
    rows = {"CLIENT_MAX_REQUESTS_IN_FLIGHT": "2", "SERVER_NAMES": "example.com *.example.net"}
    yield from started(Stack("native", "strict", **rows))


def test_one_address_gets_so_many_requests_in_flight_and_429_for_the_next(strict: Stack) -> None:
    with strict.client() as client, ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: client.get("/work/io?ms=1500"), range(6)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(answers) - len(refused) == 2
        for answer in refused:
            assert_json_error(answer, 429, "Too Many Requests")
        assert client.get("/").status_code == 200, "the place is free again"


@pytest.mark.parametrize(
    ("host", "status"), [("example.com", 200), ("a.example.net:8080", 200), ("evil.test", 421),
                         ("example.com.evil.test", 421)]
)  # fmt: skip
def test_only_the_named_hosts_reach_the_app(strict: Stack, host: str, status: int) -> None:
    with strict.client() as client:
        answer = client.get("/", headers={"Host": host})
        assert client.get("/nginx-health", headers={"Host": host}).status_code == 200
    assert answer.status_code == status
    if status == 421:
        assert_json_error(answer, 421, "Misdirected Request")
    else:
        assert answer.json()["host"] == host


def test_a_host_header_beside_another_name_in_the_request_line_does_not_reach_the_app(strict: Stack) -> None:
    answer = raw(strict, "GET http://example.com/ HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n")
    assert "evil.test" not in answer
