"""CACHE_MB: what nginx keeps of the app's answers. The rules of RFC 9111 for a shared cache, one each."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from proofs.conftest import made_once, started
from proofs.stack import DEADLINE, PATIENT_BUDGET, Stack, until
from proofs.test_upstream import nginx_processes

WAYS = ("native", "compose")
native = pytest.mark.xdist_group("native")
ROWS = PATIENT_BUDGET | {
    "APP_MODULE": "proofs.apps.kept:app",
    "CACHE_MB": "8",
    "CLIENT_SEND_TIMEOUT_SECONDS": "20",
    "CACHE_PATHS": "/kept/ /more.d",
    "STICKY_SESSIONS": "cookie",
}
NAMES = (f"n{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    yield from started(Stack("native", "cache", **ROWS))


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as found:
        yield found


def url(name: str, *headers: str, path: str = "/kept", **more: Any) -> str:
    return f"{path}/{name}?{httpx.QueryParams([('header', line) for line in headers] + list(more.items()))}"


def asked(client: httpx.Client, name: str) -> int:
    """How often the app was."""
    found: int = client.get(f"/asked/{name}").json()
    return found


def twice(client: httpx.Client, address: str, **options: Any) -> tuple[str, str]:
    """What the two answers say of the cache; "" where it had nothing to do with them."""
    first, second = (client.get(address, **options) for _ in range(2))
    return first.headers.get("x-cache-status", ""), second.headers.get("x-cache-status", "")


# --- What is kept, and what not ------------------------------------------------------------------------------------

KEPT = {
    "max-age": "Cache-Control: max-age=60",
    "public": "Cache-Control: public, max-age=60",
    "s-maxage": "Cache-Control: s-maxage=60",
    "s-maxage before max-age": "Cache-Control: max-age=0, s-maxage=60",
    "upper case": "Cache-Control: MAX-AGE=60",
    "must-revalidate": "Cache-Control: max-age=60, must-revalidate",
    "unknown directives": "Cache-Control: max-age=60, community=UCI",
}
NOT_KEPT = {
    "nothing said": [],
    "no lifetime": ["Cache-Control: public"],
    "no-store": ["Cache-Control: max-age=60, no-store"],
    "private": ["Cache-Control: max-age=60, private"],
    "no-cache": ["Cache-Control: max-age=60, no-cache"],
    "s-maxage=0 before max-age": ["Cache-Control: max-age=60, s-maxage=0"],
    "in a second header": ["Cache-Control: max-age=60", "Cache-Control: no-store"],
    "Set-Cookie": ["Cache-Control: max-age=60", "Set-Cookie: a=b"],
    "Vary: *": ["Cache-Control: max-age=60", "Vary: *"],
    "no number": ["Cache-Control: max-age=soon"],
    "negative": ["Cache-Control: max-age=-1"],
    "two lifetimes": ["Cache-Control: max-age=60, max-age=1"],
    "never stale, and stale": ["Cache-Control: max-age=60, must-revalidate, stale-if-error=60"],
    "another cache's": ["Cache-Control: max-age=60", "Age: 50"],
}


@native
@pytest.mark.parametrize("said", KEPT)
def test_an_answer_is_kept_where_it_says_for_how_long(client: httpx.Client, said: str) -> None:
    name = next(NAMES)
    assert twice(client, url(name, KEPT[said])) == ("MISS", "HIT")
    assert asked(client, name) == 1


@native
@pytest.mark.parametrize("said", NOT_KEPT)
def test_an_answer_is_not_kept_where_it_forbids_it_or_is_in_doubt(client: httpx.Client, said: str) -> None:
    name = next(NAMES)
    assert "HIT" not in twice(client, url(name, *NOT_KEPT[said])), f"kept: {NOT_KEPT[said]}"
    assert asked(client, name) == 2


@native
def test_only_paths_that_are_named_are_kept(client: httpx.Client) -> None:
    said = twice(client, url(next(NAMES), KEPT["public"], path="/other"))
    assert said == ("", ""), f"of a path that no row names the cache says {said}"


@native
def test_what_comes_with_a_password_is_neither_kept_nor_answered_from_what_is(client: httpx.Client) -> None:
    name = next(NAMES)
    address, password = url(name, KEPT["public"]), {"Authorization": "Bearer abc"}
    assert twice(client, address, headers=password) == ("", "")
    assert twice(client, address) == ("MISS", "HIT"), "kept from a request with a password"
    client.get(address, headers=password)
    assert asked(client, name) == 4, "answered with what was kept, though it brought a password"


@native
def test_a_post_is_not_kept_and_not_answered_from_what_is(client: httpx.Client) -> None:
    name = next(NAMES)
    address = url(name, KEPT["public"])
    client.get(address)
    for _ in range(2):
        assert client.post(address).headers.get("x-cache-status") is None
    assert asked(client, name) == 3


@native
def test_a_body_that_the_address_does_not_show_leaves_nothing_for_others(client: httpx.Client) -> None:
    address = url(next(NAMES), KEPT["public"])
    client.request("GET", address, content=b"poison")
    assert "poison" not in client.get(address).text, "one client's body is in everybody's answer"


@native
def test_each_variant_that_vary_tells_apart_is_kept_for_itself(client: httpx.Client) -> None:
    address = url(next(NAMES), KEPT["public"], "Vary: Accept-Language")
    answers = [client.get(address, headers={"Accept-Language": each}) for each in ("de", "fr", "de", "fr")]
    assert [answer.headers["x-cache-status"] for answer in answers] == ["MISS", "MISS", "HIT", "HIT"]
    assert [answer.text.split()[1] for answer in answers] == ["de", "fr", "de", "fr"], "one language got another's"


@native
def test_names_queries_and_ports_are_kept_apart(client: httpx.Client) -> None:
    address = url(next(NAMES), KEPT["public"])
    asked_for = [(address, "a.test"), (address, "b.test"), (address, "b.test:81"), (address + "&size=9", "b.test")]
    said = [client.get(each, headers={"Host": host}).headers["x-cache-status"] for each, host in asked_for]
    assert said == ["MISS"] * len(said), f"one name's answer went to another: {said}"


@native
def test_an_answer_is_asked_for_anew_when_its_time_is_over(client: httpx.Client) -> None:
    name = next(NAMES)
    address = url(name, "Cache-Control: max-age=1")
    client.get(address)
    answer = until("the end of its time", lambda: (a := client.get(address)).headers["x-cache-status"] != "HIT" and a)
    assert answer.headers["x-cache-status"] == "EXPIRED"
    assert answer.text.startswith("2 "), f"after its time it was not the app's new answer: {answer.text}"


@native
def test_the_age_of_an_answer_can_be_told(client: httpx.Client) -> None:
    """By its Date, which is the app's: a browser must not count max-age from when nginx sent it."""
    address = url(next(NAMES), KEPT["public"])
    first = client.get(address)
    until("the next second", lambda: time.time() > parsedate_to_datetime(first.headers["date"]).timestamp() + 2)
    again = client.get(address)
    assert again.headers["x-cache-status"] == "HIT"
    assert again.headers["date"] == first.headers["date"], "each answer looks new"


