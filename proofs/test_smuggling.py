"""Requests that two servers could read in two ways: refused by nginx, or read by it and the app in the same one."""

from __future__ import annotations

import json
import re
import uuid

import pytest

from proofs.stack import Stack, until
from proofs.test_proxy import raw

ORDER = json.dumps(
    {
        "customer": {"name": "Eve", "email": "eve@example.com", "address": "1 Side Street"},
        "lines": [{"sku": "sku-1", "quantity": 1, "unit_price_cents": 1}],
    }
)

# The headers beside "Content-Length: (all that follows)", where the body is an empty chunk and then the hidden request.
# Whoever takes it for chunked finds that request behind it.
REFUSED = {
    "both lengths": "Transfer-Encoding: chunked\r\n",
    "both, in capitals": "TRANSFER-ENCODING: CHUNKED\r\n",
    "both, a blank behind": "Transfer-Encoding: chunked \r\n",
    "both, a tab before": "Transfer-Encoding:\tchunked\r\n",
    "both, a vertical tab": "Transfer-Encoding: \x0bchunked\r\n",
    "both, quoted": 'Transfer-Encoding: "chunked"\r\n',
    "xchunked": "Transfer-Encoding: xchunked\r\n",
    "chunked, identity": "Transfer-Encoding: chunked, identity\r\n",
    "identity, chunked": "Transfer-Encoding: identity, chunked\r\n",
    "identity": "Transfer-Encoding: identity\r\n",
    "two codings": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "blank before the colon": "Transfer-Encoding : chunked\r\n",
    "folded": "Transfer-Encoding:\r\n chunked\r\n",
    "folded with a tab": "X-Before: a\r\n\tTransfer-Encoding: chunked\r\n",
    "behind a bare LF": "X-Before: a\nTransfer-Encoding: chunked\r\n",
    "behind a bare CR": "X-Before: a\rTransfer-Encoding: chunked\r\n",
    "behind a NUL": "X-Before: a\0Transfer-Encoding: chunked\r\n",
    "a NUL in the name": "Transfer-Encoding\0: chunked\r\n",
    "the length twice, shorter": "Content-Length: 5\r\n",
    "the length twice, the same": "Content-Length: {length}\r\n",
    "no colon": "Transfer-Encoding\r\n",
    "no name": ": chunked\r\n",
}  # fmt: skip
LENGTHS = ("+5", "-1", "0x5", "5,5", "5 5", "", "5\0", "99999999999999999999999")


def hidden(key: str) -> str:
    """The request that must not be found: an order, of which the ledger would know."""
    return (
        f"POST /orders HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(ORDER)}\r\nConnection: close\r\n\r\n{ORDER}"
    )


def statuses(answer: str) -> list[int]:
    return [int(status) for status in re.findall(r"HTTP/1\.1 (\d{3}) ", answer)]


def assert_not_found(stack: Stack, key: str) -> None:
    with stack.client() as client:
        deliveries = client.get(f"/orders/{key}").json()["deliveries"]
    assert deliveries == 0, "the app took the hidden request for one"


def send(stack: Stack, headers: str) -> tuple[str, str]:
    """The answers to a POST with these headers, and the hidden request's key."""
    key = f"smuggled-{uuid.uuid4().hex}"
    body = f"0\r\n\r\n{hidden(key)}"
    head = f"POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    return raw(stack, f"{head}{headers.format(length=len(body))}\r\n{body}"), key


@pytest.mark.parametrize("shape", REFUSED)
def test_a_body_of_two_lengths_is_refused(stack: Stack, shape: str) -> None:
    answer, key = send(stack, REFUSED[shape])
    assert statuses(answer) in ([400], [501]), f"{shape}: {answer[:300]}"
    assert_not_found(stack, key)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_length_that_is_no_number_is_refused(stack: Stack, length: str) -> None:
    key = f"smuggled-{uuid.uuid4().hex}"
    request = f"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n12345{hidden(key)}"
    assert statuses(raw(stack, request)) in ([400], [413]), length
    assert_not_found(stack, key)


def test_a_header_that_nginx_drops_does_not_reach_the_app(stack: Stack) -> None:
    """With an underscore: the app's server, or a WSGI layer, could take it for the one with a hyphen."""
    answer, key = send(stack, "Transfer_Encoding: chunked\r\n")
    assert statuses(answer) == [200], answer
    assert f'"bytes":{len(hidden(key)) + 5}' in answer, "the body was not read by its length"
    assert_not_found(stack, key)


def test_a_chunked_body_is_read_to_its_last_chunk(stack: Stack) -> None:
    """The hidden request stands in a chunk: whoever goes by a length finds it."""
    key = f"smuggled-{uuid.uuid4().hex}"
    head = "POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    for size in ("{:x}", "000{:X}", "{:x};name=value", "{:x} "):
        answer = raw(stack, f"{head}{size.format(len(hidden(key)))}\r\n{hidden(key)}\r\n0\r\n\r\n")
        assert statuses(answer) == [200], answer
        assert f'"bytes":{len(hidden(key))}' in answer
    # With bare line feeds newer versions of nginx refuse it; older ones send the app a length instead.
    answer = raw(stack, f"{head}{len(hidden(key)):x}\n{hidden(key)}\n0\n\n")
    assert statuses(answer) == [400] or f'"bytes":{len(hidden(key))}' in answer, answer
    assert_not_found(stack, key)


