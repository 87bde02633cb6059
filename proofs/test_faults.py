"""The server's own faults: what fails is tried again, what an application does wrong harms nobody else.

Most of it is seen at a master with its workers alone, as both ways of running start it; where nginx or the container
is the point, at a stack.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from proofs import events
from proofs.conftest import require_engine, started
from proofs.stack import (
    DEADLINE,
    PATIENT_BUDGET,
    ROOT,
    SMALL_BUDGET,
    Stack,
    alive,
    free_ports,
    patched_copy,
    until,
    whole_lines,
)
from proofs.test_worker import raw_get, send_get
from stack.settings import GIVEN, rows

pytestmark = pytest.mark.xdist_group("faults")
FAULTY = {"APP_MODULE": "proofs.apps.faulty:app"}
SHM = Path("/dev/shm")
INFANCY_SECONDS = 1.0  # as in app/server/arbiter.py


class Server:
    """A master with its workers, and nothing before them."""

    def __init__(
        self, folder: Path, *, root: Path = ROOT, before: Sequence[str] = (), ports: int = 4, **own: str
    ) -> None:
        """`before` is what the command begins with; `folder` is RUN_DIR, and its modules can be imported."""
        self.folder = self.run_dir = folder
        self.rows = GIVEN | rows() | SMALL_BUDGET | FAULTY | {"APP_PORT": str(free_ports(ports + 1) + 1)} | own
        self.environ = os.environ | self.rows | {"RUN_DIR": str(folder), "DATA_DIR": str(folder)}
        self.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        self.root, self.port = root, int(self.rows["APP_PORT"])
        self.command = [*before, sys.executable, "-m", "app.server"]

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(self.command, cwd=self.root, env=self.environ, stdout=log, stderr=log)

    def stop(self) -> int:
        """Its exit status; what is left after the time for it is killed."""
        self.process.terminate()
        try:
            return self.process.wait(int(self.rows["STOP_GRACE_SECONDS"]) + DEADLINE)
        finally:
            for worker in (self.status() or {"workers": []})["workers"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker["pid"], signal.SIGKILL)
            self.process.kill()

    @property
    def account(self) -> Path:
        return self.run_dir / f"app-{self.port}.status.json"

    def status(self) -> dict[str, Any] | None:
        """The master's account; None while there is none."""
        with contextlib.suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads(self.account.read_text())
            return found
        return None

    def generation(self) -> int:
        return int((self.status() or {"attempt": 0})["attempt"])

    def pids(self) -> list[int]:
        """The workers that serve, by slot; empty while there are not as many as the row says."""
        found = self.status() or {"workers": []}
        ready = sorted((worker["slot"], worker["pid"]) for worker in found["workers"] if worker["state"] == "ready")
        return [pid for _, pid in ready] if len(ready) == int(self.rows["WORKERS"]) else []

    def until_ready(self) -> list[int]:
        def pids() -> list[int]:
            assert self.process.poll() is None, f"the master has ended:\n{self.text()}"
            return self.pids()

        found: list[int] = until("workers that serve", pids)
        return found

    def kill(self, pid: int) -> None:
        """The end of a worker that has served for a while: one that dies in its infancy is replaced later."""
        written = self.account.stat().st_mtime  # as the last one got ready, or later
        until("its infancy's end", lambda: time.time() > written + INFANCY_SECONDS + 0.2)
        os.kill(pid, signal.SIGKILL)

    def text(self) -> str:
        return (self.folder / "log").read_text()

    def log(self, level: str = "") -> list[str]:
        """The messages so far; those of one level."""
        lines = [json.loads(line) for line in whole_lines(self.folder / "log") if line.startswith("{")]
        return [line["message"] for line in lines if level in ("", line["level"])]

    def said(self, words: str, seconds: float = DEADLINE) -> str:
        """The first message with these words, waited for."""

        def find() -> str:
            return next((message for message in self.log() if words in message), "")

        found: str = until(f"a line with {words!r}", find, seconds)
        return found

    def client(self, slot: int = 0) -> httpx.Client:
        # Without the certificates, which take longer to read than all that is asked here.
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port + slot}", timeout=DEADLINE, verify=False)

    def get(self, path: str, slot: int = 0) -> httpx.Response:
        """The answer on a new connection."""
        with self.client(slot) as client:
            return client.get(path)

    def connect(self, slot: int = 0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port + slot), timeout=DEADLINE)

    def refuses(self, slot: int) -> bool:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", self.port + slot)) != 0

    def metric(self, name: str) -> float:
        """The sum of a metric's values, by the observer."""
        lines = self.get("/metrics", -1).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server, ready; and stopped, also where something failed."""
    server.start()
    try:
        server.until_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module", params=["fork", "import"])
def faulty(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(Server(tmp_path_factory.mktemp("faulty"), WORKER_START=request.param, **PATIENT_BUDGET)) as server:
        until("the observer", lambda: not server.refuses(-1))
        yield server


def no_descriptors(pid: int) -> AbstractContextManager[None]:
    """This process can open nothing more; what it has, it keeps."""
    return descriptors(pid, 3)


@contextmanager
def descriptors(pid: int, most: int) -> Iterator[None]:
    """This process can have so many open; what it has, it keeps."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


