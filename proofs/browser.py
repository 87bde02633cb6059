"""The system's Chromium, headless."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import ConsoleMessage, Page, sync_playwright

from proofs.stack import DEADLINE

# No graphics card; and none of what a browser asks of its maker's servers by itself.
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@contextmanager
def opened(chromium: str, url: str, complaints: list[str], **options: Any) -> Iterator[Page]:
    """The page at `url`; the errors that it writes to the console or throws are added to `complaints`.

    `options` are those of Playwright's browser contexts.
    """

    def complain(message: ConsoleMessage) -> None:
        if message.type == "error" and message.location["url"].startswith(url):
            complaints.append(f"{message.text} ({message.location['url']})")

    # Chromium's sandbox refuses to run as root.
    flags = [*FLAGS, "--no-sandbox"] if os.getuid() == 0 else FLAGS
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        try:
            page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}} | options)
            page.set_default_timeout(DEADLINE * 1000)
            page.on("console", complain)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(url)
            yield page
        finally:
            browser.close()