@native
def test_errors_of_the_app_are_not_kept_unless_they_say_so(client: httpx.Client) -> None:
    assert "HIT" not in twice(client, url(next(NAMES), status=404))
    assert twice(client, url(next(NAMES), KEPT["max-age"], status=404)) == ("MISS", "HIT")


# --- What it goes along with ---------------------------------------------------------------------------------------


@native
def test_each_client_has_its_own_request_id_and_its_own_session(stack: Stack) -> None:
    address = url(next(NAMES), KEPT["public"])
    answers = []
    for _ in range(3):
        with stack.client() as client:
            answers.append(client.get(address))
    assert [answer.headers["x-cache-status"] for answer in answers] == ["MISS", "HIT", "HIT"]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3, "a request id was kept"
    assert len({answer.cookies["worker"] for answer in answers}) == 3, "the cookie of STICKY_SESSIONS was kept"


@native
def test_the_log_says_hit_and_miss(stack: Stack, client: httpx.Client) -> None:
    address = url(next(NAMES), KEPT["public"])
    ids = [client.get(address).headers["x-request-id"] for _ in range(2)]

    def lines() -> list[dict[str, Any]]:
        return [line for line in stack.access_log() if line["request_id"] in ids]

    until("two lines", lambda: len(lines()) == 2)
    assert [(line["cache"], bool(line["upstream"])) for line in lines()] == [("MISS", True), ("HIT", False)]


