"""The space budget: that the committed table holds, and that each rule says in one line what breaks it."""

from __future__ import annotations

import pytest
from dotenv import dotenv_values

from app.server import space
from app.server.settings import SettingsError, read
from stack.settings import GIVEN, ROOT, StackSettings

COMMITTED = {name: value or "" for name, value in dotenv_values(ROOT / ".env").items()}
# What the cases below count with, whatever you have made of .env.
ROWS = {
    "WORKERS": "2",
    "WORKER_MEMORY_MB": "160",
    "APP_REPLICAS": "1",
    "UPSTREAM_KEEPALIVE_CONNECTIONS": "128",
    "CLIENT_MAX_BODY_BYTES": "1048576",
    "CLIENT_MAX_HEADER_BYTES": "8192",
    "CLIENT_BODY_BUFFER_BYTES": "100000",
    "CLIENT_MAX_REQUESTS_IN_FLIGHT": "100",
    "CLIENT_MAX_UPLOADS_IN_FLIGHT": "16",
    "NGINX_MAX_REQUESTS_IN_FLIGHT": "900",
    "NGINX_MAX_UPLOADS_IN_FLIGHT": "144",
    "APP_MAX_REQUESTS_IN_FLIGHT": "256",
    "NGINX_WORKERS": "2",
    "NGINX_WORKER_CONNECTIONS": "2048",
    "PROXY_BUFFER_BYTES": "32768",
    "CLIENT_SOCKET_BUFFER_BYTES": "65536",
    "APP_SOCKET_BUFFER_BYTES": "131072",
    "NGINX_MEMORY": "1500m",
    "CACHE_MB": "0",
    "TLS": "off",
    "NGINX_TMP": "152m",
    "NGINX_PIDS": "64",
    "APP_MEMORY": "832m",
    "APP_TMP": "144m",
    "APP_PIDS": "768",
    "DATABASE_POOL_SIZE": "0",
    "DATABASE_MAX_CONNECTIONS": "0",
}
# For each rule rows that break it and no other, and what its line must say of them.
BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "uploads-fit-nginx-files": ({"NGINX_TMP": "144m"}, "NGINX_TMP=144m"),
    "requests-fit-nginx-memory": ({"NGINX_MEMORY": "256m"}, "NGINX_MEMORY=256m"),
    "requests-fit-nginx-connections": ({"NGINX_WORKER_CONNECTIONS": "1024"}, "NGINX_WORKER_CONNECTIONS=1024"),
    "workers-fit-nginx-pids": ({"NGINX_PIDS": "19"}, "2 x NGINX_WORKERS=2 (before and after a reload) + 16"),
    "one-client-leaves-requests": ({"CLIENT_MAX_REQUESTS_IN_FLIGHT": "900"}, "CLIENT_MAX_REQUESTS_IN_FLIGHT=900"),
    "one-client-leaves-uploads": ({"CLIENT_MAX_UPLOADS_IN_FLIGHT": "144"}, "CLIENT_MAX_UPLOADS_IN_FLIGHT=144"),
    "uploads-fit-app-files": ({"APP_TMP": "143m"}, "144m and must be at most APP_TMP=143m"),
    "workers-fit-app-memory": ({"WORKER_MEMORY_MB": "300"}, "(WORKERS + 1)=3 x WORKER_MEMORY_MB=300 x 1m"),
    "threads-fit-app-pids": ({"APP_PIDS": "256"}, "672 and must be at most APP_PIDS=256"),
    "pools-fit-database": (
        {"DATABASE_POOL_SIZE": "6", "DATABASE_MAX_CONNECTIONS": "40"},
        "DATABASE_POOL_SIZE=6 x (WORKERS + 1)=3 x (APP_REPLICAS + 1)=2",
    ),
}


def violations(**rows: str) -> list[str]:
    return space.violations(read(StackSettings, GIVEN | COMMITTED | ROWS | rows))


def test_the_committed_table_holds() -> None:
    assert space.violations(read(StackSettings, GIVEN | COMMITTED)) == []


def test_every_rule_has_a_case_here() -> None:
    assert [rule.name for rule in space.RULES] == list(BROKEN)


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_one_line_with_its_arithmetic(rule: str) -> None:
    rows, said = BROKEN[rule]
    (line,) = violations(**rows)
    assert line.startswith(f"space budget, rule {rule}: ")
    assert said in line
    assert line.endswith("(docs/limits.md)")
    assert "\n" not in line


def test_without_a_bound_on_places_the_app_may_get_all_requests() -> None:
    lines = violations(APP_MAX_REQUESTS_IN_FLIGHT="0")
    assert any("rule threads-fit-app-pids" in line and "=900 (a thread for each request" in line for line in lines)


def test_connections_with_tls_need_more_memory_and_those_without_need_no_more() -> None:
    assert violations(TLS="off", NGINX_MEMORY="1250m") == []
    assert violations(TLS="files") == []
    (line,) = violations(TLS="files", NGINX_MEMORY="1250m")
    assert "2 x (connections with TLS)=4096 x 28k (their TLS)" in line


def test_without_a_database_there_is_no_rule_of_its_connections() -> None:
    assert violations(DATABASE_POOL_SIZE="0", DATABASE_MAX_CONNECTIONS="0") == []
    assert violations(DATABASE_POOL_SIZE="6", DATABASE_MAX_CONNECTIONS="41") == []
    assert len(violations(DATABASE_POOL_SIZE="1", DATABASE_MAX_CONNECTIONS="0")) == 1


def test_places_of_every_container_count_in_nginx_and_not_in_the_app() -> None:
    assert violations(APP_MAX_REQUESTS_IN_FLIGHT="64", APP_REPLICAS="4") == []
    assert any("(places of all containers)=900" in line for line in violations(APP_REPLICAS="4", NGINX_MEMORY="1m"))


@pytest.mark.parametrize("value", ["0", "500", "20000", "-1000", "1000000.5"])
def test_a_body_buffer_that_is_no_power_of_ten_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=f"CLIENT_BODY_BUFFER_BYTES={value}: must be a power of ten"):
        violations(CLIENT_BODY_BUFFER_BYTES=value)
