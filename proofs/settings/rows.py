"""The settings of the rows of .env that are no value of a directive or key elsewhere."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

SETTINGS_FILE = "loadtest/settings.py"
RUN = "proofs/test_loadtest_rows.py::"
MISSING = "none: a run without it is refused"


def load(row: str, does: str, before: str, after: str, change: str, proof: str) -> Setting:
    """A row of LOADTEST_*, read in one place."""
    return Setting([f".env: {row}"], does, MISSING, change, [(SETTINGS_FILE, before, after)], [f"{RUN}{proof}"])


def objective(row: str, does: str, before: str, after: str) -> Setting:
    """A row of SLO_*, read in one place."""
    return Setting(
        [f".env: {row}"],
        does,
        MISSING,
        f"{after.rpartition('=')[2]}, whatever the row says",
        [(SETTINGS_FILE, before, after)],
        [f"tests/loadtest/test_objectives.py::test_the_row_of_an_objective_decides_the_exit_status[{row}]"],
    )


SETTINGS: list[Setting | Unproven] = [
    Setting(
        [".env: REGISTRY"],
        "WAY=swarm: where the app's image is pushed, and all nodes pull it.",
        "none: a deploy to a swarm is refused",
        "the image is named after the project alone",
        [("stack/swarm.py", 'return f"{settings.registry}/{project()}', 'return f"{project()}')],
        ["tests/stack/test_stackfile.py::test_the_image_is_in_the_registry_that_the_row_names"],
    ),
    Setting(
        [".env: LOCUST_MASTER_PORT"],
        "Native way only: where Locust's workers find their master.",
        "5557",
        "the default",
        [
            ("stack/native.py", "--master-bind-port {settings.locust_master_port}", "--master-bind-port 5557"),
            ("stack/native.py", "--master-port {settings.locust_master_port}", "--master-port 5557"),
        ],
        ["proofs/test_loadtest.py::test_workers_of_the_native_way_find_their_master_on_its_port"],
    ),
    load(
        "LOADTEST_MODULE",
        "The module whose class Visitor has the requests of a load test.",
        "module=module,",
        'module="loadtest.demo",',
        "loadtest.demo, whatever the row says",
        "test_the_requests_are_those_of_the_module_that_the_row_names",
    ),
    load(
        "LOADTEST_SHAPE",
        "closed: each user waits for its answer; rate: requests arrive whether the stack keeps up or not.",
        "shape=shape,",
        'shape="closed",',
        "closed, whatever the row says",
        "test_at_a_constant_rate_requests_do_not_wait_for_answers_to_others",
    ),
    load(
        "LOADTEST_USERS",
        "The users of a closed loop: at most N requests are in flight.",
        'users=whole("LOADTEST_USERS", 1)',
        "users=50",
        "50, whatever the row says",
        "test_a_closed_loop_has_as_many_requests_at_a_time_as_users",
    ),
    load(
        "LOADTEST_RATE",
        "The requests that arrive in a second, in the shape rate.",
        'rate=(rate := whole("LOADTEST_RATE", 1))',
        "rate=(rate := 200)",
        "200, whatever the row says",
        "test_requests_arrive_at_the_rate_that_the_row_says",
    ),
    load(
        "LOADTEST_SECONDS",
        "The seconds that are measured.",
        'seconds=whole("LOADTEST_SECONDS", 1)',
        "seconds=10",
        "10, whatever the row says",
        "test_as_many_seconds_are_measured_as_the_row_says",
    ),
    load(
        "LOADTEST_WARMUP_SECONDS",
        "Load before the measured seconds that is not counted: connections are opened, caches filled.",
        'warmup_seconds=whole("LOADTEST_WARMUP_SECONDS", 0)',
        "warmup_seconds=0",
        "0, whatever the row says",
        "test_the_warmup_is_not_counted",
    ),
    load(
        "LOADTEST_PROCESSES",
        "The Locust processes that make the load: one of them cannot use more than one CPU.",
        'processes=whole("LOADTEST_PROCESSES", 1, 64)',
        "processes=1",
        "1, whatever the row says",
        "test_as_many_processes_make_the_load_as_the_row_says",
    ),
    objective(
        "SLO_P50_MS",
        "Half of the requests are answered within this.",
        'p50_ms=number("SLO_P50_MS", 0)',
        "p50_ms=100",
    ),
    objective(
        "SLO_P95_MS",
        "95 of 100 requests are answered within this.",
        'p95_ms=number("SLO_P95_MS", 0)',
        "p95_ms=300",
    ),
    objective(
        "SLO_P99_MS",
        "99 of 100 requests are answered within this.",
        'p99_ms=number("SLO_P99_MS", 0)',
        "p99_ms=1000",
    ),
    objective(
        "SLO_ERROR_SHARE",
        "The share of requests that may fail.",
        'error_share=number("SLO_ERROR_SHARE", 0, 1)',
        "error_share=0.1",
    ),
    objective(
        "SLO_MIN_RPS",
        "The right answers in a second that there must be at least.",
        'min_rps=number("SLO_MIN_RPS", 0)',
        "min_rps=1",
    ),
]
