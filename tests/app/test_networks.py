from __future__ import annotations

from app.server.networks import attached, trusted

# Iface Destination Gateway Flags RefCnt Use Metric Mask ..., addresses in the kernel's byte order
ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010012AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth1\t00021EAC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


def test_the_attached_networks_are_trusted_and_the_way_out_is_not() -> None:
    assert attached(ROUTES) == ["172.18.0.0/16", "172.30.2.0/24"]


def test_addresses_that_are_named_are_taken_as_they_are() -> None:
    assert trusted("127.0.0.1,10.0.0.0/8") == "127.0.0.1,10.0.0.0/8"