# --- nothing is left to start or to accept with ---------------------------------------------------------------


def test_a_master_without_a_descriptor_serves_on_and_replaces_a_worker_when_it_has_one(faulty: Server) -> None:
    first, second = faulty.until_ready()
    umask = Path(f"/proc/{second}/status").read_text().partition("Umask:")[2].split()[0]
    with no_descriptors(faulty.process.pid):
        faulty.kill(first)
        line = faulty.said("Slot 0 has no new worker, next try in")
        assert "Too many open files" in line, line
        until("a port that refuses", lambda: faulty.refuses(0), seconds=10)
        faulty.said("Slot 0 has no new worker, next try in 2 s")
        assert int(faulty.get("/", slot=1).text) == second
        assert faulty.process.poll() is None, "the master has ended"
    new, other = until("a new worker", lambda: first not in (pids := faulty.until_ready()) and pids)
    assert other == second, "the worker that served was replaced"
    assert int(faulty.get("/").text) == new
    now = Path(f"/proc/{new}/status").read_text().partition("Umask:")[2].split()[0]
    assert now == umask, f"the files of the new worker's application are made with umask {now}, not {umask}"
    assert not [message for message in faulty.log() if "Unhandled exception" in message]


def test_a_worker_without_a_descriptor_serves_what_it_has_and_accepts_again_when_it_has_one(faulty: Server) -> None:
    pid = faulty.until_ready()[0]
    with faulty.connect() as old, ExitStack() as opened:
        assert raw_get(old, "/livez").startswith("HTTP/1.1 200 ")
        with no_descriptors(pid):
            new = opened.enter_context(faulty.connect())  # the kernel's queue takes it
            send_get(new, "/livez")
            faulty.said("cannot accept a connection: Too many open files")
            assert raw_get(old, "/livez").startswith("HTTP/1.1 200 "), "an open connection is not served"
        new.settimeout(20)
        try:
            assert new.recv(65536).startswith(b"HTTP/1.1 200 ")
        except TimeoutError:
            raise AssertionError("20 s after a descriptor was free again, nothing is accepted") from None
    assert faulty.until_ready()[0] == pid, "the worker was replaced"


# --- code that does not start ---------------------------------------------------------------------------------


def write_module(folder: Path, answer: str) -> None:
    """A module `changing`, whose application answers this: an expression; one that raises keeps it from loading."""
    (folder / "changing.py").write_text(f"""
import os, pathlib, time
with open(os.environ["RUN_DIR"] + "/imports", "a") as imports:
    print("begun", file=imports)
while pathlib.Path(os.environ["RUN_DIR"] + "/hold").exists():
    time.sleep(0.05)
ANSWER = {answer}
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": ANSWER}})
""")