@native
def test_head_is_answered_from_what_a_get_has_left(client: httpx.Client) -> None:
    name = next(NAMES)
    address = url(name, KEPT["public"])
    length = client.get(address).headers["content-length"]
    head = client.head(address)
    assert (head.headers["x-cache-status"], head.headers["content-length"], head.content) == ("HIT", length, b"")
    assert asked(client, name) == 1


@native
def test_a_condition_is_answered_from_what_is_kept(client: httpx.Client) -> None:
    name = next(NAMES)
    address = url(name, KEPT["public"], 'ETag: "one"', size=4000)
    for encoding in ("identity", "gzip"):
        etag = client.get(address, headers={"Accept-Encoding": encoding}).headers["etag"]
        same = client.get(address, headers={"Accept-Encoding": encoding, "If-None-Match": etag})
        other = client.get(address, headers={"If-None-Match": '"two"'})
        assert (same.status_code, other.status_code) == (304, 200), f"{encoding}: {etag}"
    assert asked(client, name) == 1


@native
def test_a_condition_on_an_empty_cache_leaves_the_whole_answer(client: httpx.Client) -> None:
    address = url(next(NAMES), KEPT["public"], 'ETag: "one"')
    assert client.get(address, headers={"If-None-Match": '"one"'}).status_code == 304
    whole = client.get(address)
    assert (whole.status_code, whole.headers["x-cache-status"]) == (200, "HIT")


@native
def test_a_part_is_asked_of_the_app_and_never_kept(client: httpx.Client) -> None:
    name = next(NAMES)
    address = url(name, KEPT["public"])
    part = client.get(address, headers={"Range": "bytes=0-0"})
    assert part.headers.get("x-cache-status") is None
    assert twice(client, address) == ("MISS", "HIT")
    assert asked(client, name) == 2


@native
def test_who_takes_gzip_and_who_does_not_get_the_same_answer(client: httpx.Client) -> None:
    address = url(next(NAMES), KEPT["public"], size=4000)
    answers = [client.get(address, headers={"Accept-Encoding": each}) for each in ("gzip", "identity", "gzip")]
    assert [answer.headers.get("content-encoding") for answer in answers] == ["gzip", None, "gzip"]
    assert len({answer.text for answer in answers}) == 1
    assert "Accept-Encoding" in answers[0].headers["vary"]


@native
def test_a_stream_under_a_path_that_is_kept_arrives_piece_by_piece(client: httpx.Client) -> None:
    name = next(NAMES)
    with client.stream("GET", f"/kept/stream/{name}", headers={"Accept-Encoding": "identity"}) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"first"
        assert httpx.post(f"{client.base_url}/go-on/{name}", timeout=DEADLINE).status_code == 200
        assert b"".join(pieces) == b"second", "the first piece came with the last"


# --- Many at once, and an app that is down -------------------------------------------------------------------------


def at_once(stack: Stack, address: str, count: int) -> Counter[tuple[int, str]]:
    """Statuses, and what they say of the cache, of as many requests at the same time."""

    request = f"GET {address} HTTP/1.1\r\nHost: 127.0.0.1:{stack.http_port}\r\nConnection: close\r\n\r\n".encode()

    async def one() -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.http_port)
        writer.write(request)
        answer = (await reader.read()).decode()
        writer.close()
        (said,) = re.findall(r"^X-Cache-Status: (\w+)", answer, re.MULTILINE | re.IGNORECASE)
        return int(answer.split()[1]), said

    async def all_of_them() -> Counter[tuple[int, str]]:
        # Not with httpx: a thousand of its connections take half a minute of CPU.
        async with asyncio.timeout(DEADLINE):
            return Counter(await asyncio.gather(*(one() for _ in range(count))))

    return asyncio.run(all_of_them())


@native
def test_of_many_that_ask_at_once_for_a_new_answer_one_reaches_the_app(stack: Stack, client: httpx.Client) -> None:
    name = next(NAMES)
    # Longer than the lock lasts by default.
    got = at_once(stack, url(name, KEPT["public"], ms=6000), 300)
    assert {status for status, _ in got} == {200}
    assert asked(client, name) == 1, f"of 300 at once, {asked(client, name)} reached the app: {got}"


