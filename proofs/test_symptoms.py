"""What happens at nginx changes the counters that its row of docs/symptoms.md names, and no other that says why.

What happens in the app alone is in test_observer.py.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from proofs import test_observer
from proofs.conftest import started
from proofs.settings.symptoms import SYMPTOMS, Symptom
from proofs.stack import DEADLINE, PATIENT_BUDGET, Stack, until
from proofs.test_faults import INFANCY_SECONDS, no_descriptors
from proofs.test_limits import SMALL, begun, let_in, refusal
from proofs.test_live import scrape, total
from proofs.test_observer import CAUSES, SYMPTOMS_APP
from proofs.test_proxy import raw
from proofs.test_upstream import signal_all, standing_still

pytestmark = pytest.mark.xdist_group("symptoms")
RESPONSES = "nginx_http_responses_total"
PLACES = 2  # of each of the two workers
OF_A_CLIENT = 3
OF_ALL = 6


@pytest.fixture(scope="module")
def ailing() -> Iterator[Stack]:
    """Little room, and a worker that stands still is not killed before nginx has given it up."""
    rows = PATIENT_BUDGET | {
        "APP_MODULE": "app.ailing:app",
        "APP_MAX_REQUESTS_IN_FLIGHT": str(PLACES),
        "CLIENT_MAX_REQUESTS_IN_FLIGHT": str(OF_A_CLIENT),
        "NGINX_MAX_REQUESTS_IN_FLIGHT": str(OF_ALL),
        "CLIENT_BODY_TIMEOUT_SECONDS": "20",
        "CLIENT_HEADER_TIMEOUT_SECONDS": "20",
        "SERVER_NAMES": "localhost 127.0.0.1",
        "WORKER_TIMEOUT_SECONDS": "60",
    }
    yield from started(Stack("native", "ailing", files={"app/ailing.py": SYMPTOMS_APP}, **rows))


def whys(stack: Stack) -> Counter[str]:
    """What says why something happened, summed up as the rows name it: of the app's own answers nothing does."""
    found: Counter[str] = Counter()
    for name, labels, value in scrape(stack):
        if name == RESPONSES and labels["cause"] != "app":
            found[f'{name}{{cause="{labels["cause"]}"}}'] += int(value)
        elif name in CAUSES:
            label = next((f'{{{key}="{labels[key]}"}}' for key in ("reason", "result") if key in labels), "")
            found[name + label] += int(value)
    return found


def client_at(address: str) -> httpx.Client:
    """Without the certificates, which take longer to read than all that is asked here."""
    return httpx.Client(transport=httpx.HTTPTransport(local_address=address, verify=False), timeout=DEADLINE)


def ask(stack: Stack, path: str = "/", address: str = "127.0.0.1", **more: dict[str, str]) -> int:
    """The status of a GET from this address."""
    with client_at(address) as client:
        return client.get(f"{stack.url}{path}", **more).status_code


def endless(stack: Stack, opened: ExitStack, address: str) -> None:
    """A request from this address whose answer has begun, and goes on until the end of the block."""
    client = opened.enter_context(client_at(address))
    answer = opened.enter_context(client.stream("GET", f"{stack.url}/slow"))
    assert answer.status_code == 200
    parts = answer.iter_raw()
    assert next(parts)
    opened.callback(parts.close)  # forgotten, it would end the answer


def in_flight(stack: Stack) -> float:
    return total(stack, "http_requests_in_flight")


def refuses(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) != 0


# --- what happens -------------------------------------------------------------------------------------------------


def all_places_taken(stack: Stack) -> None:
    with ExitStack() as opened:
        for number in range(2 * PLACES):
            endless(stack, opened, f"127.0.0.{number + 2}")
        assert in_flight(stack) == 2 * PLACES
        assert total(stack, "http_requests_in_flight_limit") == PLACES
        assert total(stack, "nginx_connections_writing") >= 2 * PLACES
        assert total(stack, "app_workers", state="ready") == total(stack, "app_workers_wanted") == 2
        assert ask(stack) == 503


