"""`make capacity`: the highest arrival rate at which the objectives of .env hold, and the rows of .env that follow.

WRITE=1 writes the rows into .env. PROBE=SECONDS is how long one probe lasts. Exit status 0: found. 1: the objectives
hold at no rate. 3: the machine was too noisy to tell. 2: could not run.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, median_low
from types import FrameType
from typing import Any

from dotenv import dotenv_values

from app.server import budget, cpus
from app.server.settings import SettingsError, read
from bench import report, target
from bench.capacity import curve, recommend, search
from bench.capacity.knee import NoneHolds, TooNoisy, Trials, find, find_roughly, measured
from bench.capacity.probe import Objectives, Probe
from bench.capacity.recommend import AS_GOOD, USUAL, Measured, Pool
from bench.harness import Progress
from bench.processes import Bench, CannotRun
from bench.target import Target
from stack.console import Failure, say
from stack.settings import GIVEN, ROOT, StackSettings, checked

FOUND, NONE_HOLDS, COULD_NOT_RUN, TOO_NOISY = 0, 1, 2, 3
INTERRUPTED = 130
REPORTS = ROOT / "reports"
ENV = ROOT / ".env"

PROBE_SECONDS = 4.0
MUCH = 0.05  # of the CPUs, for work that is none of this
# The requests in flight that the rule gives are tried, and so many times as many where some are refused.
TIMES = (1, 2, 4, 8)
# All of it, and what of it finding the rate may take.
MOST_SECONDS, SEARCH_SECONDS = 300.0, 190.0
# In addition, for an app with a database: to compare sizes of its pool.
POOL_SECONDS = 120.0


def rows_of(path: Path) -> dict[str, str]:
    """The rows as they stand in the file, whatever overrides them now."""
    return {name: value or "" for name, value in dotenv_values(path).items()}


def counts(settings: StackSettings) -> list[int]:
    """Numbers of workers to measure: .env's first, then one, and one for each CPU."""
    return list(dict.fromkeys([settings.workers, 1, cpus.whole(cpus.usable())]))


def rows_of_a_probe(settings: StackSettings, table: Mapping[str, str], workers: int) -> dict[str, str]:
    """What is other than in .env while it is searched: the limits that follow from the finding are out of the way."""
    out_of_the_way = {
        "APP_MAX_REQUESTS_IN_FLIGHT": "0",
    }
    rows = {row: value for row, value in out_of_the_way.items() if row in table}
    return rows | {"WORKERS": str(workers)} | recommend.fitting(settings, workers)


@contextlib.contextmanager
def started(name: str, wanted: Target, rows: dict[str, str]) -> Iterator[int]:
    """nginx's port of a stack with these rows, which answers to all paths."""
    bench = Bench(name, **rows)
    with bench.own_folder(), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(bench.app())
        except CannotRun:
            if why := target.why_not_loaded(bench.folder / "app.log"):
                raise CannotRun(why) from None
            raise
        stack.enter_context(bench.nginx())
        target.require_answers(bench.http_port, wanted)
        yield bench.http_port


@dataclass
class Found:
    """All that a run found; without a rate, `noise` or `none_holds` says why."""

    target: Target
    objectives: Objectives
    probes: list[Probe] = field(default_factory=list)
    rate: float | None = None
    searches: list[float] = field(default_factory=list)
    by_workers: list[Measured] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    recommendations: list[recommend.Recommendation] = field(default_factory=list)
    noise: str = ""
    none_holds: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        return NONE_HOLDS if self.none_holds else TOO_NOISY if self.noise else FOUND


