"""An MCP server on several workers, called by the official client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.sse import sse_client

from proofs.conftest import started
from proofs.stack import MOVES, PATIENT_BUDGET, Stack

pytestmark = pytest.mark.xdist_group(__name__)

CLIENTS = 32  # fewer may by chance all be given to one worker
CALLS = 4

# With the handshake of 2025 each client has a session; from 2026 on it has none over streamable HTTP.
MODES = ("legacy", "2026-07-28")
TRANSPORTS = ("streamable HTTP", "SSE")
BOTH_PROTOCOLS = pytest.mark.parametrize("mode", MODES)
BOTH_TRANSPORTS = pytest.mark.parametrize("transport", TRANSPORTS)


ROWS = MOVES | {"APP_MODULE": "proofs.applications.mcp_report:app", "STICKY_SESSIONS": "cookie"}


@pytest.fixture(scope="module")
def server() -> Iterator[Stack]:
    yield from started(Stack("native", "mcp", **ROWS))


def connected(stack: Stack, transport: str, mode: str) -> Client:
    return Client(f"{stack.url}/mcp" if transport == "streamable HTTP" else sse_client(f"{stack.url}/sse"), mode=mode)


def text(result: Any) -> str:
    assert not result.is_error, result
    return str(result.content[0].text)


@BOTH_PROTOCOLS
@BOTH_TRANSPORTS
def test_clients_keep_their_sessions_on_several_workers(server: Stack, transport: str, mode: str) -> None:
    async def processes_of_clients() -> list[set[str]]:
        found = []
        for _ in range(CLIENTS):
            async with connected(server, transport, mode) as client:
                assert {tool.name for tool in (await client.list_tools()).tools} == {"report", "silent", "process"}
                found.append({text(await client.call_tool("process")) for _ in range(CALLS)})
        return found

    found = anyio.run(processes_of_clients)
    assert [len(processes) for processes in found] == [1] * CLIENTS
    assert len(set.union(*found)) == int(server.rows["WORKERS"])


@BOTH_PROTOCOLS
@BOTH_TRANSPORTS
def test_a_tool_may_work_for_longer_than_the_deadline(server: Stack, transport: str, mode: str) -> None:
    steps = 2 * int(server.rows["REQUEST_DEADLINE_SECONDS"])
    reported: list[float] = []

    async def report() -> str:
        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            reported.append(progress)

        async with connected(server, transport, mode) as client:
            return text(await client.call_tool("report", {"steps": steps}, progress_callback=on_progress))

    assert anyio.run(report) == f"{steps} steps"
    assert reported == list(range(steps))


def test_a_silent_tool_may_work_for_longer_than_a_deadline_above_the_servers_ping() -> None:
    """Over streamable HTTP the answer begins with the first message, or after 15 s of silence with a ping."""
    rows = PATIENT_BUDGET | {
        "REQUEST_DEADLINE_SECONDS": "20",  # a server without a CPU for a while pings later
        "ANSWER_STALL_SECONDS": "30",
        "PROXY_READ_TIMEOUT_SECONDS": "35",
        "EVENT_STREAM_PING_SECONDS": "15",
        "UVICORN_GRACEFUL_SECONDS": "21",
        "GUNICORN_GRACEFUL_SECONDS": "22",
        "NGINX_SHUTDOWN_SECONDS": "22",
        "REPLACED_WORKER_SECONDS": "24",
        "STOP_GRACE_SECONDS": "24",
    }
    seconds = int(rows["REQUEST_DEADLINE_SECONDS"]) + 1

    async def call(stack: Stack, transport: str, mode: str) -> None:
        async with connected(stack, transport, mode) as client:
            assert text(await client.call_tool("silent", {"seconds": seconds})) == f"{seconds} seconds"

    async def calls(stack: Stack) -> None:
        async with anyio.create_task_group() as group:
            for transport in TRANSPORTS:
                for mode in MODES:
                    group.start_soon(call, stack, transport, mode)

    with contextmanager(started)(Stack("native", "mcp-silent", **ROWS | rows)) as stack:
        anyio.run(calls, stack)
