"""The commands of the pages run in a fresh copy, in the order of their page, and do what it says."""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import CompletedProcess

import pytest

from proofs import certificates
from proofs.conftest import lacks
from proofs.stack import ROOT, SMALL_BUDGET, Stack, until
from proofs.test_loadtest_run import held_back

OWN = "proofs/test_own_files.py::test_the_readmes_five_commands_bring_a_starlette_app_from_a_fresh_clone_to_an_answer"
SHOP = "proofs/test_shop.py::test_the_readme_brings_the_shop_into_the_stack"
CAPACITY = "proofs/test_capacity.py::test_an_app_of_your_own_is_measured"
# Blocks that another proof runs, as they are or with other numbers.
ELSEWHERE = {
    ("README.md", 0): "proofs/test_containers.py::test_the_published_ports_answer",
    ("README.md", 1): OWN,
    ("CONTRIBUTING.md", 0): "proofs/test_commands.py::test_a_check_leaves_nothing_behind",
    ("docs/capacity.md", 0): "proofs/test_capacity.py::"
    "test_the_rate_of_an_app_whose_capacity_is_known_is_found_and_its_rows_are_written",
    ("docs/capacity.md", 1): CAPACITY,
    ("docs/alerts.md", 0): "proofs/test_prometheus.py::"
    "test_every_query_of_the_dashboard_gives_data_and_no_alert_comes_without_a_fault",
    **dict.fromkeys(
        [("docs/cluster.md", number) for number in range(3)],
        "proofs/test_swarm.py::test_each_node_answers_with_its_own_app_and_the_clients_address",
    ),
    ("docs/https.md", 2): "proofs/test_acme.py::test_a_fresh_machine_has_its_certificate_without_a_restart",
    ("docs/logs-and-metrics.md", 0): "proofs/test_commands.py::test_a_request_is_traced_through_all_tiers",
    ("docs/logs-and-metrics.md", 1): "proofs/test_observer.py::"
    "test_while_every_worker_is_blocked_the_observer_names_the_silent_ones",
    ("examples/shop/README.md", 0): SHOP,
}
# `make test` is what runs this; and docs/learn.md has proofs/test_learn.py.
ITSELF = {"README.md": 2}
WALKED = ("docs/hosts.md", "docs/https.md", "docs/loadtest.md", "docs/proxy-headers.md")
# A load of seconds, with objectives that a busy machine meets.
SHORTER = {"LOADTEST_SECONDS=60": "LOADTEST_SECONDS=2", "SLO_P99_MS=500": "SLO_P99_MS=30000"}
EASY = {"SLO_P50_MS": "10000", "SLO_P95_MS": "20000", "SLO_P99_MS": "30000", "SLO_MIN_RPS": "1"}


def blocks(page: str) -> list[list[str]]:
    """The commands of each of its blocks."""
    found = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return [block.replace("\\\n", "").splitlines() for block in found]


def pages() -> list[str]:
    """Those with commands of a shell, in the order in which a reader meets them."""
    folders = [ROOT.glob("*.md"), (ROOT / "docs").glob("*.md"), (ROOT / "examples").rglob("*.md")]
    found = [str(page.relative_to(ROOT)) for folder in folders for page in sorted(folder)]
    return [page for page in found if blocks(page)]


def here(page: str) -> list[str]:
    """The commands of a page that are run below."""
    listed = ELSEWHERE | dict.fromkeys(ITSELF.items(), "")
    return [line for number, block in enumerate(blocks(page)) if (page, number) not in listed for line in block]


def executed(stack: Stack, command: str) -> CompletedProcess[str]:
    """A command of a page, run; the ports are the test's own."""
    for before, after in SHORTER.items():
        command = command.replace(before, after)
    for scheme, port in (("http", stack.http_port), ("https", stack.https_port)):
        command = command.replace(f"{scheme}://localhost/", f"{scheme}://localhost:{port}/")
    return stack.run_in_a_copy(command)


def run(stack: Stack, command: str) -> str:
    """What a command of a page says that does what it should."""
    done = executed(stack, command)
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{said}"
    if wanted := re.search(r" # (\d{3})$", command):
        assert re.match(rf"HTTP/1.1 {wanted[1]} ", done.stdout), f"{command}:\n{said}"
    return said


@contextmanager
def reader(**rows: str) -> Iterator[Stack]:
    """Somebody who has just cloned it: with the rows of .env, but for the ports and `rows`."""
    stack = Stack("native", "page", patches=(), files=None, **rows)
    for row in SMALL_BUDGET.keys() - rows.keys():
        del stack.environ[row]
    try:
        stack.run_in_a_copy("git status")
        yield stack
    finally:
        stack.down()


def test_every_block_of_commands_is_run_by_a_proof() -> None:
    listed = {(page, number) for page in pages() if page != "docs/learn.md" for number in range(len(blocks(page)))}
    known = set(ELSEWHERE) | set(ITSELF.items())
    assert [each for each in listed - known if each[0] not in WALKED] == [], "no proof runs this"
    assert known - listed == set(), "there is no such block"
    for proof in ELSEWHERE.values():
        file, _, name = proof.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), f"there is no {proof}"


@pytest.mark.parametrize("page", ["docs/hosts.md", "docs/proxy-headers.md"])
def test_a_pages_commands_do_what_it_says(page: str) -> None:
    with reader() as stack:
        for command in here(page):
            run(stack, command)
        with stack.client() as client:
            assert client.get("/nginx-health").status_code == 200


def test_the_commands_for_a_load_test_leave_a_report_each() -> None:
    with reader(LOADTEST_SECONDS="2", **EASY) as stack:
        commands = here("docs/loadtest.md")
        for number, command in enumerate(commands, start=1):
            done = executed(stack, command)
            assert "p99" in done.stdout, done.stdout + done.stderr
            reports = sorted((stack.root / "reports").glob("*/summary.json"))
            assert len(reports) == number
            late = held_back(json.loads(reports[-1].read_text()), done.stdout)
            assert (done.returncode == 0) == (not late), done.stdout + done.stderr
            assert (reports[-1].parent / "report.html").exists()


def test_the_commands_for_a_certificate_bring_it_and_the_next_one() -> None:
    if os.geteuid() != 0:
        lacks("a file is given to nginx's group by root alone", "REQUIRE_DOCKER")
    made, own, new = here("docs/https.md")[:2], here("docs/https.md")[2:5], here("docs/https.md")[5:]
    with reader(TLS="files") as stack:
        (stack.root / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
        (stack.root / "sudo").chmod(0o755)
        stack.environ["PATH"] = f"{stack.root}:{stack.environ['PATH']}"
        for command in made:
            said = run(stack, command)
        assert '"replica"' in said, said
        for commands in (own, new):
            key = certificates.make_key()
            (stack.root / "privkey.pem").write_bytes(certificates.private(key))
            (stack.root / "fullchain.pem").write_bytes(pem := certificates.certificate(key))
            for command in commands:
                said = run(stack, command)
            shown = ("127.0.0.1", stack.https_port)
            until("the certificate", lambda: ssl.get_server_certificate(shown) == pem.decode())  # noqa: B023
        assert "the certificate: localhost, until " in said, said
