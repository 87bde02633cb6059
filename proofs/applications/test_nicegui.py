"""NiceGUI on several workers, used in Chromium as people use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from proofs.browser import opened
from proofs.conftest import started
from proofs.stack import Stack, until

pytestmark = pytest.mark.xdist_group("native")

CLICKS = 5


@pytest.fixture(scope="module")
def counter() -> Iterator[Stack]:
    rows = {"APP_MODULE": "proofs.applications.nicegui_counter:app", "STICKY_SESSIONS": "cookie"}
    stack = Stack("native", "nicegui", **rows, STORAGE_SECRET="of a proof")
    stack.environ["NICEGUI_STORAGE_PATH"] = str(stack.folder / "data/nicegui")
    yield from started(stack)


def served_by(page: Page) -> str:
    return page.get_by_text("process ").inner_text()


def test_visitors_of_several_workers_click_and_find_their_count_again(counter: Stack, chromium: str) -> None:
    complaints: list[str] = []
    with opened(chromium, counter.url, complaints) as page:
        assert page.context.browser
        pages = [page]

        def another() -> bool:
            """Whether the visitors have met as many workers as there are, with one visitor more."""
            pages.append(page.context.browser.new_page())  # type: ignore[union-attr]
            pages[-1].goto(counter.url)
            return len({served_by(visitor) for visitor in pages}) == int(counter.rows["WORKERS"])

        until("visitors on all workers", another)
        for visitor in pages:
            worker = served_by(visitor)
            for count in range(CLICKS):
                expect(visitor.get_by_text(f"counted {count}", exact=True)).to_be_visible()
                visitor.get_by_role("button", name="one more").click()
            expect(visitor.get_by_text(f"counted {CLICKS}", exact=True)).to_be_visible()
            visitor.reload()
            expect(visitor.get_by_text(f"counted {CLICKS}", exact=True)).to_be_visible()
            assert served_by(visitor) == worker
        stored = list((counter.folder / "data/nicegui").glob("storage-user-*"))
        assert len(stored) == len(pages)
    assert complaints == []