BROKEN = "1 / 0"
CHANGING = {"APP_MODULE": "changing:app", "PYTHONDONTWRITEBYTECODE": "1"}
BOTH = pytest.mark.parametrize("start", ["fork", "import"])


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Path]]:
    """A stack whose workers import, and the folder of the module that it serves."""
    folder = tmp_path_factory.mktemp("changing")
    write_module(folder, 'b"old"')
    stack = Stack("native", "faults", **CHANGING, WORKER_START="import")
    stack.environ["PYTHONPATH"] = str(folder)
    for _ in started(stack):
        yield stack, folder


def test_a_slot_whose_worker_cannot_start_refuses_and_is_served_again_when_it_can(changing: tuple[Stack, Path]) -> None:
    stack, folder = changing

    def refuses() -> bool:
        """A request to the port of the second worker. A connection that only waits there counts as no answer."""
        try:
            httpx.get(f"http://127.0.0.1:{stack.app_port + 1}/", timeout=DEADLINE)
        except httpx.ConnectError:
            return True
        except httpx.HTTPError:
            return False
        return False

    def slots() -> list[int]:
        return sorted(worker["slot"] for worker in stack.workers() if worker["state"] == "ready")

    (victim,) = [worker["pid"] for worker in stack.workers() if worker["slot"] == 1]
    time.sleep(INFANCY_SECONDS + 0.2)
    write_module(folder, BROKEN)
    stack.kill(victim)
    until("a port that refuses", refuses, seconds=20)
    with stack.client() as client:
        answers = [(answer.status_code, answer.text) for answer in (client.get("/") for _ in range(20))]
    assert answers == [(200, "old")] * 20, "the worker that serves does not get all requests"
    begins = "Slot 1 has no new worker"
    said = until("the line", lambda: [x["message"] for x in stack.app_log() if x["message"].startswith(begins)])
    assert "division by zero" in said[0], f"the reason is not said: {said[0]}"
    write_module(folder, 'b"old"')
    until("a worker in each slot", lambda: slots() == [0, 1])
    for _ in range(5):
        assert httpx.get(f"http://127.0.0.1:{stack.app_port + 1}/", timeout=DEADLINE).text == "old"


def test_a_reload_of_code_that_cannot_be_loaded_is_taken_back(changing: tuple[Stack, Path]) -> None:
    stack, folder = changing
    before = sorted(worker["pid"] for worker in stack.workers())
    write_module(folder, BROKEN)
    done = stack.make("reload")
    write_module(folder, 'b"old"')
    assert done.returncode != 0, done
    assert "division by zero" in done.stderr, f"the reason is not said: {done.stderr}"
    with stack.client() as client:
        assert client.get("/").text == "old"
    until("the old workers alone", lambda: sorted(worker["pid"] for worker in stack.workers()) == before)


@BOTH
@pytest.mark.parametrize("new", [BROKEN, 'b"new"'], ids=["broken", "good"])
def test_a_reload_during_the_first_start_waits_until_that_is_done(tmp_path: Path, new: str, start: str) -> None:
    """Its code is loaded, or rolled back with the first one serving on: the master lives."""
    write_module(tmp_path, 'b"old"')
    (tmp_path / "hold").touch()
    server = Server(tmp_path, **CHANGING, WORKERS="1", WORKER_START=start)
    server.start()
    try:
        until("an import", (tmp_path / "imports").exists)
        write_module(tmp_path, new)
        server.process.send_signal(signal.SIGHUP)
        server.said("Handling signal: hup")
        (tmp_path / "hold").unlink()
        server.until_ready()
        if new == BROKEN:
            line = server.said("Generation 2 is rolled back, 1 serves on")
            assert "division by zero" in line, line
            assert server.get("/").text == "old"
        else:
            server.said("generation 2 is ready")
            until("the new code", lambda: server.get("/").text == "new")
        assert server.process.poll() is None, "the master has ended"
    finally:
        server.stop()