@native
def test_of_a_thousand_that_ask_at_once_for_an_expired_answer_one_reaches_the_app(
    stack: Stack, client: httpx.Client
) -> None:
    name = next(NAMES)
    address = url(name, "Cache-Control: max-age=1, stale-while-revalidate=60", ms=500, later="max-age=600")
    client.get(address)
    time.sleep(2.1)  # until it has expired; to ask would renew it
    got = at_once(stack, address, 1000)
    until("the new answer", lambda: client.get(address).text.startswith("2 "))
    assert {status for status, _ in got} == {200}
    assert asked(client, name) == 2, f"of 1000 at once, {asked(client, name) - 1} reached the app: {got}"


@native
def test_stale_while_it_is_asked_anew_nobody_waits(client: httpx.Client) -> None:
    address = url(next(NAMES), "Cache-Control: max-age=1, stale-while-revalidate=60", ms=6000)
    client.get(address)
    time.sleep(2.1)
    with httpx.Client(base_url=client.base_url, timeout=5) as hasty:
        answer = hasty.get(address)
    assert (answer.headers["x-cache-status"], answer.text[:2]) == ("STALE", "1 ")


@native
def test_an_error_that_the_app_answers_goes_through(client: httpx.Client) -> None:
    """nginx lets a stale answer stand in for an app that does not answer, and not for what it answers."""
    name = next(NAMES)
    address = url(name, "Cache-Control: max-age=1, stale-if-error=60")
    client.get(address)
    client.post(f"/break/{name}")
    time.sleep(2.1)
    assert client.get(address).status_code == 500


# --- Its space -----------------------------------------------------------------------------------------------------


def held(folder: Path) -> int:
    """The bytes of the files in a folder that is being written to."""
    find = ["find", str(folder), "-type", "f", "-printf", "%b\n"]
    return 512 * sum(map(int, subprocess.run(find, capture_output=True, text=True).stdout.split()))


def flood(stack: Stack, size: int, seconds: float) -> int:
    """The bytes of answers that may be kept, each with an address of its own; all of them must come whole."""
    name, count, end = next(NAMES), itertools.count(), time.monotonic() + seconds

    def one(client: httpx.Client) -> None:
        while time.monotonic() < end:
            answer = client.get(url(name, KEPT["public"], size=size, number=next(count)))
            assert (answer.status_code, len(answer.content)) == (200, size)

    with ExitStack() as clients, ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(one, clients.enter_context(stack.client())) for _ in range(4)]:
            done.result()
    return next(count) * size


@native
def test_a_flood_of_answers_to_keep_stays_within_the_space(stack: Stack) -> None:
    """nginx alone would keep all that comes before it looks again, and then fail uploads and answers in the middle."""
    before = held(stack.folder / "nginx/cache")
    came = flood(stack, 100_000, 4)
    kept = held(stack.folder / "nginx/cache") - before
    assert came > 12 << 20, f"too slow to prove anything: {came} bytes"
    assert 500_000 < kept <= 8 << 20, f"with CACHE_MB=8 {kept / (1 << 20):.1f} MiB came into the cache at once"


@native
def test_what_is_over_the_size_goes(stack: Stack) -> None:
    """Each new worker may offer its share at once."""
    folder, came = stack.folder / "nginx/cache", 0
    for _ in range(12):
        before = held(folder)
        flood(stack, 100_000, 1)
        came += max(held(folder) - before, 0)
        if came > 10 << 20:
            break
        old = {worker["pid"] for worker in stack.workers()}
        for pid in old:
            stack.kill(pid)

        def new() -> bool:
            return len({w["pid"] for w in stack.workers() if w["state"] == "ready"} - old) == 2  # noqa: B023

        until("new workers", new)
    assert came > 10 << 20, f"too slow to prove anything: {came} bytes"
    until("room for what is new", lambda: held(folder) <= 8 << 20, seconds=25)


@native
def test_what_is_offered_and_not_kept_waits_in_no_file(stack: Stack, client: httpx.Client) -> None:
    """The files' space is the uploads'. A client asks for a part, which nginx does not keep, and reads slowly."""
    address = url(next(NAMES), KEPT["public"], size=900_000)
    with client.stream("GET", address, headers={"Range": "bytes=0-", "Accept-Encoding": "identity"}) as answer:
        assert answer.status_code == 200
        pieces = answer.iter_raw(chunk_size=1000)
        next(pieces)
        time.sleep(1)
        assert sum(map(len, pieces)) == 899_000
    assert "an upstream response is buffered" not in (stack.folder / "stack.log").read_text()


