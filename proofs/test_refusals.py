"""Bad input: one clear line, an exit status, and nothing half-started left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dotenv import dotenv_values

from app.server.budget import RULES
from proofs import certificates
from proofs.conftest import lacks, require_engine
from proofs.stack import ROOT, Stack
from stack import debian
from stack import native as native_way

# For each rule of the budget: rows that break it and no other.
BROKEN = {
    "deadline-before-proxy": {"REQUEST_DEADLINE_SECONDS": "4", "UVICORN_GRACEFUL_SECONDS": "5"},
    "ping-before-stall": {"EVENT_STREAM_PING_SECONDS": "2"},
    "stall-before-proxy": {"ANSWER_STALL_SECONDS": "4"},
    "proxy-closes-first": {"APP_KEEPALIVE_SECONDS": "1"},
    "drain-outlasts-idle": {"UPSTREAM_KEEPALIVE_SECONDS": "2"},
    "drain-before-uvicorn": {"DRAIN_SECONDS": "4"},
    "uvicorn-before-gunicorn": {"UVICORN_GRACEFUL_SECONDS": "6"},
    "deadline-within-stop": {"UVICORN_GRACEFUL_SECONDS": "3", "REQUEST_DEADLINE_SECONDS": "4",
                             "PROXY_READ_TIMEOUT_SECONDS": "5"},
    "stop-within-replacement": {"REPLACED_WORKER_SECONDS": "3"},
    "gunicorn-before-engine": {"GUNICORN_GRACEFUL_SECONDS": "10"},
    "timeout-above-block": {"LONGEST_BLOCK_SECONDS": "6"},
    "timeout-above-deadline": {"WORKER_TIMEOUT_SECONDS": "4", "REQUEST_DEADLINE_SECONDS": "4",
                               "PROXY_READ_TIMEOUT_SECONDS": "5", "UVICORN_GRACEFUL_SECONDS": "5"},
    "connect-is-short": {"PROXY_CONNECT_TIMEOUT_MS": "1001", "PROXY_NEXT_UPSTREAM_TIMEOUT_MS": "3000",
                         "REQUEST_DEADLINE_SECONDS": "2"},
    "retry-is-short": {"PROXY_NEXT_UPSTREAM_TIMEOUT_MS": "1001"},
    "connect-leaves-a-retry": {"PROXY_CONNECT_TIMEOUT_MS": "500"},
    "tries-reach-another-replica": {"PROXY_NEXT_UPSTREAM_TRIES": "2"},
    "proxy-stop-outlasts-answers": {"NGINX_SHUTDOWN_SECONDS": "2"},
    "proxy-before-engine": {"NGINX_SHUTDOWN_SECONDS": "10"},
    "ping-before-proxy": {"WEBSOCKET_PING_SECONDS": "4"},
}  # fmt: skip


@pytest.fixture
def native() -> Iterator[Stack]:
    """A native stack that no test gets to run."""
    stack = Stack("native", "refused", LOCUST="on")
    yield stack
    stack.down()


def nothing_runs(stack: Stack) -> bool:
    ports = (stack.http_port, stack.locust_port, stack.app_port)
    return not any(socket.socket().connect_ex(("127.0.0.1", port)) == 0 for port in ports)


def assert_refused(stack: Stack, done: subprocess.CompletedProcess[str], *said: str) -> None:
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    for words in said:
        assert words in output, output
    assert "Traceback" not in output, output
    assert nothing_runs(stack)


def test_every_rule_of_the_budget_has_a_case_here() -> None:
    assert {rule.name for rule in RULES} == set(BROKEN)


@pytest.mark.parametrize("rule", BROKEN)
def test_the_app_refuses_to_start_with_a_broken_budget(native: Stack, rule: str) -> None:
    """As the container would: Gunicorn itself, not a check before it."""
    environ = native.environ | row_table(native) | BROKEN[rule]
    done = subprocess.run(
        [Path(sys.executable).parent / "gunicorn", "--config", "app/server/gunicorn.conf.py"],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert_refused(
        native, done, f"rule {rule}:", *(f"{name}={value}" for name, value in list(BROKEN[rule].items())[:1])
    )


def row_table(stack: Stack) -> dict[str, str]:
    rows = {name: value or "" for name, value in dotenv_values(ROOT / ".env").items()}
    return rows | stack.rows | {"APP_HOST": "127.0.0.1", "TRUSTED_PROXIES": "127.0.0.1", "DATA_DIR": "/tmp"}


def test_make_up_names_a_broken_rule_before_it_starts_anything(native: Stack) -> None:
    done = native.make("up", DRAIN_SECONDS="1")
    assert_refused(native, done, "rule drain-outlasts-idle", "UPSTREAM_KEEPALIVE_SECONDS=1", "DRAIN_SECONDS=1", "502")


def test_make_up_names_a_broken_rule_of_space_before_it_starts_anything(native: Stack) -> None:
    done = native.make("up", NGINX_MEMORY="64m", APP_PIDS="100")
    assert_refused(native, done, "rule requests-fit-nginx-memory", "NGINX_MEMORY=64m", "rule threads-fit-app-pids")
    assert len(done.stderr.splitlines()) == 2


def test_make_up_names_pools_that_the_database_has_no_connections_for(native: Stack) -> None:
    done = native.make("up", DATABASE_POOL_SIZE="6", DATABASE_MAX_CONNECTIONS="40")
    assert_refused(native, done, "rule pools-fit-database", "DATABASE_POOL_SIZE=6", "DATABASE_MAX_CONNECTIONS=40")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("row", "value", "must_be"),
    [("WORKERS", "0", "greater than or equal to 1"), ("WORKERS", "two", "valid integer"),
     ("HTTP_PORT", "70000", "65535"), ("IPV6", "maybe", "'true' or 'false'"),
     ("FORWARDED_HEADERS_FROM", "balancer.test", "2001:db8::/32"), ("PROXY_PROTOCOL_FROM", "192.0.2.0/33", "192.0.2.7"),
     ("FORWARDED_HEADERS_FROM", "0.0.0.0/0", "not everybody's"),
     ("PROXY_PROTOCOL_FROM", "192.0.2.1,192.0.2.2", "a blank between"),
     ("APP_MEMORY", "lots", "512m"), ("LOG_LEVEL", "loud", "'debug'"), ("SLO_P95_MS", "fast", "valid integer"),
     ("SERVER_NAMES", "a; evil", "blanks between"), ("APP_MODULE", "app.demo.main", "module:attribute")],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_it_must_be(native: Stack, row: str, value: str, must_be: str) -> None:
    done = native.make("up", **{row: value})
    assert_refused(native, done, f"{row}={value}", must_be, ".env")
    assert len(done.stderr.splitlines()) == 1


def test_sticky_sessions_need_a_port_for_each_worker(native: Stack) -> None:
    done = native.make("up", STICKY_SESSIONS="address", WORKER_LISTENERS="shared")
    assert_refused(
        native, done, "STICKY_SESSIONS=address with WORKER_LISTENERS=shared", "set WORKER_LISTENERS=per-worker"
    )


def test_a_load_balancer_is_believed_in_one_way_only(native: Stack) -> None:
    done = native.make("up", FORWARDED_HEADERS_FROM="192.0.2.1", PROXY_PROTOCOL_FROM="192.0.2.2")
    assert_refused(native, done, "FORWARDED_HEADERS_FROM=192.0.2.1 with PROXY_PROTOCOL_FROM=192.0.2.2", "leave the row")
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_way_is_refused(native: Stack) -> None:
    assert_refused(native, native.make("up", WAY="podman"), "WAY=podman", "compose, native or swarm")


@pytest.mark.parametrize(
    ("module", "said"),
    [("app.nowhere:app", "No module named"), ("app.server.loader:load", "the three arguments of an ASGI application"),
     ("app.server.loader:load()", "cannot be called without arguments"), ("app.demo.main:nothing", "nothing"),
     ("app.demo.main:KEY", "is str, not an ASGI application"),
     ("wsgiref.simple_server:demo_app", "WSGI"),
     ("app.demo.main:ledger", "write app.demo.main:ledger()"), ("app.demo.main:ledger()", "is Ledger"),
     ("app.demo.main:FastAPI", "the class FastAPI"), ("asyncio:sleep()", "without arguments")],
)  # fmt: skip
def test_an_app_that_cannot_be_loaded_is_named_and_nothing_is_left(native: Stack, module: str, said: str) -> None:
    done = native.make("up", APP_MODULE=module)
    assert_refused(native, done)
    (line,) = done.stderr.splitlines()
    assert f"APP_MODULE={module}" in line
    assert said in line
    assert "nothing was left running" in line


def test_an_app_that_fails_to_import_shows_where(native: Stack, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import os\nraise RuntimeError('no database')\n")
    done = native.make("up", APP_MODULE="broken:app", PYTHONPATH=str(tmp_path))
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "no database" in output
    assert "broken.py" in output
    assert nothing_runs(native)


@pytest.mark.parametrize("row", ["HTTP_PORT", "LOCUST_UI_PORT", "LIVE_PORT", "PROMETHEUS_PORT", "APP_PORT"])
def test_a_port_in_use_is_named(native: Stack, row: str) -> None:
    metrics = "off"
    if row == "PROMETHEUS_PORT":
        metrics = "on"
        if not debian.found("prometheus"):
            lacks("prometheus is not installed (apt-get install prometheus)", "REQUIRE_PROMETHEUS")
    with socket.create_server(("127.0.0.1", int(native.rows[row]))):
        done = native.make("up", METRICS=metrics)
        assert done.returncode != 0
        assert f"{row}={native.rows[row]}: the port is in use" in done.stderr
    assert nothing_runs(native)


def test_metrics_without_prometheus_say_what_to_install(native: Stack, tmp_path: Path) -> None:
    """Where no program is found but those that this shell calls by their paths, and nginx."""
    (tmp_path / "nginx").symlink_to(debian.found("nginx") or native_way.nginx())
    done = native.make("up", METRICS="on", PATH=str(tmp_path))
    assert_refused(native, done, "METRICS=on: prometheus is not installed; sudo apt-get install prometheus")
    assert len(done.stderr.splitlines()) == 1


def test_the_observers_port_in_use_is_named(native: Stack) -> None:
    with socket.create_server(("127.0.0.1", native.app_port - 1)):
        done = native.make("up")
    assert_refused(
        native, done, f"APP_PORT-1 (the observer)={native.app_port - 1}: the port is in use", "make up APP_PORT="
    )


def test_port_80_without_the_right_to_it_says_what_to_type(native: Stack) -> None:
    command = [sys.executable, "-m", "stack", "up"]
    if os.getuid() == 0:
        # Without the right to low ports; in a network of its own, because the engine may have lifted the limit here.
        command = ["unshare", "--net", "setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-all", *command]
    done = subprocess.run(
        command, cwd=ROOT, env=native.environ | {"HTTP_PORT": "80"}, capture_output=True, text=True, timeout=60
    )
    assert_refused(native, done, "HTTP_PORT=80", "make up HTTP_PORT=8080")


def test_a_load_test_of_a_stack_that_is_down_says_so(native: Stack, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=native.environ | row_table(native) | {"LOCUST_HOST": native.url},
    )  # fmt: skip
    assert (done.returncode, "make up" in done.stderr) == (2, True), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_shape_of_load_is_refused(native: Stack) -> None:
    done = native.make("loadtest", LOADTEST_SHAPE="square")
    assert_refused(native, done, "LOADTEST_SHAPE=square", "'closed' or 'rate'")


def test_a_container_with_a_broken_budget_refuses_to_start() -> None:
    require_engine()
    stack = Stack("compose", "refused", DRAIN_SECONDS="1", WORKER_MEMORY_MB="1000")
    try:
        stack.compose("build", "--quiet", "app")
        done = subprocess.run(
            ["docker", "compose", "run", "--rm", "--no-deps", "--no-TTY", "app"],
            cwd=ROOT, env=stack.environ, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode != 0, done.stdout
        assert "rule drain-outlasts-idle" in done.stderr
        assert "rule workers-fit-app-memory" in done.stderr
    finally:
        stack.down()


def test_make_up_in_compose_leaves_nothing_of_an_app_that_cannot_start() -> None:
    require_engine()
    stack = Stack("compose", "broken", APP_MODULE="app.nowhere:app")
    try:
        done = stack.make("up")
        assert_refused(stack, done)
        last = done.stderr.splitlines()[-1]
        assert "APP_MODULE=app.nowhere:app cannot be loaded" in last
        assert "nothing was left running" in last
        assert stack.compose("ps", "--all", "--quiet") == ""
    finally:
        stack.down()


def test_a_port_in_use_is_named_in_compose_too() -> None:
    require_engine()
    stack = Stack("compose", "port")
    try:
        with socket.create_server(("0.0.0.0", stack.http_port)):
            done = stack.make("up")
        assert (done.returncode, f"HTTP_PORT={stack.http_port}: the port is in use" in done.stderr) == (1, True)
        assert stack.compose("ps", "--all", "--quiet") == ""
    finally:
        stack.down()


def in_a_folder(tmp_path: Path, pem: bytes) -> str:
    """TLS_FOLDER with this site.pem."""
    tmp_path.chmod(0o755)
    certificates.put(tmp_path, pem)
    return str(tmp_path)


def no_good() -> dict[str, tuple[bytes, str]]:
    """What may stand in site.pem, and what is said of it."""
    key, other = certificates.make_key(), certificates.make_key()
    return {
        "empty": (b"", "it is empty"),
        "no PEM": (b"no certificate\n", "it holds no certificate"),
        "no key": (certificates.certificate(key), "it holds no private key"),
        "no certificate": (certificates.private(key), "it holds no certificate"),
        "another key": (
            certificates.private(other) + certificates.certificate(key),
            "the private key is not that of its first certificate",
        ),
        "password": (certificates.private(key, b"secret") + certificates.certificate(key), "has a password"),
        "expired": (certificates.site(begin=-30, end=-1), "it expired on 20"),
        "not yet valid": (certificates.site(begin=2), "it is valid from 20"),
    }


NO_GOOD = no_good()


@pytest.mark.parametrize("what", NO_GOOD)
def test_a_certificate_that_cannot_be_used_is_refused_in_one_line(native: Stack, tmp_path: Path, what: str) -> None:
    pem, said = NO_GOOD[what]
    done = native.make("up", TLS="files", TLS_FOLDER=in_a_folder(tmp_path, pem))
    assert_refused(native, done, f"TLS=files: {tmp_path}/site.pem: ", said, "docs/https.md")
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "site.pem").read_bytes() == pem, "somebody's file was written over"


def test_a_check_looks_at_the_certificate(native: Stack, tmp_path: Path) -> None:
    folder = in_a_folder(tmp_path, NO_GOOD["expired"][0])
    done = native.make("check", TLS="files", TLS_FOLDER=folder)
    assert_refused(native, done, "FAILED  the certificate", "it expired on 20")
    certificates.put(tmp_path, certificates.site())
    assert "ok      the certificate: localhost, until 20" in native.make("check", TLS="files", TLS_FOLDER=folder).stdout


ACME = {"TLS": "acme", "ACME_NAMES": "a.test", "ACME_DIRECTORY": "https://ca.test/directory"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [({"HSTS_SECONDS": "600"}, ["HSTS_SECONDS=600 with TLS=off", "set HSTS_SECONDS=0, or TLS=files"]),
     ({"HTTP3": "on"}, ["HTTP3=on with TLS=off", "set HTTP3=off, or TLS=files"]),
     ({"TLS": "files", "HTTP3": "on", "PROXY_PROTOCOL_FROM": "192.0.2.1", "NGINX_MEMORY": "9g"},
      ["HTTP3=on with PROXY_PROTOCOL_FROM=192.0.2.1", "over UDP", "set HTTP3=off"]),
     ({"TLS": "files", "HTTPS_PORT": "HTTP_PORT"}, ["HTTPS_PORT=", "is HTTP_PORT too"]),
     ({"TLS": "on"}, ["TLS=on", "'off', 'files' or 'acme'"]),
     (ACME | {"ACME_NAMES": ""}, ["ACME_NAMES is empty with TLS=acme", "set it to the names"]),
     (ACME | {"ACME_NAMES": "*.a.test"}, ["ACME_NAMES=*.a.test", "no certificate for a wildcard"]),
     (ACME | {"SERVER_NAMES": "*.b.test"}, ["ACME_NAMES has a.test, which SERVER_NAMES=*.b.test has not"]),
     (ACME | {"ACME_DIRECTORY": "http://ca.test"}, ["ACME_DIRECTORY=http://ca.test", "must be the https:// address"]),
     (ACME | {"ACME_EMAIL": "nobody"}, ["ACME_EMAIL=nobody", "must be an address for mail, or empty"]),
     (ACME | {"ACME_DIRECTORY": "https://acme-v02.api.letsencrypt.org/directory"}, ["HTTP_PORT=", "asks on port 80"])],
    ids=["hsts", "http3-alone", "http3-behind", "port", "value", "no-name", "wildcard", "foreign",
         "directory", "mail", "http-port"],
)  # fmt: skip
def test_rows_of_https_that_do_not_go_together_are_refused(
    native: Stack, rows: dict[str, str], said: list[str]
) -> None:
    done = native.make("up", **{row: native.rows.get(value, value) for row, value in rows.items()})
    assert_refused(native, done, *said)
    assert len(done.stderr.splitlines()) == 1


def test_make_up_in_compose_says_who_must_be_able_to_read_the_key(tmp_path: Path) -> None:
    require_engine()
    stack = Stack("compose", "unreadable", TLS="files", TLS_FOLDER=in_a_folder(tmp_path, certificates.site()))
    (tmp_path / "site.pem").chmod(0o600)
    try:
        done = stack.make("up")
        assert_refused(stack, done, f"sudo chgrp 101 {tmp_path}/site.pem && sudo chmod 640 {tmp_path}/site.pem")
        assert stack.compose("ps", "--all", "--quiet") == ""
    finally:
        stack.down()


@pytest.mark.parametrize(
    ("what", "said"),
    [("missing", "it is not there"), ("unreadable", "nginx (user 101, group 101) may not read it"),
     ("empty", "it is empty"), ("another key", "key values mismatch"), ("no PEM", "no start line")],
)  # fmt: skip
def test_nginx_in_its_container_says_what_is_wrong_with_the_certificate(tmp_path: Path, what: str, said: str) -> None:
    """After `docker compose up`, where nobody has looked before."""
    require_engine()
    folder = in_a_folder(tmp_path, NO_GOOD[what][0] if what in NO_GOOD else certificates.site())
    if what == "missing":
        (tmp_path / "site.pem").unlink()
    elif what == "unreadable":
        (tmp_path / "site.pem").chmod(0o600)
    stack = Stack("compose", "pem", TLS="files", TLS_FOLDER=folder)
    try:
        done = subprocess.run(
            ["docker", "compose", "run", "--rm", "--no-deps", "--no-TTY", "nginx"],
            cwd=ROOT, env=stack.environ, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        lines = [line for line in done.stderr.splitlines() if "TLS=files" in line]
        assert done.returncode != 0, done.stdout
        assert len(lines) == 1, done.stderr
        assert said in lines[0]
    finally:
        stack.down()
