"""WORKER_START=fork: the application is imported once, and its workers are forks; what cannot be forked is found out.

At a master with its workers alone. What every worker must do is proved elsewhere, with both values of the row.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from proofs.stack import alive, patched_copy, until
from proofs.test_faults import Server, serving

pytestmark = pytest.mark.xdist_group("fork")

# Counts its imports, and answers what its process is like.
APP = """
import gc, json, os, random, sys, threading
from pathlib import Path
{at_import}
FOLDER = Path(os.environ["RUN_DIR"])
print("imported", os.getpid())  # into a buffer, where the output is a file
with open(FOLDER / "imports", "a") as file:
    print(os.getpid(), file=file)
CODE = "{code}"
imported = set()
os.register_at_fork(after_in_child=lambda: imported.update(sys.modules))

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    answer = dict(
        pid=os.getpid(), parent=os.getppid(), code=CODE, drawn=random.random(), frozen=gc.get_freeze_count(),
        late=sorted(set(sys.modules) - imported),
        descriptors=sorted(filter(None, map(target, os.listdir("/proc/self/fd")))),
    )
    if "numpy" in globals():
        answer["numpy"] = numpy.random.random()
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": json.dumps(answer).encode()}})

def target(number):
    try:
        return os.readlink("/proc/self/fd/" + number)
    except OSError:
        return ""

made = []
def create():
    with open(FOLDER / "made", "a") as file:
        print(os.getpid(), file=file)
    made.append(1)
    return app
"""


def write_app(folder: Path, code: str = "old", at_import: str = "") -> None:
    (folder / "forked.py").write_text(APP.format(code=code, at_import=at_import))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_app(tmp_path)
    return tmp_path


def server_of(folder: Path, **own: str) -> Server:
    server = Server(folder, **{"APP_MODULE": "forked:create()", "WORKER_START": "fork"} | own)
    server.environ = {name: value for name, value in server.environ.items() if name != "PYTHONUNBUFFERED"}
    return server


@contextmanager
def forking(folder: Path, **own: str) -> Iterator[Server]:
    with serving(server_of(folder, **own)) as server:
        yield server


def lines(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text().split()


def told(server: Server, slot: int = 0) -> dict[str, Any]:
    answer: dict[str, Any] = server.get("/", slot).json()
    return answer


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def command_of(pid: int) -> str:
    """The command line of this process; "" of one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def fork_server(server: Server) -> int:
    """Its pid: the master's child that is neither a worker nor the observer."""
    (pid,) = others(server)
    return pid


def others(server: Server) -> list[int]:
    known = {worker["pid"] for worker in (server.status() or {})["workers"]}
    left = children(server.process.pid) - known
    return [pid for pid in left if "observer" not in command_of(pid)]


def replaced(server: Server, victim: int) -> list[int]:
    """The workers that serve, when this one does no more."""
    found: list[int] = until("a new worker", lambda: victim not in (pids := server.until_ready()) and pids)
    return found


# --- one import -------------------------------------------------------------------------------------------------


def test_an_application_is_imported_once_for_all_workers_of_a_generation(folder: Path) -> None:
    """Also for those that replace them, whatever has become of the code; a reload takes the new one."""
    with forking(folder) as server:
        first, second = server.until_ready()
        assert len(lines(folder, "imports")) == 1, "each worker has imported the application for itself"
        write_app(folder, at_import="1 / 0")
        server.kill(first)
        third = replaced(server, first)[0]
        os.kill(second, signal.SIGTERM)  # as a worker that is recycled: it asks for a replacement
        replaced(server, second)
        assert told(server)["code"] == "old", "a worker has other code than its generation"
        imports, made = len(lines(folder, "imports")), len(lines(folder, "made"))
        assert (imports, made) == (1, 1), f"4 workers: imported {imports} times, {made} calls of the factory"
        write_app(folder, "new")
        server.process.send_signal(signal.SIGHUP)
        server.said("generation 2 is ready")
        until("the new code", lambda: told(server)["code"] == "new")
        assert len(lines(folder, "imports")) == 2, "a reload of 2 workers imports the application more than once"
        until("the end of the old workers", lambda: not alive(third))
        text = server.text()
    assert text.count("imported") == 2, "workers repeat what the application has printed as it was imported"


