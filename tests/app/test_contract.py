"""Each private part of a library that app/server/ relies on. What fails after an upgrade names the file to look at.

pyproject.toml holds these libraries below the next version that may change such parts.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import signal
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from anyio._backends._asyncio import AsyncIOBackend
from gunicorn import sock
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.workers.base import Worker
from gunicorn.workers.workertmp import WorkerTmp
from packaging.requirements import Requirement
from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.lifespan.on import LifespanOn
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState
from uvicorn_worker import UvicornWorker

ROOT = Path(__file__).parents[2]

SIGNATURES: list[tuple[str, Callable[..., Any], str]] = [
    ("server.py", Server.startup, "(self, sockets)"),
    ("server.py", Server.on_tick, "(self, counter)"),
    ("server.py", Server.shutdown, "(self, sockets)"),
    ("server.py", Server.handle_exit, "(self, sig, frame)"),
    ("server.py", Server.serve, "(self, sockets)"),
    ("server.py", LifespanOn.shutdown, "(self)"),
    ("worker.py", Config.get_loop_factory, "(self)"),
    ("worker.py", UvicornWorker.__init__, "(self, *args, **kwargs)"),
    ("worker.py", Worker.__init__, "(self, age, ppid, sockets, app, timeout, cfg, log)"),
    ("worker.py", Worker.init_process, "(self)"),
    ("worker.py", Worker.load_wsgi, "(self)"),
    ("server.py", Worker.notify, "(self)"),
    ("connection.py", HttpToolsProtocol.__init__, "(self, config, server_state, app_state, _loop)"),
    ("connection.py", HttpToolsProtocol.connection_made, "(self, transport)"),
    ("connection.py", HttpToolsProtocol.on_response_complete, "(self)"),
    ("connection.py", HttpToolsProtocol.handle_websocket_upgrade, "(self)"),
    ("connection.py", HttpToolsProtocol.shutdown, "(self)"),
    ("connection.py", HttpToolsProtocol.timeout_keep_alive_handler, "(self)"),
    ("connection.py", HttpToolsProtocol.connection_lost, "(self, exc)"),
    ("forwarded.py", ProxyHeadersMiddleware.__init__, "(self, app, trusted_hosts)"),
    ("arbiter.py", Arbiter.manage_workers, "(self)"),
    ("arbiter.py", Arbiter.spawn_worker, "(self)"),
    ("arbiter.py", Arbiter.reap_workers, "(self)"),
    ("arbiter.py", Arbiter.kill_worker, "(self, pid, sig)"),
    ("arbiter.py", Arbiter.stop, "(self, graceful)"),
    ("arbiter.py", Arbiter.reload, "(self)"),
    ("arbiter.py", Arbiter.start, "(self)"),
    ("arbiter.py", HaltServer.__init__, "(self, reason, exit_status)"),
    ("arbiter.py", sock.close_sockets, "(listeners, unlink)"),
    ("arbiter.py", sock.TCPSocket._is_listening, "(sock)"),
    ("middleware.py", AsyncIOBackend.run_sync_in_worker_thread, "(func, args, abandon_on_cancel, limiter)"),
    ("middleware.py", anyio.to_thread.run_sync, "(func, *args, abandon_on_cancel, cancellable, limiter)"),
]

# What an object's source must hold for the file to do what it says.
SOURCES: list[tuple[str, Any, str]] = [
    ("server.py", Server.startup, "for sock in sockets:"),  # sockets=[]: the lifespan, and no listener
    ("server.py", Server.main_loop, "await asyncio.sleep(0.1)"),  # TICKS_IN_A_SECOND
    ("server.py", Server.on_tick, "self.server_state.default_headers = date_header + self.config.encoded_headers"),
    ("server.py", Server.on_tick, "if self.should_exit:\n            return True"),
    ("server.py", Server._serve, "await self.shutdown(sockets=sockets)"),
    ("server.py", Server._serve, "self.lifespan = config.lifespan_class(config)"),
    ("worker.py", Server.startup, "sys.exit(STARTUP_FAILURE)"),
    ("worker.py", UvicornWorker.__init__, "config_kwargs.update(self.CONFIG_KWARGS)"),
    ("worker.py", Arbiter.spawn_worker, "worker.init_process()"),
    ("connection.py", HttpToolsProtocol.on_headers_complete, "transport=self.transport"),
    ("connection.py", HttpToolsProtocol.on_headers_complete, "on_response=self.on_response_complete"),
    ("connection.py", HttpToolsProtocol.on_headers_complete, "app = self.app"),
    ("connection.py", HttpToolsProtocol.on_response_complete, "self.timeout_keep_alive_task = self.loop.call_later("),
    ("connection.py", HttpToolsProtocol.data_received, "self._unset_keepalive_if_required()\n\n        try:"),
    ("connection.py", HttpToolsProtocol.data_received, "self.handle_websocket_upgrade()\n            else:"),
    ("connection.py", HttpToolsProtocol._unset_keepalive_if_required, "self.timeout_keep_alive_task = None"),
    ("connection.py", HttpToolsProtocol.handle_websocket_upgrade, "protocol.connection_made(self.transport)"),
    ("forwarded.py", Config.load, "self.loaded_app = ProxyHeadersMiddleware(self.loaded_app, trusted_hosts="),
    ("forwarded.py", ProxyHeadersMiddleware.__call__, "if client_host in self.trusted_hosts:"),
    ("forwarded.py", ProxyHeadersMiddleware.__call__, "self.trusted_hosts.get_trusted_client_address(x_forwarded_for)"),
    ("forwarded.py", ProxyHeadersMiddleware.__call__, "return await self.app(scope, receive, send)"),
    ("connection.py", RequestResponseCycle.send, 'content.append(b"\\r\\n")\n            self.transport.write('),
    ("connection.py", RequestResponseCycle.send, "self.response_complete = True"),
    ("connection.py", RequestResponseCycle.send, "self.response_started = True"),
    ("connection.py", RequestResponseCycle.send, "if not self.keep_alive and not has_connection_close:"),
    ("middleware.py", RequestResponseCycle.run_asgi, "elif not self.response_complete and not self.disconnected:"),
    ("middleware.py", AsyncIOBackend.run_sync_in_worker_thread, "await cls.checkpoint()"),
    ("middleware.py", AsyncIOBackend.run_sync_in_worker_thread, "return await future"),
    ("drain.py", HttpToolsProtocol._start_asgi_task, "self.tasks.add(task)"),
    ("arbiter.py", Arbiter.run, "except (StopIteration, KeyboardInterrupt):\n            self.halt()"),
    ("arbiter.py", Arbiter.run, "self.murder_workers()\n                self.manage_workers()"),
    ("arbiter.py", Arbiter.wait_for_signals, "self.SIG_QUEUE.get(block=True, timeout=timeout)"),
    ("arbiter.py", Arbiter.spawn_worker, "worker = self.worker_class(self.worker_age, self.pid, self.LISTENERS,"),
    ("arbiter.py", Arbiter.spawn_worker, "self.WORKERS[pid] = worker"),
    ("arbiter.py", Arbiter.spawn_worker, "return pid"),
    ("arbiter.py", Arbiter.reap_workers, "worker = self.WORKERS.pop(wpid, None)"),
    ("arbiter.py", Arbiter.reap_workers, "raise HaltServer(reason, self.WORKER_BOOT_ERROR)"),
    ("arbiter.py", Arbiter.stop, "sock.close_sockets(self.LISTENERS, unlink)"),
    ("arbiter.py", Arbiter.stop, "sig = signal.SIGTERM"),
    ("arbiter.py", Arbiter.start, "if not self.LISTENERS:"),
    ("arbiter.py", WorkerTmp.__init__, "old_umask = os.umask(cfg.umask)"),
    ("worker.py", Worker.init_process, "util.close_on_exec(s)"),  # what an application starts holds no port
    ("arbiter.py", Arbiter.murder_workers, "time.monotonic() - worker.tmp.last_update()"),
    ("server.py", WorkerTmp.notify, "time.monotonic()"),
    ("account.py", Arbiter.murder_workers, "worker.aborted = True"),
    ("account.py", Arbiter.reap_workers, "worker is None"),  # the observer is no worker
]

BOUNDED = {"anyio", "gunicorn", "uvicorn", "uvicorn-worker", "uvloop"}


def parameters(function: Callable[..., Any]) -> str:
    """The names of its parameters, with the stars of those that take many."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = inspect.signature(function).parameters.values()
    return f"({', '.join(stars.get(each.kind, '') + each.name for each in found)})"