def run(seconds: float) -> Found:
    """Measure. Raises CannotRun or SettingsError where nothing can be."""
    settings, table = checked()
    found = Found(target.given(), Objectives.of(settings))
    begun = time.monotonic()
    # Estimated for a search in which one probe in two is repeated.
    progress = Progress(12 + 26 * (seconds + 0.4) + (len(counts(settings)) - 1) * (8 + 5 * seconds))
    database = settings.database_pool_size > 0
    end = begun + MOST_SECONDS + (POOL_SECONDS if database else 0)
    first, *others = counts(settings)
    progress.step(f"starting {found.target} with {first} workers")
    with started("capacity", found.target, rows_of_a_probe(settings, table, first)) as port:
        trials = Trials(port, found.target, found.objectives, progress, seconds, begun + SEARCH_SECONDS, found.probes)
        try:
            found.rate, found.searches = find(trials)
            found.by_workers.append(measured(trials, first, found.rate))
        except TooNoisy as noise:
            found.noise = str(noise)
        except NoneHolds as missed:
            found.none_holds = str(missed)
    _judge(found, database=database)
    if found.rate is None:
        progress.clear()
        return found
    for workers in others:
        progress.step(f"starting it with {workers} workers")
        with started(f"capacity-{workers}", found.target, rows_of_a_probe(settings, table, workers)) as port:
            trials = Trials(port, found.target, found.objectives, progress, seconds / 2, begun + MOST_SECONDS - 20)
            try:
                found.by_workers.append(find_roughly(trials, workers, found.rate))
            except (TooNoisy, NoneHolds) as why:
                found.notes.append(f"{workers} workers could not be measured: {why}")
    if database:
        _compare_pools(found, settings, table, seconds, progress)
    limit = recommend.descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for times in TIMES:
        found.recommendations = recommend.recommend(settings, rows_of(ENV), found.by_workers, limit, times, found.pools)
        if time.monotonic() > end - 15:
            found.notes.append("there was no time to try the recommended rows")
            break
        failed = _tried(found, seconds, progress)
        if not any(each.errors for each in failed):
            break
    else:
        found.notes.append("with the recommended rows some requests are refused: raise APP_MAX_REQUESTS_IN_FLIGHT")
    progress.clear()
    return found


def _compare_pools(
    found: Found, settings: StackSettings, table: Mapping[str, str], seconds: float, progress: Progress
) -> None:
    """Look for the smallest of 1, 2, 4 … connections in each worker that bears about as much; and whether more than
    .env has would bear more.
    """
    chosen = recommend.best(found.by_workers)

    def held(size: int, rate: float) -> Pool:
        progress.step(f"starting it with {size} connections to the database in each worker")
        rows = rows_of_a_probe(settings, table, chosen.workers) | {"DATABASE_POOL_SIZE": str(size)}
        with started(f"capacity-pool-{size}", found.target, rows) as port:
            trials = Trials(port, found.target, found.objectives, progress, seconds, float("inf"))
            holds = search.by_majority(trials.holds)(rate)
        return Pool(size, trials.taken[-1].p99_ms, holds)

    size, until = 1, time.monotonic() + POOL_SECONDS
    while size < settings.database_pool_size and time.monotonic() < until:
        found.pools.append(held(size, AS_GOOD * chosen.rate))
        if found.pools[-1].held:
            return
        size *= 2
    double = 2 * settings.database_pool_size
    if recommend.pool_fits(settings, chosen.workers, double) and held(double, chosen.rate / AS_GOOD).held:
        found.notes.append(f"with DATABASE_POOL_SIZE={double} it bears more: measure again with it")


def _tried(found: Found, seconds: float, progress: Progress) -> list[Probe]:
    """The probes of the usual load that did not hold with the recommended rows, limits and all; none if most did."""
    rate = USUAL * recommend.best(found.by_workers).rate
    rows = {each.row: each.value for each in found.recommendations}
    progress.step("trying the recommended rows")
    with started("capacity-recommended", found.target, rows) as port:
        trials = Trials(port, found.target, found.objectives, progress, seconds / 2, float("inf"))
        held = search.by_majority(trials.holds)(rate)
    failed = [] if held else [each for each in trials.taken if not each.held]
    said = f"do not hold ({', '.join(failed[-1].missed)})" if failed else "hold"
    limit = rows.get("APP_MAX_REQUESTS_IN_FLIGHT")
    found.notes.append(f"tried with APP_MAX_REQUESTS_IN_FLIGHT={limit}: at {USUAL:.0%} of the rate ({rate:.0f}/s) "
                       f"the objectives {said}")  # fmt: skip
    return failed


def _judge(found: Found, *, database: bool) -> None:
    """What the probes near the edge say of the generator and of the machine.

    A database on this machine is other work as well: it cannot be told from a disturbance.
    """
    around = found.rate or median_low(each.rate for each in found.probes)
    near = [each for each in found.probes if around / 1.4 < each.rate < around * 1.4]
    others = median(each.others for each in near)
    if found.rate is not None and not database and sum(each.disturbed for each in near) > len(near) / 2:
        found.noise = f"other work took {others:.0%} of its CPUs, none was left over, and the stack had use for more"
    elif others > MUCH:
        whose = "other work and the database" if database else "other work"
        found.notes.append(f"meanwhile {whose} took {others:.0%} of this machine's CPUs")
    failed = [each for each in near if not each.held]
    if failed and sum(each.by_the_generator for each in failed) > len(failed) / 2:
        busy, late = median(each.busy for each in failed), median(each.late_ms for each in failed)
        found.notes.append(
            f"the load generator did not keep up ({busy:.0%} of a CPU, 1 % of the requests {late:.0f} ms late or "
            "more): the stack may bear more than was found"
        )
    if found.rate is not None and found.rate >= search.MOST / 2:
        found.notes.append("no rate that was tried was too high")