PAIRED = """
import os, pathlib, time
imports, together = (pathlib.Path(os.environ["RUN_DIR"], name) for name in ("imports", "together"))
def note(sign):
    with imports.open("a") as file:
        file.write(sign)
note("+")
end = time.monotonic() + 20
while imports.read_text().count("+") < int(together.read_text()) and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(0.3)
note("-")
from proofs.apps.faulty import app
"""


@pytest.mark.parametrize("cpus", [1, 2])
def test_as_many_workers_start_at_a_time_as_there_are_cpus_and_half_of_them_beside_others(
    tmp_path: Path, cpus: int
) -> None:
    """The CPUs that start workers are taken from those that serve; at least one starts."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < cpus:
        pytest.skip(f"this machine has {len(usable)} CPU")
    (tmp_path / "paired.py").write_text(PAIRED)
    (tmp_path / "together").write_text(f"{cpus}")
    before = ["taskset", "--cpu-list", ",".join(map(str, usable[:cpus]))]
    server = Server(tmp_path, before=before, APP_MODULE="paired:app", WORKERS="3", WORKER_START="import")

    def at_a_time() -> int:
        text = (tmp_path / "imports").read_text()
        (tmp_path / "imports").unlink()
        return max(itertools.accumulate(1 if sign == "+" else -1 for sign in text))

    with serving(server):
        found = at_a_time()
        assert found == cpus, f"{found} workers were started at a time, with {cpus} CPUs"
        (tmp_path / "together").write_text("1")
        server.process.send_signal(signal.SIGHUP)
        server.said("generation 2 is ready")
        found = at_a_time()
        assert found == 1, f"{found} workers were started at a time beside those that serve, with {cpus} CPUs"


# --- what an application starts -------------------------------------------------------------------------------


@BOTH
def test_processes_that_the_application_starts_hold_neither_port_nor_client(tmp_path: Path, start: str) -> None:
    """One forked while it is loaded, and three by a handler. Their worker is killed, the app stops, they live on."""
    (tmp_path / "forking.py").write_text(
        "import os, pathlib\n"
        "from proofs.apps.faulty import app, forked\n"
        "with open(os.environ['RUN_DIR'] + '/forked', 'a') as file:\n"
        "    print(forked(300), file=file)\n"
    )
    server = Server(tmp_path, APP_MODULE="forking:app", WORKER_START=start)
    by_handler: list[int] = []

    def children() -> list[int]:
        return by_handler + [int(line) for line in (tmp_path / "forked").read_text().split()]

    try:
        with serving(server):
            first = server.until_ready()[0]
            with server.connect() as client:
                for path in ("/fork?300", "/multiprocessing?300", "/spawn?300"):
                    by_handler.append(int(raw_get(client, path).rpartition("\r\n\r\n")[2]))
                server.kill(first)
                client.settimeout(10)
                try:
                    with contextlib.suppress(ConnectionError):
                        assert client.recv(1) == b""
                except TimeoutError:
                    raise AssertionError("a client waits on a connection that a child of its worker holds") from None
            until("a new worker", lambda: first not in (pids := server.until_ready()) and pids)
        ended = [child for child in children() if not alive(child)]
        assert not ended, f"{len(ended)} children have ended by themselves: nothing is proved"
        with serving(server):  # at the same ports
            assert server.get("/").status_code == 200
        for child in children():
            os.kill(child, signal.SIGTERM)
        until("the end of children that are told to", lambda: not any(map(alive, children())), seconds=20)
    finally:
        for child in filter(alive, children()):
            os.kill(child, signal.SIGKILL)


# --- how workers share, and how they beat ---------------------------------------------------------------------


def test_a_burst_on_a_shared_socket_is_not_taken_whole_by_the_worker_that_is_there_first(tmp_path: Path) -> None:
    """Each request takes its worker 0.1 s: the other, which comes when the first is answered, finds most waiting."""
    burst = 64
    with serving(Server(tmp_path, WORKER_LISTENERS="shared")) as server:
        pids = server.until_ready()
        for early, late in itertools.permutations(pids):
            with ExitStack() as opened:
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                    opened.callback(os.kill, pid, signal.SIGCONT)
                connections = [opened.enter_context(server.connect()) for _ in range(burst)]
                for connection in connections:
                    send_get(connection, "/block?100")
                os.kill(early, signal.SIGCONT)
                select.select(connections, [], [], DEADLINE)
                os.kill(late, signal.SIGCONT)
                served = Counter(int(answer_on(connection)) for connection in connections)
            assert served.total() == burst
            assert served[late] >= burst / 10, f"of {burst} connections at once one worker took {served[early]}"


def answer_on(connection: socket.socket) -> str:
    """The body of the answer to what was sent."""
    answer = HTTPResponse(connection)
    answer.begin()
    return answer.read().decode()


def test_the_heartbeat_goes_on_when_the_wall_clock_is_set_back(tmp_path: Path) -> None:
    """By an hour: no worker may be taken for one that hangs."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        "clock, set_back = time.time, os.environ['RUN_DIR'] + '/set-back'\n"
        "time.time = lambda: clock() - 3600 * os.path.exists(set_back)\n"
    )
    timeout = 6
    own = {"WORKERS": "1", "LONGEST_BLOCK_SECONDS": "1", "WORKER_TIMEOUT_SECONDS": str(timeout)}
    with serving(Server(tmp_path, **own)) as server:
        before = server.until_ready()
        (tmp_path / "set-back").touch()
        end = time.monotonic() + 2 * timeout + 2
        while time.monotonic() < end:
            assert server.status(), "the master has ended"
            time.sleep(0.2)
        assert server.until_ready() == before, "a worker was killed because the clock was set back"
        assert not [message for message in server.log() if "TIMEOUT" in message]


