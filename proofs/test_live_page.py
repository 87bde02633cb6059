"""The live page in headless Chromium: what happens is seen as it happens, by everybody, and nobody else is asked."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from proofs.browser import opened
from proofs.conftest import require_engine, started
from proofs.stack import DEADLINE, PATIENT_BUDGET, ROOT, Stack, until
from proofs.test_live import scrape

expect.set_options(timeout=DEADLINE * 1000)
PHONE = {"width": 375, "height": 812}
# Remembers each text that an element has had, so that none is missed between two looks.
RECORDER = """(selector) => {
    const seen = window.seen = new Set();
    const look = () => document.querySelectorAll(selector).forEach((element) => seen.add(element.textContent));
    new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true,
        attributes: true});
    look();
}"""


@contextmanager
def watched(stack: Stack, chromium: str, **options: Any) -> Iterator[Page]:
    """The page, drawn; fails where the browser complains, or asks anybody but the live service."""
    complaints: list[str] = []
    with opened(chromium, f"{stack.live_url}/", complaints, **options) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.reload()
        expect(page.locator("#headline")).to_contain_text("worker")
        yield page
    assert complaints == []
    assert asked
    foreign = [url for url in asked if not url.startswith(f"{stack.live_url}/")]
    assert not foreign, f"the page asks {foreign}"


def seen(page: Page) -> set[str]:
    return set(page.evaluate("[...window.seen]"))


@contextmanager
def load(stack: Stack, *paths: str, clients: int = 4) -> Iterator[None]:
    """Requests, one after the other on each connection, as long as it lasts."""
    over = threading.Event()

    def ask(path: str) -> None:
        with stack.client() as client:
            while not over.is_set():
                try:
                    client.get(path)
                except httpx.HTTPError:
                    time.sleep(0.05)

    threads = [threading.Thread(target=ask, args=(path,)) for path in paths for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_blocked_worker_is_red_within_two_seconds_and_counts_its_silence(native_stack: Stack, chromium: str) -> None:
    stack = native_stack
    with watched(stack, chromium) as page:
        page.evaluate(RECORDER, ".lane.silent .state")
        blocker = block(stack)
        expect(page.locator(".lane.silent")).to_have_count(1)
        page_colour = page.locator(".lane.silent").evaluate("(lane) => getComputedStyle(lane).borderLeftColor")
        assert page_colour == "rgb(200, 30, 30)", f"a blocked worker is {page_colour}"
        expect(page.locator("#headline")).to_contain_text("is silent for")
        expect(page.locator("#said")).to_contain_text("is silent")
        blocker.join()
        expect(page.locator(".lane.silent")).to_have_count(0)
        expect(page.locator("#happened")).to_contain_text("moves again")
        for _ in range(2):
            if min(silences(page)) < 2:
                break  # else something else had the CPU as the silence began
            blocker = block(stack)
            expect(page.locator(".lane.silent")).to_have_count(1)
            blocker.join()
            expect(page.locator(".lane.silent")).to_have_count(0)
        said = silences(page)
        assert min(said) < 2, f"it was red when it had been silent for {min(said)} s"
        assert max(said) > 2, f"its silence is counted only up to {max(said)} s"


def block(stack: Stack) -> threading.Thread:
    """A worker stands still; who asked is told so sooner, by nginx."""
    blocker = threading.Thread(target=httpx.get, args=(f"{stack.url}/work/block?ms=7000",), kwargs={"timeout": 30})
    blocker.start()
    return blocker


def silences(page: Page) -> list[float]:
    """In seconds, as the page has shown them."""
    return [float(text.split()[2]) for text in seen(page)]


def test_a_reload_grows_a_second_generation_beside_the_first(native_stack: Stack, chromium: str) -> None:
    stack = native_stack
    with watched(stack, chromium) as page, load(stack, "/work/io?ms=900"):
        page.evaluate(RECORDER, ".generation, .lane .state")
        before = page.locator(".generation").inner_text()
        # A connection that asks nothing keeps its old worker for DRAIN_SECONDS: the page's updates are closer together.
        with socket.create_connection(("127.0.0.1", stack.app_port), timeout=DEADLINE):
            assert stack.make("reload").returncode == 0
        number = int(before.removeprefix("generation "))
        expect(page.locator(".generation")).to_have_text(f"generation {number + 1}")
        texts = seen(page)
        assert f"generations {number} and {number + 1}" in texts, texts
        # One that starts is seen where that takes longer than an update. A page that is late sees only the drain's end.
        for states in ({"ready"}, {"draining", "finishing"}):
            assert states & {text.split()[0] for text in texts}, f"no worker was seen {' or '.join(states)}: {texts}"


def violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['help']} ({each['nodes'][0]['html'][:120]})" for each in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE], ids=["wall", "phone"])
def test_everybody_can_read_it(native_stack: Stack, chromium: str, size: dict[str, int], scheme: str) -> None:
    stack = native_stack
    with watched(stack, chromium, viewport=size, color_scheme=scheme) as page, load(stack, "/items", "/livez"):
        expect(page.locator("#group-served li").first).to_be_visible()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= size["width"], f"the page is {wide} pixels wide"
        if size != PHONE:
            assert page.evaluate("document.documentElement.scrollHeight") <= size["height"], "not on one screen"
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(13, 18, 16)") == (scheme == "dark"), paper
        assert violations(page) == []
        page.locator("#table summary").click()
        expect(page.locator("#table-here")).to_contain_text("worker 0")
        page.locator(".part[data-part=in_flight]").click()
        expect(page.locator("#card")).to_contain_text("APP_MAX_REQUESTS_IN_FLIGHT")
        assert violations(page) == []


def test_the_keyboard_opens_what_a_part_is_and_closes_it(native_stack: Stack, chromium: str) -> None:
    with watched(native_stack, chromium, reduced_motion="reduce") as page:
        page.keyboard.press("Tab")
        expect(page.locator("#card")).to_contain_text("NGINX_WORKERS")
        page.keyboard.press("Enter")
        expect(page.locator("#card")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.locator("#card-page")).to_be_focused()
        with page.expect_popup() as opening:
            page.keyboard.press("Enter")
        expect(opening.value.locator("body")).to_contain_text("# Architecture")
        opening.value.close()
        page.bring_to_front()
        page.keyboard.press("Escape")
        expect(page.locator("#card")).to_be_hidden()
        expect(page.locator(".part[data-part=nginx]")).to_be_focused()
        assert page.locator("#stream").is_hidden(), "dots travel though motion is not wanted"


def test_nobody_is_asked_while_the_page_is_in_the_background(native_stack: Stack, chromium: str) -> None:
    def watchers() -> float:
        return next(value for name, _, value in scrape(native_stack) if name == "live_watchers")

    with watched(native_stack, chromium) as page:
        until("one watches, and the page before the reload no more", lambda: watchers() == 1)
        page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        until("nobody watches", lambda: watchers() == 0)


PLACES, IDLE_SECONDS = 12, 3
# docs/live.png is wanted.
PICTURE = os.environ.get("UPDATE_SCREENSHOT") == "1"


@pytest.fixture(scope="module")
def small() -> Iterator[Stack]:
    """A stack with few places, whose replicas come and go."""
    require_engine()
    rows = {"APP_MAX_REQUESTS_IN_FLIGHT": str(PLACES), "CLIENT_KEEPALIVE_SECONDS": str(IDLE_SECONDS)}
    yield from started(Stack("compose", "page", **rows))


@pytest.mark.xdist_group("compose")
def test_a_connection_is_accepted_kept_alive_and_closed_by_its_timeout(small: Stack, chromium: str) -> None:
    with watched(small, chromium) as page, small.client() as client:
        story = page.locator("#happened")

        def closed_by_its_timeout() -> bool:
            """Told where the page's updates came in time, and another connection is: that is what the times say."""
            client.get("/work/io?ms=600")
            expect(story).to_contain_text("a client's connection is accepted")
            expect(story).to_contain_text("the connection is kept alive")
            with suppress(AssertionError):
                words = f"idle for {IDLE_SECONDS} s (CLIENT_KEEPALIVE_SECONDS)"
                expect(story).to_contain_text(words, timeout=1000 * (IDLE_SECONDS + 5))
                return True
            return False

        until("a close by the timeout", closed_by_its_timeout)


