"""Datasette: a table of 300,000 rows, streamed as CSV for longer than the deadline."""

from __future__ import annotations

import csv
import gzip
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from proofs.conftest import require_engine, started
from proofs.stack import DEADLINE, MOVES, ROOT, Stack

ROWS = 300_000


def write_table(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as database:
        database.execute("create table orders (number integer primary key, item text)")
        database.executemany("insert into orders values (?, ?)", ((n, f"item {n % 97}") for n in range(ROWS)))
    database.close()


def native() -> Iterator[Stack]:
    app = "proofs.applications.datasette_tables:app"
    stack = Stack("native", "datasette", **MOVES, APP_MODULE=app, DATASETTE_SECRET="of a proof")
    yield from started(stack, lambda stack: write_table(stack.folder / "data/orders.db"))


def compose(folder: Path) -> Iterator[Stack]:
    """As a person puts it in: its file in app/, its package in the group app, its data in the volume."""
    require_engine()
    files = {
        "app/tables.py": (ROOT / "proofs/applications/datasette_tables.py").read_text(),
        ".env.app": "DATASETTE_SECRET=${DATASETTE_SECRET:?set it in the shell}\n",
    }
    rows = MOVES | {"APP_MODULE": "app.tables:app", "APP_ENV_FILE": ".env.app"}
    stack = Stack("compose", "datasette", files=files, **rows, DATASETTE_SECRET="of a proof")
    with contextmanager(started)(stack, lambda stack: stack.add("datasette")):
        write_table(folder / "orders.db")
        stack.compose("cp", str(folder / "orders.db"), "app:/data/orders.db")
        yield stack


@pytest.fixture(
    scope="module", params=[pytest.param(way, marks=pytest.mark.xdist_group(way)) for way in ("native", "compose")]
)
def datasette(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    yield from native() if request.param == "native" else compose(tmp_path_factory.mktemp("datasette"))


def test_a_table_is_shown(datasette: Stack) -> None:
    with datasette.client() as client:
        page = client.get("/orders/orders")
        assert page.status_code == 200, page.text
        assert f"{ROWS:,} rows" in page.text
        rows = client.get("/orders/orders.json?item=item+5&_size=2&_shape=array").json()
    assert rows == [{"number": 5, "item": "item 5"}, {"number": 102, "item": "item 5"}]


def numbers_of(stack: Stack, path: str, encoding: str) -> list[int]:
    """The first column of a CSV, which must come in this encoding and whole.

    Each row comes in a chunk of its own; for so many httpx takes longer than Datasette.
    """
    with urlopen(Request(stack.url + path, headers={"Accept-Encoding": encoding}), timeout=DEADLINE) as answer:
        body = answer.read()  # raises IncompleteRead for an answer that is cut
        assert answer.headers.get("Content-Encoding", "identity") == encoding
    text = (gzip.decompress(body) if encoding == "gzip" else body).decode()
    heading, *rows = csv.reader(text.splitlines())
    assert heading == ["number", "item"]
    return [int(number) for number, _ in rows]


def test_a_csv_of_all_rows_arrives_whole_and_compressed(datasette: Stack) -> None:
    """It is streamed, a thousand rows after the other, for longer than REQUEST_DEADLINE_SECONDS."""
    begin = time.monotonic()
    numbers = numbers_of(datasette, "/orders/orders.csv?_stream=on&_size=max&_dl=on", "gzip")
    assert len(numbers) == ROWS
    assert numbers == list(range(ROWS))
    seconds = time.monotonic() - begin
    assert seconds > int(datasette.rows["REQUEST_DEADLINE_SECONDS"]), f"in {seconds:.1f} s: it proves nothing"


def test_a_csv_is_not_compressed_for_a_client_that_does_not_ask(datasette: Stack) -> None:
    numbers = numbers_of(datasette, "/orders/orders.csv?_stream=on&_size=max&item=item+5", "identity")
    assert numbers == list(range(5, ROWS, 97))


def test_the_style_sheet_is_compressed(datasette: Stack) -> None:
    with datasette.client() as client:
        page = client.get("/").text
        (path,) = re.findall(r'href="(/-/static/app\.css[^"]*)"', page)
        sheet = client.get(path, headers={"Accept-Encoding": "gzip"})
    assert sheet.headers["content-type"].startswith("text/css")
    assert (sheet.status_code, sheet.headers.get("content-encoding")) == (200, "gzip")
    assert "{" in sheet.text


def test_workers_read_each_others_cookies(datasette: Stack) -> None:
    """The form's token and the message after it are in cookies that DATASETTE_SECRET signs."""
    for _ in range(10):
        with datasette.client() as client:
            form = client.get("/-/messages").text
            (token,) = re.findall(r'name="csrftoken" value="([^"]+)"', form)
            sent = client.post("/-/messages", data={"message": "it was seen", "csrftoken": token})
            assert sent.status_code == 302, sent.text
            assert "it was seen" in client.get("/").text
