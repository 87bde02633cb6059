"""An app whose name has addresses of IPv6 too."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from proofs.conftest import require_engine, started
from proofs.stack import Stack, until

pytestmark = pytest.mark.xdist_group("compose")


@pytest.fixture(scope="module")
def dual_stack() -> Iterator[Stack]:
    """The app's network has IPv6, as where Docker's daemon gives it to all."""
    require_engine()
    patch = ("docker-compose.yml", "  app: { internal: true }", "  app: { internal: true, enable_ipv6: true }")
    yield from started(Stack("compose", "dual", patches=[patch]))


def test_no_try_goes_to_an_ipv6_address_of_the_app(dual_stack: Stack) -> None:
    """The app listens on IPv4 only."""
    (app,) = dual_stack.containers("app")
    networks = dual_stack.inspect(app)["NetworkSettings"]["Networks"].values()
    assert all(network["GlobalIPv6Address"] for network in networks), "the engine gave the app no IPv6 address"
    with dual_stack.client() as client:
        for n in range(10):
            client.get("/", headers={"X-Request-ID": f"dual-stack-{n}"})
    lines = until(
        "their lines in the access log",
        lambda: len(x := [y for y in dual_stack.access_log() if y["request_id"].startswith("dual-stack-")]) == 10 and x,
    )
    asked = {address for line in lines for address in re.split(r", | : ", line["upstream"])}
    assert not [address for address in asked if "[" in address], f"tried in vain: {asked}"