# --- memory ---------------------------------------------------------------------------------------------------


def test_a_need_above_the_memory_limit_is_said_once_and_a_leak_beyond_it_still_replaces_a_worker(
    tmp_path: Path,
) -> None:
    """With 50 requests in place of 1,000, and no seconds, in which a worker counts as young."""
    root = patched_copy(
        [("app/server/arbiter.py", "STEADY_NEED_SECONDS = 60.0", "STEADY_NEED_SECONDS = 0.0"),
         ("app/server/arbiter.py", "STEADY_NEED_REQUESTS = 1000", "STEADY_NEED_REQUESTS = 50")]
    )  # fmt: skip
    seen: set[int] = set()
    try:
        with serving(Server(tmp_path, root=root, WORKER_MEMORY_MB="140")) as server:

            def need() -> bool:
                for slot in (0, 1):
                    seen.add(int(server.get("/need?120", slot).text))
                return bool([line for line in server.log("error") if "raise WORKER_MEMORY_MB in .env" in line])

            until("a line that names the row", need)
            for _ in range(10):
                time.sleep(0.3)  # a worker looks at its memory once a second
                need()
            assert len(seen) <= 4, f"{len(seen)} workers have served in 2 slots"
            lines = [line for line in server.log("error") if "WORKER_MEMORY_MB" in line]
            assert len(lines) == 1, lines
            before = server.until_ready()
            with server.client() as client:
                for _ in range(60):
                    client.get("/")
                client.get("/leak?300")
            until("another worker in the place of one that leaks", lambda: before[0] not in (server.pids() or before))
            assert server.until_ready()[1] == before[1]
    finally:
        shutil.rmtree(root)


# --- counters -------------------------------------------------------------------------------------------------


