"""The simulated queues, against what is known of queues by arithmetic."""

import pytest

from bench.queues import waits


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_server_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    """M/D/1: the mean time in the system is S (1 + load / 2 (1 - load))."""
    taken = waits(1, load, [10.0], 40_000)
    assert sum(taken) / len(taken) == pytest.approx(10 * (1 + load / (2 * (1 - load))), rel=0.06)


def test_more_servers_at_the_same_load_wait_less() -> None:
    p99 = [sorted(waits(servers, 0.8, [10.0], 8000))[-80] for servers in (1, 4, 32)]
    assert p99[0] > p99[1] > p99[2]


def test_a_balancer_that_is_full_is_what_all_wait_for() -> None:
    """100 servers of 10 ms ask for 8 requests in a millisecond, of which it passes on 5."""
    assert sum(waits(100, 0.8, [10.0], 4000, pass_ms=0.2)) / 4000 > 50