@pytest.mark.parametrize("size", ["-1", "+5", "0x5", "g", "", "fffffffffffffffff"])
def test_a_chunk_of_no_size_is_refused(stack: Stack, size: str) -> None:
    key = f"smuggled-{uuid.uuid4().hex}"
    head = "POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = raw(stack, f"{head}{size}\r\n12345\r\n0\r\n\r\n{hidden(key)}")
    assert statuses(answer) in ([400], [413]), answer
    assert_not_found(stack, key)


def test_bare_line_feeds_are_read_as_line_ends_by_both(stack: Stack) -> None:
    key = f"smuggled-{uuid.uuid4().hex}"
    head = f"POST /upload HTTP/1.1\nHost: localhost\nConnection: close\nContent-Length: {len(hidden(key))}\n\n"
    answer = raw(stack, head + hidden(key))
    assert statuses(answer) == [200], answer
    assert f'"bytes":{len(hidden(key))}' in answer
    assert_not_found(stack, key)


def test_a_body_of_a_get_is_its_body(stack: Stack) -> None:
    key = f"smuggled-{uuid.uuid4().hex}"
    head = f"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(hidden(key))}\r\n\r\n"
    answer = raw(stack, head + hidden(key))
    assert statuses(answer) == [200], answer
    assert_not_found(stack, key)


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "TLS/1.0"])
def test_a_refused_upgrade_opens_no_tunnel_to_the_app(stack: Stack, upgrade: str) -> None:
    """In a tunnel nobody would ask which path the next request is for."""
    answer = raw(
        stack,
        f"GET /ws/echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n"
        "Sec-WebSocket-Version: 777\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    assert 101 not in statuses(answer), answer
    assert "http_requests_total" not in answer, "the app's metrics came through"


@pytest.mark.parametrize(
    "host", ["", "Host: a\r\nHost: a\r\n", "Host: a\r\nHost: b\r\n", "Host:\r\n", "Host: a/b\r\n", "Host: a\0b\r\n",
             "Host: a..b\r\n", "Host : a\r\n", "Host: a\r\n b\r\n"]
)  # fmt: skip
def test_a_request_without_one_good_host_is_refused(stack: Stack, host: str) -> None:
    answer = raw(stack, f"GET / HTTP/1.1\r\n{host}Connection: close\r\n\r\n")
    assert statuses(answer) == [400], answer


def test_the_name_in_the_request_line_is_the_one_that_counts_for_both(stack: Stack) -> None:
    answer = raw(stack, "GET http://localhost/ HTTP/1.1\r\nHost: evil.test:81\r\nConnection: close\r\n\r\n")
    assert statuses(answer) == [200], answer
    assert "evil.test" not in answer


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("get / HTTP/1.1", 400),
        ("GE\tT / HTTP/1.1", 400),
        ("GE\0T / HTTP/1.1", 400),
        ("GET / XTTP/1.1", 400),
        ("GET / HTTP/1.1 x", 400),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/9.9", 505),
        ("GET /\x01 HTTP/1.1", 400),
        ("GET /\x7f HTTP/1.1", 400),
        ("GET /\0 HTTP/1.1", 400),
        ("GET /%00 HTTP/1.1", 400),
        ("GET /%0 HTTP/1.1", 400),
        ("GET /../../etc/passwd HTTP/1.1", 400),
        ("GET  HTTP/1.1", 400),
        ("GET items HTTP/1.1", 400),
        ("GET /" + "x" * 9000 + " HTTP/1.1", 414),
        ("TRACE / HTTP/1.1", 405),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_request_line_that_is_none_is_refused_as_json(stack: Stack, line: str, status: int) -> None:
    answer = raw(stack, f"{line}\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition("\r\n\r\n")
    assert statuses(head) == [status], answer
    assert body.startswith("{"), f"the {status} is not JSON: {body[:60]}"
    assert json.loads(body)["status"] == status


@pytest.mark.parametrize("target", ["/", "evil.test:443", "127.0.0.1:80"])
def test_connect_opens_no_tunnel(stack: Stack, target: str) -> None:
    answer = raw(stack, f"CONNECT {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert statuses(answer) in ([400], [405]), answer


def test_a_line_without_a_version_reaches_no_app(stack: Stack) -> None:
    """HTTP/0.9: no headers either way. nginx has a name for nobody in it."""
    answer = raw(stack, "GET /\r\n")
    assert json.loads(answer)["status"] == 421


def test_the_app_gets_as_many_requests_as_nginx_logs(stack: Stack) -> None:
    """All shapes once more, refused or not, and counted on both sides."""
    marks = []
    # A request is counted when its handler has ended: one of an earlier test that was answered 504 may still run.
    until("nothing in flight", lambda: stack.metric("http_requests_in_flight") == 0)
    before = counted(stack)
    for headers in [*REFUSED.values(), "Transfer_Encoding: chunked\r\n", "X-Good: yes\r\n"]:
        marks.append(f"counted-{uuid.uuid4().hex}")
        send(stack, f"X-Request-ID: {marks[-1]}\r\n{headers}")
    end = f"counted-{uuid.uuid4().hex}"
    with stack.client() as client:
        client.get("/nginx-health")
        client.get("/", headers={"X-Request-ID": end})

    def passed_on() -> int:
        return len([x for x in stack.access_log() if x["request_id"] in (*marks, end) and x["upstream"]])

    until("the lines of what was passed on, of each nginx worker", lambda: passed_on() >= 3)
    until("the app's count", lambda: counted(stack) - before >= 3, seconds=15)
    got = counted(stack) - before
    assert got == passed_on() == 3, f"nginx has passed on {passed_on()} requests, the app has got {got}"


def counted(stack: Stack) -> int:
    """How many requests the app has answered."""
    return int(stack.metric("http_requests_total"))