def test_the_requests_that_a_killed_worker_had_in_flight_are_not_counted_as_in_flight_any_more(faulty: Server) -> None:
    """Also while no other one has taken its place."""
    victim = faulty.until_ready()[0]
    with ExitStack() as opened:
        for _ in range(5):
            connection = opened.enter_context(faulty.connect())
            send_get(connection, "/wait?60000")
        until("5 requests in flight", lambda: faulty.metric("http_requests_in_flight{") == 5)
        with no_descriptors(faulty.process.pid):
            faulty.kill(victim)
            until("none in flight", lambda: faulty.metric("http_requests_in_flight{") == 0, seconds=20)
    until("a new worker", lambda: victim not in (pids := faulty.until_ready()) and pids)


def test_a_worker_of_an_application_without_a_lifespan_takes_no_counters_along_when_it_leaves(faulty: Server) -> None:
    """What it answered last is counted too."""
    before = faulty.until_ready()
    name = 'http_requests_total{method="GET",route="",status="200"}'
    counted = faulty.metric(name)
    ready = f"generation {faulty.generation() + 1} is ready"
    faulty.process.send_signal(signal.SIGHUP)
    with faulty.client() as client:  # kept alive, so that the old worker answers until it is told to leave
        answered, end = 0, time.monotonic() + DEADLINE
        while not any(ready in message for message in faulty.log()):
            assert time.monotonic() < end, f"no line with {ready!r}"
            answered += client.get("/").status_code == 200
    until("the end of the old workers", lambda: not any(map(alive, before)))
    assert faulty.metric(name) == counted + answered, "requests were lost to the counters"


@pytest.mark.parametrize(
    ("path", "reason"), [("/exit", "error"), ("/exit-in-a-thread", "error"), ("/nothing", "no answer")]
)
def test_a_handler_that_exits_or_gives_no_answer_is_an_error_500_and_nothing_else(
    faulty: Server, path: str, reason: str
) -> None:
    """Counted as what its client got, and logged in one line."""
    before = faulty.until_ready()
    name = 'http_requests_total{method="GET",route="",status="500"}'
    counted = faulty.metric(name)
    cut = f'http_requests_cut_total{{reason="{reason}"}}'
    cut_before = faulty.metric(cut)
    answer = faulty.get(path)
    assert answer.status_code == 500, answer
    assert answer.json()["error"] == "Internal Server Error", answer.text
    # It is counted and logged when its client has the answer already.
    until("it is counted as 500", lambda: faulty.metric(name) == counted + 1)
    until("its reason is counted", lambda: faulty.metric(cut) == cut_before + 1)
    until("it is not in flight", lambda: faulty.metric("http_requests_in_flight{") == 0)
    until("its line", lambda: faulty.log("error").count(f"GET {path}") == 1)
    assert faulty.until_ready() == before, "the worker has ended"


# --- an application that does what it should not --------------------------------------------------------------


def test_an_application_that_answers_twice_is_logged_and_its_client_has_the_first_answer(faulty: Server) -> None:
    before = faulty.until_ready()
    with faulty.client() as client:
        answers = [client.get("/twice") for _ in range(2)]
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, str(before[0]))] * 2
    until("a line for each", lambda: faulty.log("error").count("GET /twice") == 2)
    assert faulty.until_ready() == before


@pytest.mark.parametrize("status", [1, 3, 4])
def test_a_handler_that_ends_its_process_ends_no_other(faulty: Server, status: int) -> None:
    """Whatever its exit status: with 3 and 4 a worker of Gunicorn says that it could not start."""
    victim, other = faulty.until_ready()
    time.sleep(INFANCY_SECONDS + 0.2)  # one that ends as it begins to serve is replaced later
    with faulty.client() as client, pytest.raises(httpx.TransportError):
        client.get(f"/die?{status}")
    faulty.said(f"Worker (pid:{victim}) exited with code {status}")
    new = until("a new worker", lambda: victim not in (pids := faulty.until_ready()) and pids)
    assert new[1] == other, "the other worker was replaced as well"
    assert faulty.process.poll() is None


