import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from bench import __main__ as command
from bench import harness, report
from bench.harness import Comparison, Result, Variant, require_same_answer
from bench.load import Outcome, Request
from bench.processes import CannotRun, process
from bench.ratios import Figures, Goal
from stack.settings import ROOT

GET, POST = Request("GET", "/"), Request("POST", "/")
Serve = Callable[..., Variant]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a variant that gives one answer to every request."""
    with ExitStack() as stack:

        @contextmanager
        def server(status: int, body: dict[str, object]) -> Iterator[Variant]:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.end_headers()
                    self.wfile.write(json.dumps(body).encode())

                def log_message(self, format: str, *args: object) -> None:
                    """Quiet."""

            with HTTPServer(("127.0.0.1", 0), Handler) as http:
                Thread(target=http.serve_forever, daemon=True).start()
                try:
                    yield Variant(f"variant {body}", f"http://127.0.0.1:{http.server_port}", {})
                finally:
                    http.shutdown()

        yield lambda status, **body: stack.enter_context(server(status, body))


def test_answers_that_differ_by_the_process_alone_are_the_same(serve: Serve) -> None:
    require_same_answer([serve(200, pid=1, total=3), serve(200, pid=2, total=3)], GET)


def test_variants_with_different_answers_are_not_compared(serve: Serve) -> None:
    with pytest.raises(CannotRun, match="'total': 4"):
        require_same_answer([serve(200, total=3), serve(200, total=4)], GET)


def test_variants_that_fail_alike_are_not_compared(serve: Serve) -> None:
    with pytest.raises(CannotRun, match="500"):
        require_same_answer([serve(500, error="x"), serve(500, error="x")], GET)


def test_a_price_is_what_a_promise_adds_in_each_round() -> None:
    def rounds(*costs: tuple[float, float]) -> list[harness.Round]:
        return [harness.Round(1, {"app": app, "nginx": nginx}, {}, 0) for app, nginx in costs]

    result = Result()
    with_it, without = rounds((110, 50), (120, 60), (130, 40)), rounds((100, 0), (100, 0), (100, 0))
    harness.add_price(result, "the proxy", with_it, without, "app", "nginx")
    harness.add_price(result, "a lighter app", without, with_it, "app")
    assert [list(row.values()) for row in result.details] == [
        ["the proxy", "70.0", "60.0 to 80.0", "+70%", "app and nginx"],
        ["a lighter app", "-20.0", "-30.0 to -10.0", "-17%", "app"],
    ]


def test_a_process_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(CannotRun, match="no such setting"),
        process("echo no such setting; exit 3", {}, tmp_path / "log", lambda: False, start_seconds=30, stop_seconds=1),
    ):
        pass


def test_each_round_has_processes_of_its_own_and_both_come_first_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def start(name: str) -> harness.Start:
        def started(stack: ExitStack) -> Variant:
            seen.append(f"{name} up")
            stack.callback(lambda: seen.append(f"{name} down"))
            return Variant(name, "", {})

        return started

    def run(*_: object) -> Outcome:
        seen.append("load")
        return Outcome(requests=100, seconds=1, errors=0, latency_ms={99.0: 1}, busy=0.1)

    monkeypatch.setattr(harness, "require_same_answer", lambda *_: None)
    monkeypatch.setattr(harness.load, "run", run)
    found = harness.measure_anew([start("a"), start("b")], [GET, POST], 2, 1, harness.Progress())
    assert [{name: len(rounds) for name, rounds in its.items()} for its in found] == [{"a": 2, "b": 2}] * 2
    loads = ["load"] * 2 * (2 + 2 * harness.SLICES)  # for each request a warm-up of each, then the slices of each
    once = [*loads, "a down", "b down"], [*loads, "b down", "a down"]
    assert seen == ["b up", "a up", *once[0], "a up", "b up", *once[1]]


def result(*values: float, goal: Goal | None) -> Result:
    return Result([Comparison("cost", Figures(values), goal)])


def test_the_exit_status_tells_a_goal_that_is_missed_from_one_that_is_undecided() -> None:
    goal = Goal("at most", 1.25)
    met, missed, undecided = (result(*v, goal=goal) for v in ((1.1, 1.2), (1.3, 1.4), (1.2, 1.3)))
    assert command.status([met, result(3.0, goal=None)]) == 0
    assert command.status([met, undecided]) == 3
    assert command.status([met, undecided, missed]) == 1


@pytest.mark.parametrize("rounds", ["many", "0"])
def test_rounds_that_are_no_number_are_one_line(rounds: str) -> None:
    words = [sys.executable, "-m", "bench", "shell"]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"ROUNDS": rounds}, capture_output=True, text=True)
    said = f"ROUNDS={rounds}: it must be a whole number from 1 on, such as 60\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_an_unknown_experiment_is_one_line_that_names_the_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "shel"])
    assert command.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"shel: no such experiment; there are {', '.join(command.EXPERIMENTS)}" in error


def test_the_page_shows_question_goal_median_interval_range_and_finding(tmp_path: Path) -> None:
    report.write(tmp_path, "shell", "How much?", result(1.1, 1.2, 1.15, goal=Goal("at most", 1.25)))
    page = report.page(tmp_path, ["shell"], "")
    assert "## shell\n\nHow much?\n" in page
    assert "| cost | at most 1.25 | 1.15 | 1.10 to 1.20 | 1.10 to 1.20 | met |" in page
    finding = json.loads((tmp_path / "shell.json").read_text())["findings"][0]
    assert (finding["median"], finding["verdict"]) == (1.15, "met")


def test_the_page_keeps_what_it_had_of_an_experiment_that_was_not_run_again(tmp_path: Path) -> None:
    for name in ("shell", "proxy"):
        report.write(tmp_path, name, "How much?", result(1.1, goal=None))
    before = report.page(tmp_path, ["shell", "proxy", "burst"], "")
    (tmp_path / "shell.json").unlink()
    report.write(tmp_path, "proxy", "How much now?", result(1.2, goal=None))
    page = report.page(tmp_path, ["shell", "proxy", "burst"], before)
    parts = page.split("\n## ")
    assert parts[1] == before.split("\n## ")[1]
    assert parts[2].startswith("proxy\n\nHow much now?\n\n- Cost: 1.20")
    assert len(parts) == 3


def test_the_page_begins_with_the_first_finding_of_each_experiment(tmp_path: Path) -> None:
    report.write(tmp_path, "shell", "How much?", result(1.1, goal=Goal("at most", 1.25)))
    head = report.page(tmp_path, ["shell"], "").partition("\n## ")[0]
    assert "\n- [shell](#shell): Cost: 1.10 (1.10 to 1.10); the goal, at most 1.25, is met." in head


def test_the_page_has_what_the_lab_measured_and_does_not_ask_for_the_rest(tmp_path: Path) -> None:
    report.write(tmp_path, "shell", "How much?", result(1.1, goal=None))
    report.write(tmp_path, "servers", "Which one?", Result([Comparison("throughput, a to b", Figures((1.4, 1.5)))]))
    page = report.page(tmp_path, ["shell", "servers", "sync"], "")
    assert (
        "## servers\n\nWhich one?\n\n- With a, the throughput is 1.45 (1.40 to 1.50) times that with b: more.\n" in page
    )
    assert "sync" not in page