@pytest.mark.xdist_group("compose")
def test_an_overload_turns_into_refusals(small: Stack, chromium: str) -> None:
    with watched(small, chromium) as page, load(small, "/items", clients=2):
        if PICTURE:
            everyday(small)
        with load(small, "/work/io?ms=300", clients=5 * PLACES):
            expect(page.locator("#group-refused")).to_contain_text("all places taken: 503")
            expect(page.locator("#headline")).to_contain_text("are refused at once")
            expect(page.locator(".flight b").first).to_have_text(f"{PLACES} of {PLACES}")
            if PICTURE:
                time.sleep(8)
                (ROOT / "docs" / "live.png").write_bytes(page.screenshot())


@pytest.mark.xdist_group("compose")
def test_a_deploy_brings_a_replica_and_takes_one(small: Stack, chromium: str) -> None:
    with watched(small, chromium) as page:
        expect(page.locator(".replica")).to_have_count(1)
        deploy = threading.Thread(target=small.make, args=("deploy",), kwargs={"SLOW_REQUEST_MS": "999"})
        deploy.start()
        expect(page.locator(".replica")).to_have_count(2)
        expect(page.locator("#happened")).to_contain_text("replica 2 is there")
        deploy.join()
        expect(page.locator(".replica")).to_have_count(1)
        expect(page.locator(".replica")).to_contain_text("replica 2")