def all_of_nginx_taken(stack: Stack) -> None:
    """By bodies that are still to come: the app has nothing to do."""
    with ExitStack() as opened:
        taken = [begun(stack, f"127.0.0.{number % 3 + 2}", opened, SMALL) for number in range(OF_ALL)]
        for connection in taken:
            assert let_in(connection)
        assert in_flight(stack) == 0
        assert refusal(begun(stack, "127.0.0.9", opened, SMALL))[0] == 503
        for connection in taken:
            connection.settimeout(DEADLINE)
            connection.sendall(9999 * b"x")
            assert b" 200 OK" in connection.recv(100)


def too_many_of_one_client(stack: Stack) -> None:
    with ExitStack() as opened:
        for _ in range(OF_A_CLIENT):
            endless(stack, opened, "127.0.0.2")
        assert ask(stack, address="127.0.0.2") == 429
        assert ask(stack, address="127.0.0.3") == 200


def another_host(stack: Stack) -> None:
    assert ask(stack, headers={"Host": "evil.test"}) == 421


def too_large(stack: Stack) -> None:
    with stack.client() as client:
        assert client.post("/", content=b"x" * 70_000).status_code == 413
        assert client.get(f"/{'x' * 20_000}").status_code == 414
        assert client.get("/", headers={"X-Large": "x" * 20_000}).status_code == 400