@pytest.mark.parametrize(
    ("file", "function", "wanted"), SIGNATURES, ids=lambda value: getattr(value, "__qualname__", "")
)
def test_a_function_that_is_overridden_or_called_takes_what_it_took(
    file: str, function: Callable[..., Any], wanted: str
) -> None:
    assert parameters(function) == wanted, f"look at app/server/{file}: {function.__qualname__} has changed"


@pytest.mark.parametrize(("file", "thing", "fragment"), SOURCES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_a_function_still_does_what_is_relied_on(file: str, thing: Any, fragment: str) -> None:
    assert fragment in inspect.getsource(thing), f"look at app/server/{file}: {thing.__qualname__} has no {fragment!r}"


def test_what_is_read_and_set_still_exists() -> None:
    assert set(vars(ServerState())) >= {"total_requests", "connections", "tasks", "default_headers"}, (
        "server.py, drain.py"
    )
    assert {"started", "should_exit"} <= set(vars(Server(Config(lambda: None)))), "server.py"
    init = inspect.getsource(RequestResponseCycle.__init__)
    for field in ("response_started", "response_complete", "keep_alive"):
        assert f"self.{field} = " in init, "connection.py"
    init = inspect.getsource(HttpToolsProtocol.__init__)
    for field in ("transport", "cycle", "loop", "connections", "app", "client"):
        assert f"self.{field}" in init, "connection.py"
    wanted = set(re.findall(r"self\.loop\.(\w+)", inspect.getsource(HttpToolsProtocol)))
    assert wanted == {"create_task", "call_later"}, "connection.py: what a TaskMaker has"
    source = inspect.getsource(HttpToolsProtocol) + inspect.getsource(RequestResponseCycle)
    wanted = set(re.findall(r"self\.transport\.(\w+)", source)) - {"set_protocol"}  # of a WebSocket's, which is its own
    assert wanted == {"close", "is_closing", "write"}, "connection.py: what a JoiningTransport has"
    assert STARTUP_FAILURE == Arbiter.WORKER_BOOT_ERROR, "arbiter.py: a lifespan that fails ends its worker with this"
    assert hasattr(asyncio.Task, "_fut_waiter"), "middleware.py"
    assert signal.SIGCHLD not in Arbiter.SIGNALS, "worker.py: the worker wakes the master with it"


@pytest.mark.parametrize("name", ["anyio._backends._asyncio", "uvicorn.loops.auto", "uvicorn.protocols.http.auto"])
def test_a_module_that_is_imported_for_all_workers_still_exists(name: str) -> None:
    assert import_module(name), "look at app/server/forkserver.py"


@pytest.mark.parametrize("name", sorted(BOUNDED))
def test_a_library_with_private_parts_in_use_has_an_upper_bound(name: str) -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (found,) = [requirement for requirement in map(Requirement, listed) if requirement.name == name]
    assert any(each.operator == "<" for each in found.specifier), (
        f"{found}: a new version may change what this page names"
    )
