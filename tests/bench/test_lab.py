import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from bench import __main__ as command
from bench import html, lab, report
from bench.harness import Comparison, Progress, Result
from bench.processes import CannotRun
from bench.ratios import Figures

Experiment = Callable[[], Result]


def result(name: str = "cost, a to b") -> Result:
    return Result([Comparison(name, Figures((1.1, 1.2, 1.15)))], curves={"latency": {"a": {50.0: 1.5, 99.9: 20.0}}})


def experiment(run: Experiment, seconds: float = 1) -> ModuleType:
    """A module like those of bench/experiments, that measures nothing."""
    module = ModuleType("experiment")
    module.__dict__.update(QUESTION="How much?", seconds=lambda: seconds, run=lambda progress: run())
    return module


@pytest.fixture
def run_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs `python -m bench lab NAME...` with these experiments; its exit status, and the page it leaves."""
    page = tmp_path / "lab/index.html"

    def run(experiments: dict[str, ModuleType], *names: str) -> tuple[int, str]:
        monkeypatch.setattr(command, "EXPERIMENTS", experiments)
        monkeypatch.setattr(command, "REPORTS", tmp_path)
        monkeypatch.setattr(command, "PAGE", page)
        monkeypatch.setattr(sys, "argv", ["bench", "lab", *names])
        return command.main(), page.read_text()

    return run


def ctrl_c() -> Result:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    raise AssertionError("nothing interrupted it")


def cannot() -> Result:
    raise CannotRun("no <engine> answers")


def test_ctrl_c_keeps_what_was_measured_and_the_page_says_what_is_missing(
    run_lab: Callable[..., tuple[int, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = {"one": experiment(result), "two": experiment(ctrl_c), "three": experiment(result)}
    status, page = run_lab(three)
    assert status == 130
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["one.json"]
    assert '<section id="one"' in page
    assert page.count("it has not been run yet") == 2
    assert "(make lab EXPERIMENTS=&quot;two&quot;)" in page
    assert "cost, a to b" in capsys.readouterr().out, "what was measured is not on the terminal"


def test_an_experiment_that_cannot_run_is_on_the_page_with_its_reason(
    run_lab: Callable[..., tuple[int, str]],
) -> None:
    status, page = run_lab({"one": experiment(cannot), "two": experiment(result)})
    assert status == 2
    assert "Not measured: no &lt;engine&gt; answers." in page
    assert '<section id="two"' in page


def test_an_older_result_stays_on_the_page_and_says_that_it_is_one(run_lab: Callable[..., tuple[int, str]]) -> None:
    assert run_lab({"one": experiment(result)})[0] == 0
    status, page = run_lab({"one": experiment(cannot)})
    assert status == 2
    assert "the last run came to nothing, this is an older one: no &lt;engine&gt; answers" in page


def test_only_the_named_experiments_run(run_lab: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    assert run_lab({"one": experiment(result), "two": experiment(result)}, "two")[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["two.json"]


def test_an_experiment_is_ended_when_its_time_is_over() -> None:
    with pytest.raises(CannotRun, match="not done within 0 s"), lab.Limits(60, 0.4).of_one(0):
        time.sleep(5)
    time.sleep(0.5)  # and nothing is ended afterwards


def test_an_experiment_is_not_begun_when_too_little_time_is_left() -> None:
    with pytest.raises(CannotRun, match="of 1 min too little was left for the 90 s"), lab.Limits(60).of_one(90):
        raise AssertionError("it was begun")


def test_all_experiments_fit_into_their_time_and_each_into_five_minutes() -> None:
    expected = {name: module.seconds() for name, module in command.EXPERIMENTS.items()}
    assert sum(expected.values()) <= lab.ALL_SECONDS, expected
    assert max(expected.values()) <= lab.ONE_SECONDS, expected


def test_make_bench_runs_experiments_that_there_are() -> None:
    assert set(command.BENCH) <= set(command.EXPERIMENTS)


def test_the_time_left_is_counted_anew_for_each_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(0)
    progress.begin("2 of 3, proxy: ", 125)
    progress.step("round 1")
    assert "about 2:05 left  2 of 3, proxy: round 1" in capsys.readouterr().err.replace("2:04", "2:05")


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    report.write(tmp_path, "one", "How much?", result())
    (stored,) = report.read(tmp_path, ["one", "never run"])
    assert (stored.experiment, stored.question) == ("one", "How much?")
    assert stored.result == result()


def test_nothing_reaches_the_page_as_markup(tmp_path: Path) -> None:
    hostile = "<i>'\"&"
    found = result(f"cost, {hostile} to b")
    found.curves = {hostile: {hostile: {50.0: 1.0, 99.0: 2.0}}}
    found.details, found.notes, found.unavailable = [{hostile: hostile}], [hostile], [hostile]
    report.write(tmp_path, "one", hostile, found)
    page = html.page(report.read(tmp_path, ["one"]), {hostile: hostile})
    assert "<i>" not in page
    assert page.count("&lt;i&gt;") > 10
