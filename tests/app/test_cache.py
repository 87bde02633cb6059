"""What the shell offers to nginx's cache."""

from typing import Any

import pytest

from app.server.cache import FILE_BYTES, LOOK_SECONDS, Offers, lets_keep

KEPT = [b"max-age=1", b"Public, S-MaxAge=5", b"max-age=0, s-maxage=5", b"max-age=60, max-age=60", b"max-age = 5"]
NOT_KEPT = [
    b"",
    b"public",
    b"max-age",
    b"max-age=",
    b"max-age=0",
    b"max-age=-5",
    b"max-age=5, max-age=6",
    b"s-maxage=x",
    b"max-age=5, s-maxage=0",
    b"no-store, max-age=5",
    b'private="a", max-age=5',
    b"no-cache, max-age=5",
    b"max-age=99999999999",
    b"max-age=5, must-revalidate, stale-while-revalidate=5",
    b"max-age=5, proxy-revalidate, stale-if-error=5",
    b"max-age=5, stale-if-error=x",
]


@pytest.mark.parametrize("said", KEPT)
def test_a_lifetime_lets_keep(said: bytes) -> None:
    assert lets_keep(said)


@pytest.mark.parametrize("said", NOT_KEPT)
def test_what_forbids_or_contradicts_does_not(said: bytes) -> None:
    assert not lets_keep(said)


def look(offers: Offers, size: int, path: str = "/a", method: str = "GET", status: int = 200, **more: str) -> bool:
    """Whether an answer of this size is offered; `more` are headers of the request."""
    headers = [(b"cache-control", b"max-age=5"), (b"content-length", str(size).encode())]
    message: dict[str, Any] = {"status": status, "headers": headers}
    scope = {"method": method, "path": path, "headers": [(k.encode(), v.encode()) for k, v in more.items()]}
    offers.look_at(scope, message)
    return (b"x-accel-buffering", b"yes") in message["headers"]


def test_only_gets_of_the_paths_are_offered() -> None:
    offers = Offers(("/a", "/b/"), 10 << 20)
    assert look(offers, 10) and look(offers, 10, "/b/c")  # noqa: PT018
    assert not look(offers, 10, "/c") and not look(offers, 10, "/b")  # noqa: PT018
    assert not look(offers, 10, method="POST") and not look(offers, 10, status=206)  # noqa: PT018
    assert not look(offers, 10, authorization="Bearer x")


def test_no_more_is_offered_at_a_time_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("app.server.cache.monotonic", lambda: now)
    offers = Offers(("/",), 4 * FILE_BYTES)
    assert [look(offers, FILE_BYTES) for _ in range(4)] == [True, True, False, False]
    now += LOOK_SECONDS
    assert look(offers, FILE_BYTES), "after nginx has looked there is room again"
    assert not look(offers, 4 * FILE_BYTES), "one alone may be more than the share"
