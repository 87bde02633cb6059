"""Locust's web UI, used as a person uses it, in headless Chromium."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from proofs.browser import opened
from proofs.stack import DEADLINE, ROOT, Stack, until

USERS = 20


def aggregated(page: Page) -> tuple[int, int]:
    """Requests and failures, as the last row of the table of statistics shows them; zeros before it is there."""
    rows = page.get_by_role("row").filter(has_text="Aggregated").all()
    if not rows:
        return 0, 0
    cells = rows[0].get_by_role("cell").all_inner_texts()
    return int(cells[2]), int(cells[3])


@pytest.fixture
def idle_locust(stack: Stack) -> Iterator[str]:
    """The web UI's URL. Its run is ended, also after a test that failed: the stack is not this test's alone."""
    url = f"http://127.0.0.1:{stack.locust_port}"
    yield url
    assert httpx.post(f"{url}/stop", timeout=DEADLINE).is_success


def test_a_run_is_started_watched_and_stopped_in_the_web_ui(
    stack: Stack, chromium: str, idle_locust: str, tmp_path: Path
) -> None:
    complaints: list[str] = []
    with opened(chromium, f"{idle_locust}/", complaints) as page:
        nginx = "http://nginx" if stack.way == "compose" else stack.url
        expect(page.get_by_label("Host")).to_have_value(nginx, timeout=DEADLINE * 1000)

        page.get_by_role("columnheader").get_by_role("checkbox").uncheck()
        page.get_by_role("row").filter(has_text="ClosedLoopUser").get_by_role("checkbox").check()
        page.get_by_label("Number of users").fill(str(USERS))
        page.get_by_label("Ramp up").fill(str(USERS))
        page.get_by_role("button", name="Start").click()

        seen = until("the first requests in the table", lambda: aggregated(page)[0])
        until("more requests in the table", lambda: aggregated(page)[0] > seen + 1000)
        shown = page.get_by_role("banner").inner_text().split("\n")
        assert "RUNNING" in shown, shown
        assert str(USERS) in shown, shown
        assert page.get_by_role("cell", name="/orders", exact=True).count() == 1, "no POST among the requests"
        picture = page.screenshot()

        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("banner")).to_contain_text("stopped", ignore_case=True, timeout=DEADLINE * 1000)
        requests, failures = aggregated(page)
        assert requests > seen
        # A machine that stands still for the 2 s that this stack's requests may take costs some.
        assert failures < requests / 50
    assert complaints == []
    # The README's picture; from Compose, because that is what the README tells the reader to run.
    wanted = os.environ.get("UPDATE_SCREENSHOT") == "1" and stack.way == "compose"
    (ROOT / "docs" / "locust.png" if wanted else tmp_path / "locust.png").write_bytes(picture)
