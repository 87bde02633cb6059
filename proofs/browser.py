"""The system's Chromium, headless."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Page, sync_playwright

from proofs.stack import DEADLINE

# No graphics card; and none of what a browser asks of its maker's servers by itself.
FLAGS = ["--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@contextmanager
def opened(
    chromium: str,
    url: str,
    complaints: list[str],
    *,
    flags: Sequence[str] = (),
    home: Path | None = None,
    **options: Any,
) -> Iterator[Page]:
    """The page at `url`; the errors that it writes to the console or throws are added to `complaints`.

    `home` is the folder of the certificates that this browser trusts; `options` are those of Playwright's contexts.
    """

    def complain(message: ConsoleMessage) -> None:
        if message.type == "error" and message.location["url"].startswith(url):
            complaints.append(f"{message.text} ({message.location['url']})")

    # Chromium's sandbox refuses to run as root.
    arguments = [*FLAGS, *flags, *["--no-sandbox"] * (os.getuid() == 0)]
    environ = os.environ | {"HOME": str(home)} if home else None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments, env=environ)  # type: ignore[arg-type]
        try:
            page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}} | options)
            page.set_default_timeout(DEADLINE * 1000)
            page.on("console", complain)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(url)
            yield page
        finally:
            browser.close()
