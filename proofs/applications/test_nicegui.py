"""NiceGUI on several workers, used in Chromium as people use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from proofs.browser import opened
from proofs.conftest import started
from proofs.stack import DEADLINE, PATIENT_BUDGET, Stack, until

pytestmark = pytest.mark.xdist_group(__name__)

VISITORS = 4
CLICKS = 5


@pytest.fixture(scope="module")
def counter() -> Iterator[Stack]:
    rows = {"APP_MODULE": "proofs.applications.nicegui_counter:app", "STICKY_SESSIONS": "cookie"}
    stack = Stack("native", "nicegui", **PATIENT_BUDGET | rows, STORAGE_SECRET="of a proof")
    stack.environ["NICEGUI_STORAGE_PATH"] = str(stack.folder / "data/nicegui")
    yield from started(stack)


class Visitor:
    """A page with cookies of its own, and how often it was loaded: without its worker, NiceGUI's loads itself again."""

    def __init__(self, browser: Browser, url: str, complaints: list[str]) -> None:
        self.loads = 0
        self.page = browser.new_page()
        self.page.set_default_timeout(DEADLINE * 1000)
        self.page.on("load", self._on_load)
        self.page.on("pageerror", lambda error: complaints.append(str(error)))
        self.page.goto(url)

    def _on_load(self, page: Page) -> None:
        self.loads += 1

    def sees(self, text: str) -> None:
        expect(self.page.get_by_text(text, exact=True)).to_be_visible(timeout=DEADLINE * 1000)

    def worker(self) -> str:
        return self.page.get_by_text("process ").inner_text()


def test_visitors_of_several_workers_click_and_find_their_count_again(counter: Stack, chromium: str) -> None:
    complaints: list[str] = []
    visitors: list[Visitor] = []
    with opened(chromium, f"{counter.url}/", complaints) as page:
        browser = page.context.browser
        assert browser

        def come() -> bool:
            visitors.append(Visitor(browser, counter.url, complaints))
            return len(visitors) >= VISITORS and len({visitor.worker() for visitor in visitors}) > 1

        until("visitors on several workers", come)
        for visitor in visitors:
            for count in range(CLICKS):
                visitor.sees(f"counted {count}")
                visitor.page.get_by_role("button", name="one more").click()
            visitor.sees(f"counted {CLICKS}")
            visitor.page.reload()
            visitor.sees(f"counted {CLICKS}")
        stored = list((counter.folder / "data/nicegui").glob("storage-user-*"))
    assert [visitor.loads for visitor in visitors] == [2] * len(visitors)
    assert complaints == []
    assert len(stored) == 1 + len(visitors)
