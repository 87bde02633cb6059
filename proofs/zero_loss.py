"""`make zero-loss`: each event with and without the one setting that makes it harmless; the table of docs/zero-loss.md.

EVENTS="3 9" runs those rows alone, by number; the others stay as they were found last (reports/zero-loss.json).
Exit status 1 when the stack as it is lost something, or when a reverted setting did no harm: then it proves nothing.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from proofs import events
from proofs.open_loop import GET_PATHS, OpenLoop, Outcome, volleys
from proofs.stack import PATIENT_BUDGET, ROOT, Patch, Stack

PAGE = ROOT / "docs/zero-loss.md"
FOUND = ROOT / "reports/zero-loss.json"
LONG_WAIT_SECONDS = 0.5

# Gunicorn with uvicorn-worker's own class, on one socket. Its worker never says that it is ready.
STOCK = [
    (
        "app/Dockerfile",
        '"python", "-m", "app.server"',
        '"gunicorn", "-c", "app/server/gunicorn.conf.py", "-k", "uvicorn_worker.UvicornWorker"',
    ),
    ("app/server/worker_state.py", '"draining"] = "starting"', '"draining"] = "ready"'),
]
STOCK_ROWS = {"WORKER_LISTENERS": "shared"}
# For values that the budget's rules refuse.
NO_RULES = [
    (
        "app/server/budget.py",
        "broken = [line for rule in RULES if (line := rule.broken_by(settings))]",
        "broken: list[str] = []",
    )
]
NGINX = "nginx/templates/nginx.conf.template"
SECOND_CHANCE = "            error_page 502 504 = @again;\n"
KEEPALIVE_MIN = "    keepalive_min_timeout ${CLIENT_KEEPALIVE_MIN_SECONDS}s;\n"


def rows_of(**rows: str) -> dict[str, str]:
    return rows


@dataclass(frozen=True)
class Case:
    """An event, and what is changed for its other side."""

    event: str
    setting: str
    happen: Callable[[Stack, OpenLoop], object]
    patches: Sequence[Patch] = ()
    both: Sequence[Patch] = ()  # for both sides
    rows: dict[str, str] = field(default_factory=dict)  # for both sides
    reverted: dict[str, str] = field(default_factory=dict)  # for the other side
    other: Callable[[Stack, OpenLoop], object] | None = None  # how the event is made to happen there
    waits: bool = False  # the harm is waiting, not loss
    rate: float = events.RATE
    get_paths: Sequence[str] = GET_PATHS


BUSY = 600.0  # the races are won by chance: more requests, more of them
# One GET in twenty blocks its worker's loop, as a handler does that calls a database without awaiting it. What has come
# meanwhile is read only after it, and a worker that leaves just then closes its connections unread.
BLOCKING = ("/work/block?ms=50", *GET_PATHS * 19)
# With more requests under way, least_conn tries the sockets of a replica that is gone with more of them.
SLOW = ("/work/io?ms=100",)
LAB = rows_of(ENABLE_LAB="1")
RECYCLING = rows_of(MAX_REQUESTS="600", MAX_REQUESTS_JITTER="200")
TWO = rows_of(APP_REPLICAS="2")
CASES = [
    Case("five reloads", "the worker that drains -> uvicorn-worker's own", lambda s, o: events.reload(s, o, 5),
         STOCK, (), LAB, STOCK_ROWS, events.hang_up, rate=BUSY, get_paths=BLOCKING),
    Case("a worker recycled every second or so (`max_requests`)", "the worker that drains -> uvicorn-worker's own",
         lambda s, o: events.recycle(s, o, 30), STOCK, (), LAB | RECYCLING, STOCK_ROWS,
         lambda s, o: events.pass_time(s, o, 30), rate=BUSY, get_paths=BLOCKING),
    Case("a replica of two stopped and replaced", "the worker that drains -> uvicorn-worker's own",
         lambda s, o: events.replace_a_replica(s, o, 16), STOCK, (), LAB | TWO, STOCK_ROWS,
         rate=BUSY, get_paths=BLOCKING),
    Case("a replica of two stopped and replaced", "PROXY_NEXT_UPSTREAM_TRIES=10 -> 1", events.replace_a_replica,
         NO_RULES, (), TWO, rows_of(PROXY_NEXT_UPSTREAM_TRIES="1")),
    Case("three deploys", "the second chance (`@again`) -> none", events.deploy,
         [(NGINX, SECOND_CHANCE, "            error_page 502 504 /stack-error;\n")], rate=BUSY, get_paths=SLOW),
    Case("twenty reloads of nginx", "`keepalive_min_timeout` -> its default, 0",
         lambda s, o: events.nginx_reload(s, o, 20), [(NGINX, KEEPALIVE_MIN, "")], rate=BUSY),
    Case("four GETs slower than the read timeout, two replicas of two workers", "`max_fails=0` -> its default, 1",
         lambda s, o: events.slow_requests(s, o, 4, "io"),
         [("nginx/40-upstream.sh", " max_fails=0", "")], NO_RULES, TWO | rows_of(REQUEST_DEADLINE_SECONDS="60")),
    Case("one worker stands still, fifteen times 1.5 s", "a socket for each worker -> one for all",
         lambda s, o: events.stall(s, o, 15),
         (), (), LAB | rows_of(WORKERS="4", APP_MEMORY="4g"), rows_of(WORKER_LISTENERS="shared"), waits=True),
]  # fmt: skip


def happen(case: Case, reverted: bool) -> Outcome:
    rows = PATIENT_BUDGET | case.rows | (case.reverted if reverted else {})
    patches = [*case.both, *(case.patches if reverted else ())]
    stack = Stack("compose", "reverted" if reverted else "asitis", patches=patches, **rows)
    event = case.other if reverted and case.other else case.happen
    try:
        stack.up()
        with OpenLoop(stack, case.rate, get_paths=case.get_paths) as load:
            load.run_for(2)
            event(stack, load)
        return load.outcome
    finally:
        stack.down()


def idle_connections(reverted: bool) -> Outcome:
    """Volleys of requests around the moment at which an idle connection is closed."""
    rows = rows_of(APP_KEEPALIVE_SECONDS="2", UPSTREAM_KEEPALIVE_SECONDS="60") if reverted else {}
    stack = Stack("compose", "idle", patches=NO_RULES if reverted else (), **rows)
    closing = 2.0 if reverted else float(stack.rows["UPSTREAM_KEEPALIVE_SECONDS"])
    try:
        stack.up()
        return volleys(stack, 40, [closing + step / 400 for step in range(-12, 13)])
    finally:
        stack.down()


def row(event: str, setting: str, as_it_is: Outcome, reverted: Outcome) -> str:
    cells = [event, setting]
    for outcome in (as_it_is, reverted):
        waited = sum(latency > LONG_WAIT_SECONDS for latency in outcome.latencies)
        cells.append(f"{len(outcome.lost):,} of {outcome.total:,}; {waited:,}; {max(outcome.latencies):.1f} s")
    return f"| {' | '.join(cells)} |"


def write(rows: list[str]) -> None:
    versions = subprocess.check_output(["docker", "version", "--format", "{{.Server.Version}}"], text=True).strip()
    table = "\n".join(
        [
            "",
            f"Lost of all requests; those that waited longer than {LONG_WAIT_SECONDS:g} s; the longest wait. "
            f"{events.RATE} to {BUSY:g} requests a second, 40 % POST. Against uvicorn-worker's own worker, one GET in "
            "twenty blocks its worker for 50 ms, as a handler does that calls a database without awaiting it.",
            f"Docker Engine {versions}, Linux {platform.release().partition('-')[0]}.",
            "",
            "| event | setting reverted | as it is | reverted |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )
    put("table", table)


def put(name: str, text: str) -> None:
    """Write the text between the two marks of this name in the page."""
    marked = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
    page = re.sub(marked, lambda marks: f"{marks[1]}{text}\n{marks[2]}", PAGE.read_text(), flags=re.DOTALL)
    PAGE.write_text(page)


def main() -> int:
    runs: list[tuple[str, str, bool, Callable[[bool], Outcome]]] = [
        (
            "connections reused as their idle time ends",
            "the app's keep-alive above nginx's -> 2 s under 60 s",
            False,
            idle_connections,
        )
    ]
    for case in CASES:
        runs.append((case.event, case.setting, case.waits, lambda reverted, case=case: happen(case, reverted)))  # type: ignore[misc]
    asked = sys.argv[1:] or [str(number) for number in range(1, len(runs) + 1)]
    unknown = [number for number in asked if not number.isdigit() or not 1 <= int(number) <= len(runs)]
    if unknown:
        print(f"EVENTS={' '.join(asked)}: {unknown[0]} must be a number from 1 to {len(runs)}", file=sys.stderr)
        return 2
    found: dict[str, str] = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    failed = 0
    for number in map(int, asked):
        event, setting, waits, run = runs[number - 1]
        print(f"{number} of {len(runs)}: {event}", flush=True)
        as_it_is, reverted = run(False), run(True)
        print(f"    as it is: {as_it_is}\n    {setting}: {reverted}", flush=True)
        harm = [
            sum(latency > LONG_WAIT_SECONDS for latency in o.latencies) if waits else len(o.lost)
            for o in (as_it_is, reverted)
        ]
        # A few requests may have been waiting in the very worker that stands still.
        harmless = not as_it_is.doubled and harm[0] <= (10 if waits else 0)
        if not harmless or harm[1] <= harm[0]:
            print("    FAILED: it must be harmless as it is, and do harm when reverted")
            failed = 1
        found[f"{event} | {setting}"] = row(event, setting, as_it_is, reverted)
        FOUND.parent.mkdir(exist_ok=True)
        FOUND.write_text(json.dumps(found, indent=1))
    keys = [f"{event} | {setting}" for event, setting, _, _ in runs]
    missing = [key for key in keys if key not in found]
    if missing:
        print(f"no result yet of {len(missing)} rows, so {PAGE.relative_to(ROOT)} stays as it is: make zero-loss")
    else:
        write([found[key] for key in keys])
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