@native
def test_without_the_row_nothing_of_the_cache_is_there() -> None:
    """In the configuration that nginx reads, and among its processes."""
    stack = Stack("native", "cache-off")
    for _ in started(stack):
        lines = "\n".join(path.read_text() for path in (stack.folder / "nginx").glob("*.conf")).splitlines()
        said = [line for line in lines if "cache" in line.replace(str(stack.folder), "").partition("#")[0]]
        assert all("include" in line for line in said), said
        assert (stack.folder / "nginx/cache.conf").read_text() == ""
        assert len(nginx_processes(stack)) == 3  # the master and NGINX_WORKERS
        with stack.client() as client:
            answer = client.get("/")
        assert "x-cache-status" not in answer.headers
        assert not {"x-accel-buffering", "age"} & set(answer.headers)


# --- A deploy ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deployed() -> Iterator[Callable[[str], Stack]]:
    """Stacks with code that a deploy can change, by way of running."""
    files = {"app/kept.py": (Path(__file__).parent / "apps/kept.py").read_text()}
    rows = ROWS | {"APP_MODULE": "app.kept:app", "STICKY_SESSIONS": "none"}
    with made_once(lambda way: Stack(way, "cache-deploy", files=files, **rows)) as stacks:
        yield stacks


@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.xdist_group(way)) for way in WAYS])
def test_a_deploy_empties_it(deployed: Callable[[str], Stack], way: str) -> None:
    stack = deployed(way)
    with stack.client() as client:
        address = url("a", "Cache-Control: max-age=3600, stale-while-revalidate=3600")
        assert twice(client, address) == ("MISS", "HIT")
        code = stack.root / "app/kept.py"
        code.write_text(code.read_text().replace('f"{times(name)}', 'f"new {times(name)}'))
        done = stack.make("deploy")
        assert done.returncode == 0, done.stdout + done.stderr
        answer = client.get(address)
        assert answer.text.startswith("new "), f"after the deploy the old code's answer is served: {answer.text}"
        assert client.get(address).headers["x-cache-status"] == "HIT"
    if way == "native":
        log = (stack.folder / "stack.log").read_text()
        assert "[crit]" not in log, log
        assert "[alert]" not in log, log


@pytest.mark.xdist_group("compose")
def test_while_the_app_is_down_what_is_kept_is_served_and_the_rest_is_503(deployed: Callable[[str], Stack]) -> None:
    stack = deployed("compose")
    with stack.client() as client:
        addresses = {
            "fresh": url("f", KEPT["public"]),
            "stale-if-error": url("e", "Cache-Control: max-age=1, stale-if-error=600"),
            "both": url("b", "Cache-Control: max-age=1, stale-while-revalidate=600, stale-if-error=600"),
            "neither": url("n", "Cache-Control: max-age=1"),
        }
        for address in addresses.values():
            client.get(address)
        stack.compose("stop", "app")
        # The youngest is too old then, so all but the first are.
        until("nobody answers, and it is too old", lambda: client.get(addresses["neither"]).status_code == 503)
        got = {name: client.get(address) for name, address in addresses.items()}
    said = {name: (answer.status_code, answer.headers.get("x-cache-status")) for name, answer in got.items()}
    assert said["fresh"] == (200, "HIT")
    assert said["stale-if-error"] == said["both"] == (200, "STALE"), f"stale-if-error was not obeyed: {said}"
    assert said["neither"][0] == 503, f"what may not be stale was served all the same: {said}"


# --- Bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"CACHE_MB": "8", "CACHE_PATHS": ""}, "CACHE_MB=8 with CACHE_PATHS empty"),
        ({"CACHE_MB": "8", "CACHE_PATHS": "kept"}, "CACHE_PATHS=kept: must be beginnings of paths"),
        ({"CACHE_MB": "100", "CACHE_PATHS": "/a"}, "space budget, rule uploads-fit-nginx-files"),
        ({"CACHE_MB": "-1", "CACHE_PATHS": "/a"}, "CACHE_MB=-1"),
    ],
)
def test_rows_that_are_no_good_are_refused_in_one_line(rows: dict[str, str], said: str) -> None:
    stack = Stack("native", "cache-refused", **ROWS | rows)
    try:
        done = stack.make("up")
        lines = [line for line in done.stderr.splitlines() if line]
        assert done.returncode == 2, done.stdout + done.stderr
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith(said), done.stderr
    finally:
        shutil.rmtree(stack.folder, ignore_errors=True)
