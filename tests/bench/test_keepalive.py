from pathlib import Path

from bench.experiments.keepalive import VARIANTS, _gaps, active_opens, per_request, said

SNMP = """Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens
Tcp: 1 200 120000 -1 4711 815
Udp: InDatagrams NoPorts
Udp: 1 2
"""


def test_opened_connections_are_read_by_their_name() -> None:
    assert active_opens(SNMP) == 4711
    assert active_opens(Path("/proc/net/snmp").read_text()) >= 0


def test_the_connections_of_the_load_are_not_counted() -> None:
    assert per_request(opens=164, requests=200, by_the_load=64) == 0.5
    assert per_request(opens=60, requests=200, by_the_load=64) == 0


def test_the_posts_come_as_the_first_of_both_closes() -> None:
    for keep_alive, proxy in VARIANTS.items():
        gaps = _gaps(keep_alive)
        assert all(gap >= 0 for gap in gaps)
        if proxy and keep_alive:
            assert min(gaps) < keep_alive < max(gaps)
    assert 0.0 in _gaps(0)


def test_the_sentence_about_zero_comes_from_the_figures() -> None:
    assert "at once: 0.97 connections" in said(0.97)
    assert "only 0.01 connections" in said(0.01)
