"""The page of `make lab`, opened with the network cut off, in headless Chromium, on a phone and in both schemes."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from bench import lab, report
from bench.harness import Comparison, Result
from bench.ratios import Figures, Goal
from proofs.browser import opened
from proofs.stack import until

PHONE = {"width": 360, "height": 740}
HOSTILE = "<script>document.body.remove()</script><img src=x onerror=alert(1)> & \"quoted\" 'name'"
LONG = "averylongnameofavariantwithoutanyplacetobreakit" * 3
# Of WCAG 2 for text; what is larger would do with less.
READABLE = 4.5

# Marks with no width or height draw nothing; a line may lack one of them.
MARKS = """svg => {
  const box = svg.getBoundingClientRect();
  const marks = [...svg.querySelectorAll("circle, rect, g.curve line, line.range")];
  const drawn = marks.filter(mark => {
    const own = mark.getBoundingClientRect();
    return own.width + own.height > 0 && own.left >= box.left - 1 && own.right <= box.right + 1;
  });
  const words = [...svg.querySelectorAll("text")].map(text => text.getBoundingClientRect());
  return {width: box.width, height: box.height, marks: marks.length, drawn: drawn.length,
          label: svg.getAttribute("aria-label") || "",
          overlaps: words.filter((a, i) => words.slice(0, i).some(b =>
            a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom)).length,
          outside: words.filter(own => own.left < box.left - 8 || own.right > box.right + 8).length};
}"""
# The contrast of each text with what is behind it, the least first.
CONTRASTS = """() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const found = channels(getComputedStyle(element).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const own = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  return [...document.body.querySelectorAll("*")].filter(e => own(e) && e.tagName !== "title").map(element => {
    const style = getComputedStyle(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    const [high, low] = [luminance(channels(colour)), luminance(behind(element))].sort((a, b) => b - a);
    return [(high + 0.05) / (low + 0.05), element.textContent.slice(0, 40)];
  }).sort((a, b) => a[0] - b[0]);
}"""


def ratio(name: str, *values: float, goal: Goal | None = None, unit: str = "") -> Comparison:
    return Comparison(name, Figures(values), goal, unit)


def figures() -> dict[str, Result]:
    """Made up here: what the page shows of each kind of result. None of it was measured."""
    close = [ratio(f"CPU per request, {LONG} to this stack", 1.1, 1.2, 1.15, 1.12, 1.3)]
    curve = {50.0: 2.0, 90.0: 7.5, 99.0: 40.0, 99.9: 1900.0}
    p90 = (0.02, 0.4, 0.6, 0.91, 0.3)
    wide = [
        ratio("p90 of the fast requests, a socket for each worker to one", *p90, goal=Goal("at most", 0.2)),
        ratio("p99, a socket for each worker to one", 0.8, 0.9, 0.7, 0.75, 0.8, goal=Goal("at most", 1)),
    ]
    # As the overload's: no "OURS to BASE", and longer than a line.
    long = ratio("awaiting handlers with the limit: p99 of the accepted to p99 at 70 % load", 1.1, 1.2, 1.15)
    seconds = [ratio("start to the first 200, native", 1.5, 1.6, 1.55, goal=Goal("at most", 5), unit="s")]
    return {
        "shell": Result([*close, long], details=[{"variant": LONG, "requests/s": "5728", "CPU us/request": "173"}]),
        "balance": Result(wide, curves={"latency": {"a socket for each worker": curve, "one": curve}}),
        "start": Result(seconds, unavailable=[HOSTILE], notes=[HOSTILE]),
        "proxy": Result(
            [ratio(f"throughput, {HOSTILE} to nothing", 0.0, 0.0, 1.0)],
            details=[{HOSTILE: HOSTILE}],
            curves={HOSTILE: {f"{HOSTILE} {number}": curve for number in range(8)}},
        ),
        "burst": Result(),
    }


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("lab")
    made = figures()
    for name, result in made.items():
        report.write(folder, name, HOSTILE, result)
    return lab.write(folder, folder / "index.html", [*made, "lifecycle"], {"lifecycle": HOSTILE}).as_uri()


def require_all_drawn(page: Page) -> None:
    for name, result in figures().items():
        found = [picture.evaluate(MARKS) for picture in page.locator(f"section#{name} svg[role=img]").all()]
        assert len(found) == bool(result.comparisons) + len(result.curves), f"{name} has {len(found)} pictures"
        for picture in found:
            assert min(picture["width"], picture["height"]) > 50, f"{name}: {picture}"
            assert picture["marks"] == picture["drawn"] > 0, f"{name}: marks that cannot be seen: {picture}"
            assert picture["outside"] == 0, f"{name}: words reach out of the picture: {picture}"
            assert picture["overlaps"] == 0, f"{name}: words on words: {picture}"
            assert len(picture["label"]) > 20, f"{name}: a picture without a description: {picture}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 800}], ids=["phone", "desk"])
def test_the_page_is_drawn_readable_and_fits_without_a_network(
    chromium: str, url: str, scheme: str, viewport: dict[str, int]
) -> None:
    complaints: list[str] = []
    asked: list[str] = []
    with opened(chromium, "about:blank", complaints, offline=True, color_scheme=scheme, viewport=viewport) as page:
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        require_all_drawn(page)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= viewport["width"], f"the page is {width} px wide"
        contrasts = page.evaluate(CONTRASTS)
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert asked == [url], "the page asked for something else"
    assert complaints == []
    assert len(contrasts) > 50
    assert contrasts[0][0] >= READABLE, f"hard to read: {contrasts[:3]}"
    assert (int(dark.split("(")[1].split(",")[0]) < 128) == (scheme == "dark"), f"{scheme}: the page is {dark}"


def test_names_are_shown_as_they_are_and_what_is_missing_with_its_reason(chromium: str, url: str) -> None:
    with opened(chromium, url, [], offline=True, viewport=PHONE) as page:
        assert page.locator("section#start .question").inner_text() == HOSTILE
        assert page.get_by_role("navigation").get_by_text("lifecycle").count() == 1
        assert HOSTILE in page.get_by_role("navigation").inner_text()
        assert "Not measured: " + HOSTILE in page.locator("section#start").inner_text()
        assert page.locator("script, img").count() == 0


def test_a_wide_table_scrolls_in_its_box(chromium: str, url: str) -> None:
    with opened(chromium, url, [], offline=True, viewport=PHONE) as page:
        box = page.locator("section#shell .scroll").first
        room, wanted = box.evaluate("box => [box.clientWidth, box.scrollWidth]")
        assert wanted > room, f"a table of {wanted} px in {room} px: nothing to scroll"
        box.focus()
        page.keyboard.press("ArrowRight")
        until("the table scrolled", lambda: box.evaluate("box => box.scrollLeft") > 0)