PAIRED = """
import asyncio, os, pathlib
begun = pathlib.Path(os.environ["RUN_DIR"], "begun")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        with begun.open("a") as file:
            file.write("+")
        while len(begun.read_text()) % 2:
            await asyncio.sleep(0.02)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has 1 CPU")
def test_forked_workers_start_beside_others_as_many_at_a_time_as_there_are_cpus(folder: Path) -> None:
    """Each waits for another one to start."""
    (folder / "forked.py").write_text(PAIRED)
    with forking(folder, APP_MODULE="forked:app", APP_START_SECONDS="20") as server:
        server.process.send_signal(signal.SIGHUP)
        server.said("generation 2 is ready", seconds=15)


def test_a_worker_that_was_forked_is_like_one_that_was_not(folder: Path) -> None:
    """Its parent is the master; its numbers are its own; it holds no port, client or channel of others."""
    write_app(folder, at_import="import numpy")
    with forking(folder) as server:
        pids = server.until_ready()
        found = [told(server, slot) for slot in (0, 1)]
        assert [each["pid"] for each in found] == pids
        assert {each["parent"] for each in found} == {server.process.pid}, "a worker is not the master's child"
        assert children(pids[0]) == set()
        for name in ("drawn", "numpy"):
            assert found[0][name] != found[1][name], f"both workers draw the same numbers ({name})"
        assert not [message for message in server.log("warning") if "WORKER_START" in message], "numpy is refused"
        sockets = [{name for name in each["descriptors"] if name.startswith("socket:")} for each in found]
        assert not sockets[0] & sockets[1], f"two workers hold the same socket: {sockets}"
        idle = os.listdir(f"/proc/{fork_server(server)}/fd")
        assert len(idle) <= 6, f"the fork server holds {len(idle)} descriptors"  # 0 to 2, and its channel


def test_the_collector_of_a_worker_leaves_the_objects_of_the_application_where_they_are_shared(folder: Path) -> None:
    with forking(folder, WORKERS="1") as server:
        assert told(server)["frozen"] > 10_000, "each collection of a worker copies the application's memory"


def test_a_worker_has_nothing_left_to_import_after_the_fork(folder: Path) -> None:
    """What each imports for itself it holds for itself, and a replacement takes its time."""
    with forking(folder) as server:
        assert told(server)["late"] == []


def test_the_row_has_each_worker_import_the_application_for_itself(folder: Path) -> None:
    with forking(folder, WORKER_START="import") as server:
        imports = lines(folder, "imports")
        assert sorted(map(int, imports)) == sorted(server.until_ready())


# --- what cannot be forked --------------------------------------------------------------------------------------

THREAD = "threading.Thread(target=threading.Event().wait, daemon=True, name='poller').start()"


def test_an_application_that_cannot_be_forked_is_told_of_and_served(folder: Path) -> None:
    """In one line for each start; each worker imports it for itself, and so does each that replaces one."""
    write_app(folder, at_import=THREAD)
    with forking(folder) as server:
        first = server.until_ready()[0]
        (line,) = [message for message in server.log("warning") if "WORKER_START=fork" in message]
        assert line.startswith("WORKER_START=fork: forked:create() starts a thread (poller) as it is imported"), line
        assert "WORKER_START=import" in line, line
        server.kill(first)
        replaced(server, first)
        assert len(lines(folder, "imports")) == 1 + 3, "the one that was found out, two workers and a replacement"
        assert not others(server), "a process is left that forks nothing"
        write_app(folder, "new")
        server.process.send_signal(signal.SIGHUP)
        server.said("The application of generation 2 is loaded")
        server.said("generation 2 is ready")
        until("the new code", lambda: told(server)["code"] == "new")


# --- the fork server's own faults -------------------------------------------------------------------------------


def test_a_fork_server_that_is_killed_harms_no_worker_and_comes_again_when_it_is_needed(folder: Path) -> None:
    with forking(folder) as server:
        before = server.until_ready()
        killed = fork_server(server)
        os.kill(killed, signal.SIGKILL)
        server.said(f"The fork server (pid:{killed}) of generation 1 has ended, exit status -9")
        assert server.until_ready() == before
        server.kill(before[0])
        after = replaced(server, before[0])
        assert after[1] == before[1]
        assert fork_server(server) != killed
        assert len(lines(folder, "imports")) == 2
        server.kill(after[0])
        replaced(server, after[0])
        assert len(lines(folder, "imports")) == 2, "the new fork server does not fork"


def test_a_fork_server_that_hangs_is_replaced(folder: Path) -> None:
    """With a second in place of ten in which it must answer."""
    root = patched_copy([("app/server/forkserver.py", "LONGEST_FORK_SECONDS = 10.0", "LONGEST_FORK_SECONDS = 1.0")])
    try:
        with serving(server_of(folder, root=root)) as server:  # type: ignore[arg-type]
            first = server.until_ready()[0]
            stopped = fork_server(server)
            os.kill(stopped, signal.SIGSTOP)
            server.kill(first)
            try:
                line = server.said("Slot 0 has no new worker, next try in 1 s", seconds=20)
            finally:
                with suppress(ProcessLookupError):
                    os.kill(stopped, signal.SIGCONT)  # or the master does not end either
            assert "the fork server does not answer" in line, line
            replaced(server, first)
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("sign", ["TERM", "INT"])
def test_a_signal_to_the_whole_group_is_the_masters(folder: Path, sign: str) -> None:
    """As Ctrl-C is. It stops as ever, with one line less to read."""
    server = server_of(folder, WORKERS="1")
    server.command = ["setsid", *server.command]
    with serving(server):
        pid = fork_server(server)
        os.killpg(server.process.pid, getattr(signal, f"SIG{sign}"))
        assert server.process.wait(30) == 0
        until("the end of the fork server", lambda: not alive(pid))
    assert not [message for message in server.log() if "fork server" in message and "has ended" in message]


def test_no_fork_server_is_left_when_its_master_is_gone(folder: Path) -> None:
    server = server_of(folder)
    with serving(server):
        left = {fork_server(server), *server.until_ready()}
        server.process.kill()
        server.process.wait()
        until("the end of all", lambda: not any(map(alive, left)), seconds=30)
        with socket.socket() as trial:
            assert trial.connect_ex(("127.0.0.1", server.port)) != 0, "something still listens"


def test_a_worker_that_dies_during_a_reload_does_not_wait_for_the_new_code(folder: Path) -> None:
    with forking(folder) as server:
        first = server.until_ready()[0]
        go_on = folder / "go-on"
        write_app(folder, "new", at_import=f"import time\nwhile not Path('{go_on}').exists(): time.sleep(0.05)")
        server.process.send_signal(signal.SIGHUP)
        server.said("generation 2 starts")
        server.kill(first)
        until("a worker in its place", lambda: [w for w in (server.status() or {})["workers"]
              if w["slot"] == 0 and w["state"] == "ready" and w["pid"] != first])  # fmt: skip
        assert "generation 2 is ready" not in server.log(), "nobody served slot 0 until then"
        go_on.touch()
        server.said("generation 2 is ready")
        until("the new code", lambda: told(server)["code"] == "new")
