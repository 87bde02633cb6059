"""The parts of make capacity that need no stack: the search, a probe of a small server, the rows, the report."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from pathlib import Path
from xml.etree import ElementTree

import pytest

from app.server import budget
from app.server.settings import read
from bench import target
from bench.capacity import __main__ as capacity
from bench.capacity import curve, probe, recommend, search
from bench.capacity.__main__ import Found, hand_over, options
from bench.capacity.knee import NoneHolds, TooNoisy, Trials, find
from bench.capacity.probe import Objectives, Probe, Sent, mean_under_way, most_at_once
from bench.capacity.recommend import Measured, Recommendation, best, with_rows
from bench.capacity.recommend import recommend as recommended
from bench.processes import CannotRun
from bench.target import Target
from stack.console import Failure
from stack.settings import GIVEN, ROOT, StackSettings
from tests.bench.in_thread import serving

OBJECTIVES = Objectives(p50_ms=100, p95_ms=300, p99_ms=1000, error_share=0.001)
EASY = Objectives(p50_ms=30_000, p95_ms=30_000, p99_ms=30_000, error_share=0.001)  # on a busy machine too


def probed(rate: float, missed: tuple[str, ...] = (), p99_ms: float = 20.0, **more: float) -> Probe:
    figures = {"p50_ms": 5.0, "p95_ms": 10.0, "error_share": 0.0, "under_way": 2.0, "busy": 0.1, "late_ms": 1.0}
    shares = {"others": 0.0, "idle": 0.5}
    return Probe(
        rate=rate, requests=100, p99_ms=p99_ms, most_under_way=4, missed=missed, **(figures | shares | more)  # type: ignore[arg-type]
    )  # fmt: skip


# --- the search ---


@pytest.mark.parametrize("edge", [1.3, 15.0, 16.0, 100.0, 2500.0])
def test_an_edge_is_found_within_a_twentieth(edge: float) -> None:
    low, high = search.climb(16, 2, lambda rate: rate <= edge)
    found = search.bisect(low, high, 1.05, lambda rate: rate <= edge)
    assert edge / 1.05 <= found <= edge


def test_a_climb_ends_where_nothing_holds_and_where_everything_does() -> None:
    assert search.climb(16, 2, lambda rate: False) == (0, search.LEAST)
    assert search.climb(16, 2, lambda rate: True) == (search.MOST, search.MOST)


@pytest.mark.parametrize(
    ("trials", "held"),
    [([True], True), ([False, True, True], True), ([False, True, False], False), ([False, False], False)],
)
def test_a_failing_trial_is_repeated_and_two_of_three_decide(trials: list[bool], held: bool) -> None:
    left = iter(trials)
    assert search.by_majority(lambda value: next(left))(1.0) is held
    assert next(left, None) is None


def test_findings_of_which_two_are_near_make_one_and_others_none() -> None:
    assert search.agreed([100, 108]) == 104
    assert search.agreed([100, 112]) is None
    assert search.agreed([100, 150, 155]) == 150
    assert search.agreed([150, 100, 108]) == 108
    assert search.agreed([100]) is None


class Scripted(Trials):
    """Probes without a stack: the objectives hold up to `edge`."""

    def __init__(self, edge: float) -> None:
        super().__init__(0, Target("x:y", ("/",)), OBJECTIVES, None, 4, inf)  # type: ignore[arg-type]
        self.edge = edge

    def probe(self, rate: float, seconds: float = 0) -> Probe:
        taken = probed(rate, () if rate <= self.edge else ("p99 2000 ms",))
        self.taken.append(taken)
        return taken


def test_a_rate_that_three_searches_find_and_that_is_confirmed_is_found() -> None:
    trials = Scripted(200)
    rate, searches = find(trials)
    assert 200 / 1.1 < rate <= 200
    assert len(searches) == 3
    assert all(200 / 1.05 <= each <= 200 for each in searches)


def test_two_searches_that_agree_are_enough_where_there_is_no_time_for_a_third() -> None:
    trials = Scripted(200)
    trials.until = 0
    rate, searches = find(trials)
    assert 200 / 1.1 < rate <= 200
    assert len(searches) == 2


def test_a_rate_that_cannot_be_confirmed_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Scripted(200)
    monkeypatch.setattr("bench.capacity.search.agreed", lambda findings: 300.0)
    with pytest.raises(TooNoisy, match="not when it was confirmed"):
        find(trials)


def test_searches_that_disagree_are_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = iter([100.0, 130.0, 170.0])
    monkeypatch.setattr("bench.capacity.search.bisect", lambda *arguments: next(findings))
    with pytest.raises(TooNoisy, match="100, 130, 170 requests/s"):
        find(Scripted(200))


def test_objectives_that_hold_at_no_rate_are_said() -> None:
    with pytest.raises(NoneHolds, match="p99 2000 ms"):
        find(Scripted(0))


# --- a probe ---


class Server:
    """Answers one request after the other, each after `seconds`; with 500 where its path is /bad."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.port = 0
        self.paths: list[bytes] = []
        self.connections = 0
        self.loop = asyncio.new_event_loop()
        self.turn: asyncio.Lock

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError):
            while line := await reader.readline():
                while (await reader.readline()).strip():
                    pass
                path = line.split()[1]
                self.paths.append(path)
                async with self.turn:
                    await asyncio.sleep(self.seconds)
                status = b"500 Internal Server Error" if path == b"/bad" else b"200 OK"
                if path == b"/close":
                    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                    break
                writer.write(b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        writer.close()

    async def main(self, up: threading.Event) -> None:
        self.turn = asyncio.Lock()
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ending = asyncio.Event()
        up.set()
        await self.ending.wait()
        server.close()
        answering = asyncio.all_tasks() - {asyncio.current_task()}
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    with serving(one):
        yield one


def test_a_probe_asks_for_the_paths_in_turn_and_counts_what_fails(server: Server) -> None:
    taken = probe.run(server.port, 50, 0.5, ("/", "/bad"), EASY, seed=1)
    assert server.paths.count(b"/") == server.paths.count(b"/bad") == 20
    assert taken.requests == 40
    assert taken.errors == {"status 500": 20}
    assert taken.error_share == 0.5
    assert taken.missed == ("50.00% failed",)


def test_a_chunked_answer_ends_and_its_connection_is_used_again(server: Server) -> None:
    taken = probe.run(server.port, 20, 4.0, ("/",), EASY, seed=1)
    assert taken.errors == {}
    assert server.connections < taken.requests


def test_a_connection_that_the_server_closes_is_not_used_again(server: Server) -> None:
    taken = probe.run(server.port, 20, 0.5, ("/close",), EASY, seed=1)
    assert taken.errors == {}
    assert server.connections == taken.requests


def test_a_server_that_does_not_keep_up_misses_and_is_not_waited_for(server: Server) -> None:
    server.seconds = 0.05  # 20 a second
    taken = probe.run(server.port, 200, 1.5, ("/",), Objectives(100, 300, 500, 0.001), seed=1)
    assert not taken.held
    assert "ever more requests under way" in taken.missed
    assert taken.requests < 200 * 1.8


def test_a_stack_that_is_not_there_gives_no_right_answer(server: Server) -> None:
    unused = probe.run(1, 20, 0.5, ("/",), OBJECTIVES, seed=1)
    assert unused.error_share == 1
    assert any(error.startswith("no connection") for error in unused.errors)


def test_a_queue_that_grows_is_a_miss_although_each_answer_came_in_time() -> None:
    length = 4 + probe.SETTLE_SECONDS
    requests = []
    for number in range(int(100 * length)):
        due = number / 100
        # A sixth is not answered in time; at the end the wait is 0.87 s, which a p99 of a second allows.
        requests.append(Sent(due, "/", sent=due, done=due * 1.2 + 0.01))
    generous = Objectives(1000, 1000, 1000, 0.0)
    taken = probe.summary(100, requests, ended=length + 1, length=length, objectives=generous, gave_up=False,
                          shares=(0.1, 0.0, 0.5))  # fmt: skip
    assert not taken.held
    assert "requests under way grew" in taken.missed[0]
    steady = [Sent(each.due, "/", sent=each.sent, done=each.due + 0.36) for each in requests]
    assert probe.summary(100, steady, length + 1, length, generous, False, (0.1, 0.0, 0.5)).held


def test_littles_law_in_figures() -> None:
    assert mean_under_way([(0, 2), (1, 3)], 0, 4) == 1
    assert mean_under_way([(0, 2), (1, 3)], 1, 2) == 2
    assert most_at_once([(0, 2), (1, 3), (2, 4)]) == 2


def test_the_generator_and_other_work_are_blamed_only_when_they_were_in_the_way() -> None:
    assert not probed(10).by_the_generator
    assert probed(10, busy=0.95).by_the_generator
    assert probed(10, late_ms=50.0).by_the_generator
    assert probed(10, others=0.4, idle=0.05).disturbed
    assert not probed(10, others=0.4, idle=0.4).disturbed, "there was CPU time left"
    assert not probed(10, others=0.9, idle=0.0).disturbed, "the stack had little use for it"


# --- the rows ---


def settings(**changed: str) -> tuple[StackSettings, dict[str, str]]:
    table = capacity.rows_of(ROOT / ".env") | changed
    return read(StackSettings, GIVEN | table), table


def of(workers: int, rate: float, p99_ms: float = 40) -> Measured:
    return Measured(workers=workers, rate=rate, under_way=5, most_under_way=20, usual_p99_ms=p99_ms)


def values(found: list[Recommendation]) -> dict[str, str]:
    return {each.row: each.value for each in found}


def test_the_fewest_workers_that_bear_about_as_much_are_recommended() -> None:
    assert best([of(4, 1000), of(1, 950), of(2, 980)]).workers == 1
    assert best([of(4, 1000), of(1, 500), of(2, 980)]).workers == 2


def test_the_admission_limit_is_littles_law_and_at_least_four() -> None:
    assert recommend.places(of(2, 1000, p99_ms=40)) == 20
    assert recommend.places(of(2, 100, p99_ms=20)) == recommend.LEAST_PLACES


def test_connections_are_enough_for_what_can_be_under_way() -> None:
    stack, table = settings(NGINX_WORKER_CONNECTIONS="1024", UPSTREAM_KEEPALIVE_CONNECTIONS="16")
    found = values(recommended(stack, table, [of(2, 1000)], descriptors=16384))
    assert int(found["UPSTREAM_KEEPALIVE_CONNECTIONS"]) >= 40
    assert int(found["NGINX_WORKER_CONNECTIONS"]) >= 1024 + 2 * 40
    few = values(recommended(stack, table, [of(2, 1000)], descriptors=1000))
    assert few["NGINX_WORKER_CONNECTIONS"] == "1000"


def test_many_workers_keep_the_timeout_budget() -> None:
    stack, table = settings(WORKERS="2")
    rows = values(recommended(stack, table, [of(2, 100), of(16, 1000)], descriptors=16384))
    assert rows["WORKERS"] == "16"
    assert float(rows["APP_CPUS"]) == 16
    assert not budget.violations(read(StackSettings, GIVEN | table | rows))


def test_a_row_that_env_has_not_is_not_recommended() -> None:
    stack, table = settings()
    del table["UPSTREAM_KEEPALIVE_CONNECTIONS"]
    assert "UPSTREAM_KEEPALIVE_CONNECTIONS" not in values(recommended(stack, table, [of(2, 1000)], 16384))


def test_only_the_value_of_a_row_is_replaced() -> None:
    text = "# WORKERS=9 is too many\nWORKERS=2\nWORKERS_OF_OTHERS=2\n"
    assert with_rows(text, {"WORKERS": "3"}) == text.replace("\nWORKERS=2\n", "\nWORKERS=3\n")
    with pytest.raises(KeyError):
        with_rows(text, {"MISSING": "1"})


def test_write_changes_just_the_rows_that_differ_and_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ".env"
    text = (ROOT / ".env").read_text()
    path.write_text(text)
    now = capacity.rows_of(path)
    same = Recommendation("NGINX_WORKER_CONNECTIONS", *[now["NGINX_WORKER_CONNECTIONS"]] * 2, "enough")
    other = Recommendation("UPSTREAM_KEEPALIVE_CONNECTIONS", now["UPSTREAM_KEEPALIVE_CONNECTIONS"], "48", "measured")

    hand_over([same, other], write=False, path=path)
    assert path.read_text() == text
    printed = capsys.readouterr().out
    assert "# measured" in printed
    assert "UPSTREAM_KEEPALIVE_CONNECTIONS=48" in printed

    hand_over([same, other], write=True, path=path)
    changed = [(old, new) for old, new in zip(text.splitlines(), path.read_text().splitlines(), strict=True)
               if old != new]  # fmt: skip
    assert changed == [(f"UPSTREAM_KEEPALIVE_CONNECTIONS={other.now}", "UPSTREAM_KEEPALIVE_CONNECTIONS=48")]
    printed = capsys.readouterr().out
    assert f"-UPSTREAM_KEEPALIVE_CONNECTIONS={other.now}\n+UPSTREAM_KEEPALIVE_CONNECTIONS=48" in printed


def test_rows_that_break_the_timeout_budget_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    text = (ROOT / ".env").read_text()
    path.write_text(text)
    with pytest.raises(Failure, match="timeout budget"):
        hand_over([Recommendation("WORKERS", "2", "200", "measured")], write=True, path=path)
    assert path.read_text() == text


# --- what a person gives, and what is left ---


def test_paths_are_words_that_begin_with_a_slash() -> None:
    assert target.given({}).paths == ("/",)
    assert target.given({"PATHS": " /a  /b?c=d "}).paths == ("/a", "/b?c=d")
    for wrong in ("items", "/ä", "http://example.com/"):
        with pytest.raises(CannotRun, match="PATHS="):
            target.given({"PATHS": wrong})


def test_a_path_must_answer_with_success(server: Server) -> None:
    target.require_answers(server.port, Target("x:app", ("/", "/other")))
    with pytest.raises(CannotRun, match=r'PATHS="/ /bad": GET /bad of x:app answered 500 .*; it must be 2xx'):
        target.require_answers(server.port, Target("x:app", ("/", "/bad")))


def test_the_apps_own_line_says_why_it_is_not_loaded(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    assert target.why_not_loaded(log) is None
    log.write_text('{"message": "listening"}\n')
    assert target.why_not_loaded(log) is None
    log.write_text('{"message": "APP_MODULE=no:app cannot be loaded: no module named \'no\'", "level": "error"}\n')
    why = target.why_not_loaded(log)
    assert why is not None
    assert why.startswith("APP_MODULE=no:app cannot be loaded: no module named 'no'; it must be module:attribute")


def test_options_are_checked() -> None:
    assert options({}) == (False, capacity.PROBE_SECONDS)
    assert options({"WRITE": "1", "PROBE": "2"}) == (True, 2)
    for wrong in ({"WRITE": "yes"}, {"PROBE": "x"}, {"PROBE": "0"}, {"PROBE": "nan"}):
        with pytest.raises(CannotRun, match=f"^{next(iter(wrong))}="):
            options(wrong)


def test_the_report_has_each_probe_and_the_knee(tmp_path: Path) -> None:
    probes = [probed(16), probed(64, p99_ms=200), probed(128, ("p99 2000 ms",), p99_ms=2000)]
    lines = curve.curve(probes, knee=64).splitlines()
    assert len(lines) == 4
    assert "holds: the knee" in lines[2]
    assert "p99 2000 ms" in lines[3]
    picture = curve.svg(probes, 64, OBJECTIVES, "a <title>")
    circles = [each for each in ElementTree.fromstring(picture).iter() if each.tag.endswith("circle")]
    assert len(circles) == 9
    assert [each.get("fill") for each in circles].count("white") == 3
    assert "the knee: 64/s" in picture
    curve.write(tmp_path, picture, {"probes": curve.as_json(probes)})
    assert [each["held"] for each in json.loads((tmp_path / "capacity.json").read_text())["probes"]] == [
        True, True, False
    ]  # fmt: skip


def test_a_load_of_which_the_generator_missed_the_beat_is_said() -> None:
    found = Found(Target("x:y", ("/",)), OBJECTIVES, rate=100.0)
    found.probes = [probed(100), probed(105, ("p99 2000 ms",), busy=0.95), probed(110, ("p50 200 ms",), late_ms=40.0)]
    capacity._judge(found, database=False)
    assert ["generator did not keep up" in note for note in found.notes] == [True]
    assert not found.noise


def test_a_finding_while_other_work_took_the_cpus_is_noise() -> None:
    found = Found(Target("x:y", ("/",)), OBJECTIVES, rate=100.0)
    found.probes = [probed(rate, others=0.5, idle=0.02) for rate in (95, 100, 105)] + [probed(16)]
    capacity._judge(found, database=False)
    assert "other work took 50% of its CPUs" in found.noise


def test_a_database_of_the_apps_is_not_taken_for_a_disturbance() -> None:
    found = Found(Target("x:y", ("/",)), OBJECTIVES, rate=100.0)
    found.probes = [probed(rate, others=0.5, idle=0.02) for rate in (95, 100, 105)]
    capacity._judge(found, database=True)
    assert not found.noise
    assert found.notes == ["meanwhile other work and the database took 50% of this machine's CPUs"]


def test_the_status_says_what_was_found() -> None:
    found = Found(Target("x:y", ("/",)), OBJECTIVES)
    assert found.status == 0
    found.noise = "busy"
    assert found.status == 3
    found.none_holds = "p99"
    assert found.status == 1


@pytest.mark.parametrize(
    ("pools", "size"), [([], 5), ([(1, True)], 1), ([(1, False), (2, True)], 2), ([(1, False), (4, False)], 5)]
)
def test_the_smallest_pool_that_bears_about_as_much_is_recommended(pools: list[tuple[int, bool]], size: int) -> None:
    stack, table = settings(DATABASE_POOL_SIZE="5", DATABASE_MAX_CONNECTIONS="35")
    tried = [recommend.Pool(number, 300.0, held) for number, held in pools]
    rows = recommended(stack, table, [of(2, 1000)], 16384, pools=tried)
    assert values(rows)["DATABASE_POOL_SIZE"] == str(size)
    assert all(f"{number}: p99 300 ms" in rows[1].why for number, _ in pools)


def test_without_a_database_no_pool_is_recommended() -> None:
    assert "DATABASE_POOL_SIZE" not in values(recommended(*settings(DATABASE_POOL_SIZE="0"), [of(2, 1000)], 16384))


def test_the_largest_pool_is_that_which_the_database_has_connections_for() -> None:
    """35, less 5 for others, for 2 workers and a replacement, in a replica and a deploy's."""
    stack, _ = settings(DATABASE_POOL_SIZE="1", DATABASE_MAX_CONNECTIONS="35", APP_REPLICAS="1")
    assert [size for size in range(1, 50) if recommend.pool_fits(stack, 2, size)] == [1, 2, 3, 4, 5]