def show(found: Found) -> None:
    if found.probes:
        knee = found.rate
        if knee is not None:
            knee = max((each.rate for each in found.probes if each.held and each.rate <= knee * 1.001), default=None)
        say(f"\n{curve.curve(found.probes, knee)}\n")
        picture = curve.svg(found.probes, found.rate, found.objectives, str(found.target))
        curve.write(REPORTS, picture, _as_json(found))
    if found.rate is not None:
        searches = ", ".join(f"{each:.0f}" for each in found.searches)
        say(f"capacity: {found.rate:.1f} requests/s within the objectives (searches: {searches})")
    for note in found.notes:
        say(f"note: {note}")
    if found.none_holds:
        say(f"the objectives hold at no rate, not at {search.LEAST:g}/s either: {found.none_holds}")
    if found.noise:
        say(f"the machine was too noisy to tell: {found.noise}; run it again when it is quiet, or with longer probes: "
            f"make capacity PROBE={2 * PROBE_SECONDS:g}")  # fmt: skip


def _as_json(found: Found) -> dict[str, Any]:
    return {
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "conditions": report.conditions() | {"app": found.target.module, "load from": "bench.capacity.probe"},
        "target": asdict(found.target),
        "objectives": asdict(found.objectives),
        "rate": found.rate,
        "status": found.status,
        "searches": found.searches,
        "noise": found.noise or None,
        "by_workers": [asdict(each) for each in found.by_workers],
        "pools": [asdict(each) for each in found.pools],
        "recommendations": [asdict(each) for each in found.recommendations],
        "notes": found.notes,
        "probes": curve.as_json(found.probes),
    }


def hand_over(recommendations: list[recommend.Recommendation], write: bool, path: Path = ENV) -> None:
    """Print the rows, or write those that change into `path`. Raises Failure where they break the timeout budget."""
    rows = {each.row: each.value for each in recommendations if each.changes}
    if not write or not rows:
        say(f"\nfor this machine and this app{'' if rows else ', as .env has it'}:\n")
        say(curve.rows_to_paste(recommendations))
        if rows:
            say("\nmake capacity WRITE=1 writes them into .env")
        return
    before = path.read_text()
    after = recommend.with_rows(before, rows)
    _, table = checked()
    if broken := budget.violations(read(StackSettings, GIVEN | table | rows)):
        raise Failure("the rows were not written:\n" + "\n".join(broken))
    path.write_text(after)
    say(f"\nwritten into {path.name}:\n{recommend.diff(before, after)}")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that what was started is stopped


def options(environ: Mapping[str, str] = os.environ) -> tuple[bool, float]:
    """WRITE and PROBE. Raises CannotRun with a line for the one that is wrong."""
    write, seconds = environ.get("WRITE", ""), environ.get("PROBE", "")
    if write not in ("", "0", "1"):
        raise CannotRun(f"WRITE={write}: must be 1, to write the rows into .env, or be left out")
    try:
        length = float(seconds or PROBE_SECONDS)
    except ValueError:
        length = 0
    if not 0.5 <= length <= 20:
        raise CannotRun(f"PROBE={seconds}: must be seconds from 0.5 to 20, as PROBE=8, or be left out")
    return write == "1", length


def main() -> int:
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a script it is ignored
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))  # a connection for each request under way
    try:
        write, seconds = options()
        found = run(seconds)
        show(found)
        if found.status == FOUND:
            hand_over(found.recommendations, write)
        elif write:
            say("nothing was written into .env")
        if found.probes:
            say(f"\nthe curve is in {(REPORTS / 'capacity.svg').relative_to(ROOT)}, all figures are beside it")
        return found.status
    except (SettingsError, Failure, CannotRun) as error:
        print(error, file=sys.stderr)
        return COULD_NOT_RUN
    except KeyboardInterrupt:
        print("\nstopped; what was started is gone", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
