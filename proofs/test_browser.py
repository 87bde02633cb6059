"""Locust's web UI, used as a person uses it, in headless Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

from proofs.stack import DEADLINE, ROOT, Stack, until

# No graphics card; and none of what a browser asks of its maker's servers by itself.
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
USERS = 20


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's Chromium. Skips where there is none; fails when REQUIRE_BROWSER=1."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    reason = f"no browser is installed (looked for {', '.join(names)})"
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def opened(chromium: str, url: str, complaints: list[str]) -> Iterator[Page]:
    """The page at `url`; the errors that it writes to the console or throws are added to `complaints`."""

    def complain(message: ConsoleMessage) -> None:
        if message.type == "error" and message.location["url"].startswith(url):
            complaints.append(f"{message.text} ({message.location['url']})")

    # Chromium's sandbox refuses to run as root.
    flags = [*FLAGS, "--no-sandbox"] if os.getuid() == 0 else FLAGS
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(DEADLINE * 1000)
            page.on("console", complain)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(url)
            yield page
        finally:
            browser.close()


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
    httpx.get(f"{url}/stop", timeout=DEADLINE)


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
        assert (requests > seen, failures) == (True, 0)
    assert complaints == []
    # The README's picture; from Compose, because that is what the README tells the reader to run.
    wanted = os.environ.get("UPDATE_SCREENSHOT") == "1" and stack.way == "compose"
    (ROOT / "docs" / "locust.png" if wanted else tmp_path / "locust.png").write_bytes(picture)
