"""What a line of nginx's is taken for. That nginx writes such lines is proved in proofs/test_live.py."""

from __future__ import annotations

from collections import Counter

import pytest

from live.counts import parse, percentile

WORKER = "172.20.0.3:8001"


@pytest.mark.parametrize(
    ("line", "cause", "results"),
    [
        (f"200|{WORKER}|200|text/html; a|b|0.004|-|0.005", "app", ["answered"]),
        (f"304|{WORKER}|200|text/html|0.004|-|0.005", "app", ["answered"]),
        (f"503|{WORKER}|503|application/json|0.004|-|0.005", "app", ["answered"]),
        (f"200|{WORKER}, {WORKER}|502, 200|-|-, 0.004|MISS|0.005", "app", ["failed", "answered"]),
        ("200|-|-|text/html|-|HIT|0.000", "cache", []),
        (f"200|{WORKER}|304|text/html|0.001|REVALIDATED|0.001", "cache", ["answered"]),
        ("503|app|502|application/json|-|-|0.000", "full", []),
        (f"503|{WORKER} : {WORKER}|502 : 502|application/json|- : -|-|0.001", "down", ["failed", "failed"]),
        (f"504|{WORKER}|504|application/json|-|-|4.000", "silent", ["silent"]),
        (f"502|{WORKER}|502|application/json|-|-|0.300", "lost", ["failed"]),
        (f"499|{WORKER}|-|-|-|-|0.300", "client_left", ["cut"]),
        ("429|-|-|application/json|-|-|0.000", "client_limit", []),
        ("421|-|-|application/json|-|-|0.000", "host", []),
        ("413|-|-|application/json|-|-|0.000", "too_large", []),
        ("408|-|-|-|-|-|2.000", "bad_request", []),
        ("000|-|-|-|-|-|2.000", "bad_request", []),
        ("308|-|-|text/html|-|-|0.000", "nginx", []),
    ],
)
def test_a_line_says_who_caused_its_answer(line: str, cause: str, results: list[str]) -> None:
    found = parse(line.encode())
    assert found is not None
    assert found.cause == cause
    assert [result for _, result in found.tries] == results


@pytest.mark.parametrize("line", ["", "200|-|-|-", "x|-|-|-|-|-|0.001"])
def test_half_a_line_is_none(line: str) -> None:
    assert parse(line.encode()) is None


def test_a_stream_has_no_duration() -> None:
    for line in (b"200|a:1|200|text/event-stream; charset=utf-8|0.001|-|11.000", b"101|a:1|101|-|0.001|-|60.000"):
        found = parse(line)
        assert found is not None
        assert found.milliseconds is None


def test_a_percentile_is_a_number_that_was_measured() -> None:
    times = Counter({10: 80, 150: 17, 700: 3})
    assert [percentile(times, share) for share in (0.5, 0.8, 0.95, 0.97, 0.99, 1.0)] == [10, 10, 150, 150, 700, 700]
    assert percentile(Counter(), 0.5) is None