def a_client_that_leaves(stack: Stack) -> None:
    with socket.create_connection(("127.0.0.1", stack.http_port)) as connection:
        connection.sendall(b"GET /stay HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until("it is with the app", lambda: in_flight(stack) == 1)


def all_workers_frozen(stack: Stack) -> None:
    pids = [worker["pid"] for worker in stack.workers()]
    silent = total(stack, "nginx_upstream_tries_total", result="silent")
    with ExitStack() as opened, standing_still(pids):
        for slot in range(2):
            opened.enter_context(socket.create_connection(("127.0.0.1", stack.app_port + slot)))
        assert total(stack, "app_worker_accept_queue") == 2
        assert ask(stack) == 504
        for slot in range(2):
            assert total(stack, "app_worker_loop_silence_seconds", worker=str(slot)) > 1.5
    until("the count", lambda: total(stack, "nginx_upstream_tries_total", result="silent") == silent + 1)
    until("they move", lambda: total(stack, "app_worker_loop_silence_seconds") < 1)
    assert total(stack, "app_worker_accept_queue_max") >= 2


def a_connection_lost(stack: Stack) -> None:
    """With a POST on it, which is sent once: here because its worker dies."""
    failed = total(stack, "nginx_upstream_tries_total", result="failed")
    with socket.create_connection(("127.0.0.1", stack.http_port), timeout=DEADLINE) as connection:
        connection.sendall(b"POST /block?60 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        until("it is with the app", lambda: in_flight(stack) == 1)
        (slot,) = [has["worker"] for name, has, n in scrape(stack) if name == "http_requests_in_flight" and n]
        stack.kill(next(worker["pid"] for worker in stack.workers() if worker["slot"] == int(slot)))
        assert connection.recv(12) == b"HTTP/1.1 502"
    until("the count", lambda: total(stack, "nginx_upstream_tries_total", result="failed") == failed + 1)


def nobody_to_be_reached(stack: Stack) -> None:
    """As when nginx has the address of a container that is gone: here the workers are, and none can be started."""
    failed = total(stack, "nginx_upstream_tries_total", result="failed")
    pids = [worker["pid"] for worker in stack.workers()]
    with no_descriptors(stack.master):
        signal_all(pids, "KILL")
        until("ports that refuse", lambda: all(refuses(stack.app_port + slot) for slot in range(2)))
        assert ask(stack) == 503
    until("the count", lambda: total(stack, "nginx_upstream_tries_total", result="failed") >= failed + 2)


def half_open(stack: Stack) -> None:
    count = 50
    with ExitStack() as opened:
        for _ in range(count):
            client = opened.enter_context(socket.create_connection(("127.0.0.1", stack.http_port), timeout=DEADLINE))
            client.sendall(b"GET / HTTP/1.1\r\nHost: ")
        until("they are seen", lambda: total(stack, "nginx_connections_reading") >= count)
        assert total(stack, "nginx_connections_active") >= count
    until("none is left", lambda: total(stack, "nginx_connections_reading") < count)


def a_balancers_own_protocol(stack: Stack) -> None:
    line = f"PROXY TCP4 203.0.113.7 127.0.0.1 5000 {stack.http_port}\r\n"
    assert " 400 " in raw(stack, f"{line}GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


CRASHED = 'app_worker_exits_total{reason="crashed"}'
HAPPEN: list[tuple[str, Callable[[Stack], None], tuple[str, ...]]] = [
    ("503 with Retry-After", all_places_taken, ()),
    ("503 with Retry-After for uploads alone", all_of_nginx_taken, ()),
    ("429", too_many_of_one_client, ()),
    ("421", another_host, ()),
    ("413, 414 or 400", too_large, ()),
    ("499", a_client_that_leaves, ()),
    ("504, and no line of the app's", all_workers_frozen, ()),
    # What the fault itself leaves, by which it is brought about here.
    ("502 now and then", a_connection_lost, (CRASHED, 'http_requests_cut_total{reason="killed"}')),
    ("502 after a container was recreated", nobody_to_be_reached, (CRASHED,)),
    ("many half-open connections", half_open, ()),
    ("400 for everything behind a load balancer", a_balancers_own_protocol, ()),
]


def row(beginning: str) -> Symptom:
    """The one that is this, or begins with it."""
    found = [symptom for symptom in SYMPTOMS if symptom.seen == beginning]
    (symptom,) = found or [symptom for symptom in SYMPTOMS if symptom.seen.startswith(beginning)]
    return symptom


@pytest.mark.parametrize(("seen", "happen", "besides"), HAPPEN, ids=[seen for seen, _, _ in HAPPEN])
def test_what_happens_changes_those_counters_that_its_symptom_names(
    ailing: Stack, seen: str, happen: Callable[[Stack], None], besides: tuple[str, ...]
) -> None:
    named = {name for name in row(seen).metrics if name.startswith((RESPONSES, *CAUSES))} | set(besides)
    until("two workers", lambda: [worker["state"] for worker in ailing.workers()] == ["ready", "ready"])
    time.sleep(INFANCY_SECONDS)  # a worker that dies sooner is replaced later
    before = whys(ailing)
    happen(ailing)
    until("nothing in flight", lambda: in_flight(ailing) == 0)

    def changed() -> set[str]:
        after = whys(ailing)
        return {name for name in after if after[name] != before[name]}

    until(f"{sorted(named)} grow", lambda: named <= changed())
    assert changed() == named


# Seen in a proof of its own: which, or why in none.
ELSEWHERE = {
    "502 for everybody for ten seconds": "it takes another setting; tries are counted as in the 504 above",
    "`def` endpoints": "proofs/test_observer.py::test_a_full_thread_pool_is_seen",
    "308": "proofs/test_tls.py::test_a_redirect_is_counted_as_nginxs_own",
    "acme: no new certificate": "proofs/test_prometheus.py::test_a_certificate_that_ends_soon_is_an_alert",
    "a new certificate is there": "proofs/test_tls.py::test_the_end_of_the_certificate_that_clients_get_is_a_metric",
}


def test_each_row_that_names_metrics_is_made_to_happen() -> None:
    made = [*(seen for seen, _, _ in HAPPEN), *(seen for seen, _, _ in test_observer.HAPPEN), *ELSEWHERE]
    rows = {symptom.seen for symptom in SYMPTOMS if symptom.metrics}
    assert rows - {row(seen).seen for seen in made} == set()