RAISING = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "RuntimeError: no database here"})
"""
SLOW = "import time\ntime.sleep(60)\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [(RAISING, "lifespan startup: RuntimeError: no database here"),
     (SLOW, "not ready within 8 s (APP_START_SECONDS)"),
     (BROKEN, "ZeroDivisionError: division by zero")],
    ids=["raises in its lifespan", "imports for too long", "cannot be loaded"],
)  # fmt: skip
@BOTH
def test_an_application_that_does_not_start_ends_the_first_start_and_fails_a_reload(
    tmp_path: Path, text: str, said: str, start: str
) -> None:
    server = Server(tmp_path, **CHANGING, WORKERS="1", APP_START_SECONDS="8", WORKER_START=start)
    write_module(tmp_path, 'b"old"')
    with serving(server):
        (tmp_path / "changing.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "app.server.reload"],
            cwd=ROOT, env=server.environ, capture_output=True, text=True, timeout=DEADLINE,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (1, f"not reloaded: {said}; generation 1 serves on\n")
        assert server.get("/").text == "old"
    server.start()
    try:
        status = server.process.wait(DEADLINE)
    finally:
        server.stop()
    assert status != 0, "the master of an application that does not start ends with 0"
    for line in (f"Generation 2 is rolled back, 1 serves on: {said}", f"Reason: {said}"):
        assert server.log("error").count(line) == 1, f"{line!r} is not said once: {server.log('error')}"


# --- what others have left ------------------------------------------------------------------------------------


@pytest.fixture
def foreign() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with the app."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_reload_signals_no_process_whose_number_is_in_a_status_file_that_was_left(
    tmp_path: Path, foreign: subprocess.Popen[bytes]
) -> None:
    server = Server(tmp_path)
    left = {"master": foreign.pid, "master_started": "4711", "generation": 1, "attempt": 1, "state": "ready"}
    (tmp_path / f"app-{server.port}.status.json").write_text(json.dumps(left | {"reason": "", "workers": []}))
    done = subprocess.run(
        [sys.executable, "-m", "app.server.reload"],
        cwd=ROOT, env=server.environ, capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert foreign.poll() is None, "a process that is not the app's was signalled"
    assert (done.returncode, done.stderr) == (1, "not reloaded: the app is not running: start it with make up\n")


def test_a_start_removes_the_counters_of_masters_that_are_gone_and_nothing_else(
    tmp_path: Path, foreign: subprocess.Popen[bytes]
) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    own, living, other = (
        SHM / f"fastapi-stack-metrics-{gone.pid}-proof",
        SHM / f"fastapi-stack-metrics-{foreign.pid}-proof",
        SHM / f"metrics-{gone.pid}-proof",
    )
    try:
        for folder in (own, living, other):
            folder.mkdir()
        with serving(Server(tmp_path, WORKERS="1")):
            assert not own.exists(), "what a master has left that was killed stays in memory"
            assert living.exists(), "the counters of another master that lives were removed"
            assert other.exists(), "a folder of another program was removed"
    finally:
        for folder in (own, living, other):
            shutil.rmtree(folder, ignore_errors=True)


def test_a_full_disk_ends_no_master_and_is_said_once(tmp_path: Path) -> None:
    """RUN_DIR is a file system of 16 KiB, in a mount namespace of this master's own."""
    run = tmp_path / "run"
    run.mkdir()
    mount = f"mount -t tmpfs -o size=16k tmpfs {run}"
    namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this user may make no mount namespace")
    server = Server(tmp_path, before=[*namespace, "sh", "-c", f'{mount} && exec "$0" "$@"'])
    server.environ["RUN_DIR"] = str(run)
    server.start()
    try:
        server.run_dir = Path(f"/proc/{server.process.pid}/root{run}")
        victim = server.until_ready()[0]
        with (server.run_dir / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 4096)
        server.kill(victim)
        server.said("No space left on device")

        def pid() -> int:
            with contextlib.suppress(httpx.TransportError):
                return int(server.get("/").text)
            return victim

        until("a new worker", lambda: pid() != victim)
        assert server.process.poll() is None, "the master has ended"
        (server.run_dir / "filler").unlink()
        assert pid() == until("a true account", lambda: victim not in server.pids() and server.pids())[0]
        assert [file.name for file in server.run_dir.iterdir()] == [f"app-{server.port}.status.json"]
        assert len([message for message in server.log() if "No space left on device" in message]) == 1
    finally:
        server.stop()


