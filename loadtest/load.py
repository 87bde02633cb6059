"""Locust's processes for one headless run: this one is the master, and it starts and ends the workers."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gevent
from gevent.event import Event
from locust import stats
from locust.env import Environment
from locust.runners import STATE_STOPPING

from loadtest.base import ANSWER_TIMEOUT_SECONDS, PACING_SECONDS, BaseUser
from loadtest.generator import Usage
from loadtest.runner import WARMUP_OVER
from loadtest.settings import Settings

PROGRESS_SECONDS = 3
START_SECONDS = 60  # for the workers to connect, and again for them to start their users
HURRY_SECONDS = 2

# 5 s and 10 s by default: a point of the chart would blur the ten seconds before it, and come every five.
stats.HISTORY_STATS_INTERVAL_SEC = 1
stats.CURRENT_RESPONSE_TIME_PERCENTILE_WINDOW = PROGRESS_SECONDS


class CouldNotRun(Exception):
    """One line: what is in the way, and what to do."""


class Load:
    """The steps of a run, in order: start_users, warm_up, measure, stop. All but stop raise CouldNotRun.

    `begin` is the Unix time at which measuring began, a whole second, and 0 before; `usage` has the generator's own
    CPU in each measured second; `signals` are those that asked for an end.
    """

    def __init__(self, settings: Settings, user: type[BaseUser], log: Path) -> None:
        self.settings = settings
        self.environment = Environment(
            user_classes=[user],
            locustfile="loadtest/locustfile.py",
            host=settings.target,
            stop_timeout=ANSWER_TIMEOUT_SECONDS,
        )
        # 0: any free port; what is elsewhere looks for Locust's own.
        address = ("*", 5557) if settings.elsewhere else ("127.0.0.1", 0)
        self.master = self.environment.create_master_runner(*address)
        here = 0 if settings.elsewhere else settings.processes
        self.workers = [_start_worker(self.master.server.port, log) for _ in range(here)]
        self.begin = 0
        self.usage: list[Usage] = []
        self.signals: list[int] = []
        self._interrupted = Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            gevent.signal_handler(number, self._interrupt, number)

    def start_users(self) -> None:
        """Wait for the workers, then start all users."""
        settings = self.settings
        users = settings.users if settings.shape == "closed" else settings.rate * PACING_SECONDS
        print(f"{users} users in {settings.processes} processes against {settings.target}", flush=True)
        self._wait_for(lambda: self.master.worker_count == settings.processes)
        gevent.spawn(self.master.start, users, min(users, 100 * settings.processes))
        self._wait_for(lambda: self.master.spawning_completed)

    def warm_up(self) -> None:
        """Load, then forget what was counted. Sets `begin`."""
        for second in range(1, self.settings.warmup_seconds + 1):
            self._pause(1)
            if second % PROGRESS_SECONDS == 0:
                print(f"{second:>4} s of {self.settings.warmup_seconds} warm-up", flush=True)
        forgotten: list[str] = []
        self.master.register_message(WARMUP_OVER, lambda environment, msg: forgotten.append(msg.node_id))
        self._pause(1 - time.time() % 1)  # Locust counts by the whole second of the clock
        self.master.send_message(WARMUP_OVER)
        self._wait_for(lambda: len(forgotten) == self.settings.processes)
        self.master.stats.reset_all()
        self.begin = int(time.time())

    def measure(self) -> None:
        """Fill `usage` each second and show progress every few."""
        self.usage = [Usage("master"), *(Usage(f"worker {n}", worker.pid) for n, worker in enumerate(self.workers, 1))]
        history = gevent.spawn(stats.stats_history, self.master)
        start = last = time.monotonic()
        try:
            for second in range(1, self.settings.seconds + 1):
                self._pause(start + second - time.monotonic())
                elapsed = time.monotonic() - last
                last += elapsed
                for process in self.usage:
                    process.sample(elapsed)
                if second % PROGRESS_SECONDS == 0 or second == self.settings.seconds:
                    self._show(second)
        finally:
            history.kill()

    def stop(self, hurry: bool) -> None:
        """End the workers, after the answers that are still under way: the slow ones are part of the result.

        In a `hurry`, or at Ctrl-C, they are not waited for. Raises CouldNotRun when a worker's last figures are lost.
        """
        self.master.final_user_classes_count = dict(self.master.reported_user_classes_count)  # for the HTML report
        self.master.update_state(STATE_STOPPING)  # else the users of the first worker to leave are given to the others
        self.master.send_message("quit")
        begin = time.monotonic()
        while any(worker.poll() is None for worker in self.workers) or (
            self.settings.elsewhere and self.master.clients
        ):
            waited = time.monotonic() - begin
            if waited > (HURRY_SECONDS if hurry or self.signals else ANSWER_TIMEOUT_SECONDS + HURRY_SECONDS):
                break
            gevent.sleep(0.05)
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        deadline = time.monotonic() + 1
        while self.master.clients and time.monotonic() < deadline:  # a worker's last figures come before its goodbye
            gevent.sleep(0.02)
        if self.signals:
            raise CouldNotRun("interrupted")
        self._look_for_losses(ended=True)

    def _show(self, second: int) -> None:
        total = self.master.stats.total
        recent = range(max(second - 1 - PROGRESS_SECONDS, 0), second - 1)  # the last second is not all reported yet
        answers = sum(total.num_reqs_per_sec.get(self.begin + past, 0) for past in recent)
        print(
            f"{second:>4} s of {self.settings.seconds}  {self.master.user_count} users  "
            f"{answers / max(len(recent), 1):.0f} req/s  "
            f"p95 {total.get_current_response_time_percentile(0.95) or 0} ms  {total.num_failures} failures",
            flush=True,
        )

    def _wait_for(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not done():
            if time.monotonic() > deadline:
                raise CouldNotRun(f"the load generator did not start within {START_SECONDS} s, see locust.log")
            self._pause(0.02)

    def _pause(self, seconds: float) -> None:
        """Sleep. Raises CouldNotRun on a signal, and when a worker is gone or has fallen silent."""
        if self._interrupted.wait(max(seconds, 0)):
            raise CouldNotRun("interrupted")
        self._look_for_losses()
        if self.master.clients.missing:
            raise CouldNotRun("a worker process of Locust was lost (it fell silent)")

    def _look_for_losses(self, ended: bool = False) -> None:
        for number, worker in enumerate(self.workers, 1):
            if worker.poll() is not None and not (ended and worker.returncode == 0):
                raise CouldNotRun(f"worker process {number} of Locust was lost (exit status {worker.returncode})")

    def _interrupt(self, number: int) -> None:
        self.signals.append(number)
        self._interrupted.set()


def _start_worker(port: int, log: Path) -> "subprocess.Popen[bytes]":
    package = Path(__file__).parent
    command = [sys.executable, "-m", "locust", "--locustfile", str(package / "locustfile.py"), "--worker"]
    command += ["--exit-code-on-error=0"]  # 1 by default after a failed request: it would count as a lost worker
    with log.open("ab") as output:
        return subprocess.Popen(
            [*command, "--master-host=127.0.0.1", f"--master-port={port}"],
            cwd=package.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the master: workers that end by themselves lose their last figures
        )