def everyday(stack: Stack) -> None:
    """Two minutes as a site has them, so that the picture's charts are full."""
    for round in range(16):
        with load(stack, "/work/io?ms=40", "/work/cpu?ms=6", "/no-such-path", clients=1 + round % 3):
            time.sleep(7)


TRAFFIC = """
from itertools import cycle
from locust import task
from loadtest.base import BaseUser

# Of 100 requests 80 take 60 ms, 17 take 150 ms and 3 take 700 ms: each percentile is far from a bucket's edge.
WAITS = cycle(700 if n % 33 == 7 else 150 if n % 6 == 1 else 60 for n in range(99))

class Visitor(BaseUser):
    abstract = True

    @task
    def io(self) -> None:
        self.call("GET", f"/work/io?ms={next(WAITS)}", lambda answer: True, name="/work/io")
"""


def bucket(bounds: list[float], seconds: float) -> float:
    """The upper bound of the bucket that this falls into."""
    return next(bound for bound in bounds if seconds <= bound)


def test_locust_nginx_and_the_page_name_the_same_percentiles(chromium: str) -> None:
    stack = Stack("native", "story", files={"loadtest/traffic.py": TRAFFIC}, **PATIENT_BUDGET, SLO_MIN_RPS="1")
    try:
        stack.up()
        rows = {"LOADTEST_MODULE": "loadtest.traffic", "LOADTEST_SHAPE": "rate", "LOADTEST_RATE": "40",
                "LOADTEST_SECONDS": "30", "LOADTEST_WARMUP_SECONDS": "1"}  # fmt: skip
        shown: list[dict[str, float]] = []
        over = threading.Event()

        def watch() -> None:
            with httpx.stream("GET", f"{stack.live_url}/events", timeout=DEADLINE) as answer:
                for line in answer.iter_lines():
                    if over.is_set():
                        return
                    if line.startswith('data: {"now"'):
                        shown.append(json.loads(line.removeprefix("data: "))["percentiles"])

        watcher = threading.Thread(target=watch)
        watcher.start()
        done = stack.make("loadtest", **rows)
        over.set()
        watcher.join()
        (report,) = (stack.root / "reports").iterdir()
        measured = json.loads((report / "summary.json").read_text())["measured"]
        assert measured["failures"] == 0, done
        buckets = sorted(
            (float(labels["le"]), count)
            for name, labels, count in scrape(stack)
            if name == "nginx_request_duration_seconds_bucket"
        )
        bounds = [bound for bound, _ in buckets]
        for share in (50, 95, 99):
            locust = bucket(bounds, measured[f"p{share}_ms"] / 1000)
            nginx = next(bound for bound, count in buckets if count >= share / 100 * buckets[-1][1])
            assert nginx == locust, f"p{share}: nginx {nginx} s, Locust {measured[f'p{share}_ms']} ms, {buckets}"
            page = {bucket(bounds, each[f"p{share}"] / 1000) for each in shown if each[f"p{share}"]}
            assert locust in page, f"p{share}: the page {page}, Locust {locust}"
    finally:
        stack.down()