# --- the container --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contained() -> Iterator[Stack]:
    """nginx and an app container with little memory, of a copy of the tree that has the faulty application."""
    require_engine()
    patch = ("app/demo/main.py", 'title="Demo"', 'title="Demo"')
    little = {
        "APP_MEMORY": "384m", "APP_TMP": "16m", "WORKER_MEMORY_MB": "0", "APP_MAX_REQUESTS_IN_FLIGHT": "100",
        "NGINX_MAX_UPLOADS_IN_FLIGHT": "100", "CLIENT_MAX_UPLOADS_IN_FLIGHT": "50",
    }  # fmt: skip
    stack = Stack("compose", "faults", patches=[patch], APP_MODULE="app.faulty:app", **little)
    try:
        shutil.copy(ROOT / "proofs/apps/faulty.py", stack.root / "app/faulty.py")
        stack.compose("up", "--detach", "--build", "--wait", "nginx")
        yield stack
    finally:
        stack.down()


def serving_pids(stack: Stack) -> list[int]:
    return sorted(worker["pid"] for worker in stack.workers() if worker["state"] == "ready")


def answers(stack: Stack) -> list[int]:
    with stack.client() as client:
        return [client.get("/").status_code for _ in range(10)]


def post(stack: Stack, path: str) -> int:
    """The status of a POST: a GET would be sent to the other worker as well."""
    with stack.client() as client:
        return client.post(path).status_code


def said(stack: Stack, words: str) -> str:
    def find() -> str:
        return next((line["message"] for line in stack.app_log() if words in line["message"]), "")

    found: str = until(f"a line with {words!r}", find)
    return found


def test_a_worker_that_outgrows_the_container_is_killed_alone(contained: Stack) -> None:
    (container,) = contained.containers("app")
    before = contained.inspect(container)["State"]
    workers = serving_pids(contained)
    assert post(contained, "/leak?2048") == 502
    line = said(contained, "out of memory")
    (victim,) = [pid for pid in workers if f"pid:{pid}" in line]
    until("two workers", lambda: len(pids := serving_pids(contained)) == 2 and victim not in pids)
    assert len(set(workers) & set(serving_pids(contained))) == 1, "the other worker was replaced as well"
    assert answers(contained) == [200] * 10
    assert contained.inspect(container)["State"]["StartedAt"] == before["StartedAt"], "the container was restarted"


def test_a_full_table_of_processes_ends_no_master_and_a_worker_is_replaced_when_it_has_room(contained: Stack) -> None:
    (container,) = contained.containers("app")
    before = contained.inspect(container)["State"]
    workers = serving_pids(contained)
    time.sleep(INFANCY_SECONDS + 0.2)
    try:
        events.docker("update", "--pids-limit", "2", container)
        assert post(contained, "/die?1") == 502
        line = said(contained, "has no new worker, next try in")
        assert "Resource temporarily unavailable" in line, line
        assert answers(contained) == [200] * 10, "the worker that is left does not get all requests"
    finally:
        events.docker("update", "--pids-limit", rows()["APP_PIDS"], container)
    until("two workers", lambda: len(pids := serving_pids(contained)) == 2 and pids != workers)
    assert contained.inspect(container)["State"]["StartedAt"] == before["StartedAt"], "the container was restarted"
