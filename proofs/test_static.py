"""STATIC_ROOT: files that nginx serves by itself."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import httpx
import pytest

from proofs.conftest import made_once
from proofs.stack import Stack, until

WAYS = ("native", "compose")
HASHED = "app.4f0c2d9a1b3e.js"
FILES = {
    "app/files/style.css": "a{}" * 1000,
    f"app/files/{HASHED}": "1",
    "app/files/sub/20240101-photo.js": "2",
    "app/files/data.kind": "3",
    "app/files/.env": "SECRET=1",
    "app/files/deep/.git/config": "SECRET",
    "app/secret.py": "SECRET = 1",
}
BOTH = pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.xdist_group(way)) for way in WAYS])
NATIVE = pytest.mark.parametrize("way", [pytest.param("native", marks=pytest.mark.xdist_group("native"))])


@pytest.fixture(scope="module")
def stacks() -> Iterator[Callable[[str], Stack]]:

    def make(way: str) -> Stack:
        new = Stack(way, "static", files=FILES, STATIC_ROOT="./app/files", CLIENT_MAX_REQUESTS_IN_FLIGHT="4000")
        (new.root / "app/files/style.css.gz").write_bytes(gzip.compress(b"compressed before"))
        return new

    with made_once(make) as up:

        @cache
        def get(way: str) -> Stack:
            stack = up(way)
            # Put there while it runs: a start refuses it.
            (stack.root / "app/files/link.txt").symlink_to("/etc/passwd")
            (stack.root / "app/files/up").symlink_to("..")
            return stack

        yield get


@pytest.fixture
def client(stacks: Callable[[str], Stack], way: str) -> Iterator[httpx.Client]:
    with stacks(way).client(headers={"Accept-Encoding": "identity"}) as found:
        yield found


@BOTH
def test_a_file_is_served_and_the_app_sees_nothing_of_it(
    stacks: Callable[[str], Stack], client: httpx.Client, way: str
) -> None:
    answers = [client.get("/files/style.css"), client.get("/files/none.css"), client.post("/files/style.css")]
    assert [answer.status_code for answer in answers] == [200, 404, 405]
    assert answers[0].text == FILES["app/files/style.css"]
    assert answers[0].headers["content-type"] == "text/css"
    assert client.get("/files/data.kind").headers["content-type"] == "application/octet-stream"
    assert answers[1].json()["error"] == "Not Found"
    ids = [answer.headers["x-request-id"] for answer in answers]

    def lines() -> list[str]:
        return [line["upstream"] for line in stacks(way).access_log() if line["request_id"] in ids]

    until("three lines in the log", lambda: len(lines()) == 3)
    assert lines() == [""] * 3, f"the app was asked for a file: {lines()}"


@NATIVE
def test_a_name_with_its_contents_hash_is_kept_by_browsers_and_others_are_asked_for(client: httpx.Client) -> None:
    said = [client.get(f"/files/{name}").headers["cache-control"] for name in (HASHED, "style.css")]
    assert said == ["max-age=315360000", "no-cache"], f"lifetimes: {said}"
    assert client.get("/files/sub/20240101-photo.js").headers["cache-control"] == "no-cache", "a date is no hash"
    etag = client.get("/files/style.css").headers["etag"]
    assert client.get("/files/style.css", headers={"If-None-Match": etag}).status_code == 304


@NATIVE
def test_a_part_of_a_file(client: httpx.Client) -> None:
    part = client.get("/files/style.css", headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "{}", "bytes 1-2/3000")


@NATIVE
def test_the_file_that_was_compressed_before_goes_to_who_takes_it(client: httpx.Client) -> None:
    answer = client.get("/files/style.css", headers={"Accept-Encoding": "gzip"})
    assert answer.text == "compressed before", "nginx compressed it anew"
    assert "Accept-Encoding" in answer.headers["vary"]


@BOTH
@pytest.mark.parametrize(
    "path",
    [
        "/files/link.txt",
        "/files/up/secret.py",
        "/files/../secret.py",
        "/files/%2e%2e/secret.py",
        "/files..%2fsecret.py",
        "/files/.env",
        "/files/deep/.git/config",
        "/files/",
        "/secret.py",
    ],
)
def test_nothing_but_its_files_is_served(client: httpx.Client, path: str) -> None:
    answer = client.get(httpx.URL(str(client.base_url).rstrip("/")).copy_with(raw_path=path.encode()))
    assert answer.status_code in (400, 403, 404), f"{path}: {answer.status_code} {answer.text[:40]}"
    assert "SECRET" not in answer.text


@NATIVE
def test_what_every_answer_has_files_have_too(client: httpx.Client) -> None:
    answer = client.get("/files/style.css", headers={"X-Request-ID": "an-id-of-the-clients"})
    assert answer.headers["x-request-id"] == "an-id-of-the-clients"


def outside(root: Path) -> None:
    (root / "app/files").symlink_to("/etc")


def missing(root: Path) -> None:
    del root


def linked(root: Path) -> None:
    (root / "app/files").mkdir()
    (root / "app/files/link").symlink_to("/etc/passwd")


def unreadable(root: Path) -> None:
    (root / "app/files").mkdir()
    (root / "app/files/own").touch(mode=0o600)


@pytest.mark.parametrize(
    ("row", "prepare", "said"),
    [
        ("app/files", missing, "is no folder"),
        ("app/files", outside, "leads to /etc, out of this clone"),
        ("app/files", linked, "is a link, which nginx would not follow"),
        ("app/files", unreadable, "may not read"),
        ("../files", missing, "must be a folder in this clone"),
        ("/etc", missing, "must be a folder in this clone"),
        (".", missing, "must be a folder in this clone"),
        ("app/.git", missing, "must be a folder in this clone"),
    ],
)
def test_a_folder_that_is_no_good_is_refused_in_one_line(row: str, prepare: Callable[[Path], None], said: str) -> None:
    stack = Stack("native", "static-refused", files={"x": ""}, STATIC_ROOT=row)
    try:
        prepare(stack.root)
        done = stack.make("up")
        lines = [line for line in done.stderr.splitlines() if line]
        assert done.returncode in (1, 2), done.stdout + done.stderr
        assert len(lines) == 1, done.stderr
        assert f"STATIC_ROOT={row}" in lines[0], lines[0]
        assert said in lines[0], lines[0]
    finally:
        shutil.rmtree(stack.folder, ignore_errors=True)
        shutil.rmtree(stack.root)
