"""A PostgreSQL of a test's own: Debian's package, in a folder and at a port that nobody else has."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proofs.conftest import lacks
from proofs.stack import free_ports, until

INSTALLED = Path("/usr/lib/postgresql")
# PostgreSQL refuses to run as root.
USER = "postgres" if os.getuid() == 0 else None


def programs() -> Path:
    """The folder of PostgreSQL's programs. Skips where there is none; fails when REQUIRE_POSTGRES=1."""
    found = sorted(INSTALLED.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        lacks("no PostgreSQL is installed (apt-get install postgresql)", "REQUIRE_POSTGRES")
    return found[-1].parent


@contextmanager
def running(max_connections: int = 35) -> Iterator[Database]:
    """A server that answers; it is removed after the block."""
    database = Database(max_connections)
    try:
        database.start()
        yield database
    finally:
        database.remove()


class Database:
    """One server, its data in a temporary folder. Its user `shop` needs no password, and may do everything.

    With another `address` than loopback for the machines of that network.
    """

    def __init__(self, max_connections: int = 35, address: str = "127.0.0.1") -> None:
        self.programs = programs()
        self.port = free_ports(1)
        self.max_connections, self.address = max_connections, address
        self.folder = Path(tempfile.mkdtemp(prefix="proof-database-"))
        if USER:
            shutil.chown(self.folder, USER)
        self.url = f"postgresql+asyncpg://shop@{address}:{self.port}/postgres"
        self.server: subprocess.Popen[bytes] | None = None
        done = subprocess.run(
            [self.programs / "initdb", "--auth=trust", "--username=shop", "--no-sync", f"--pgdata={self.folder}/data"],
            capture_output=True, text=True, user=USER, cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with (self.folder / "data/pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet trust\n")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.server = server = subprocess.Popen(
                [self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-k", self.folder,
                 "-c", f"listen_addresses={self.address}", "-c", f"max_connections={self.max_connections}"],
                stdout=log, stderr=log, user=USER, cwd=self.folder, start_new_session=True,
            )  # fmt: skip

        def answers() -> bool:
            assert server.poll() is None, (self.folder / "log").read_text()
            asked = [self.programs / "pg_isready", f"--host={self.address}", f"--port={self.port}", "--quiet"]
            return subprocess.run(asked).returncode == 0

        until("an answer of the database", answers)

    def stop(self) -> None:
        """The first half of a restart: transactions under way are rolled back, what was committed is on the disk."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """All its processes at once, as when the power fails."""
        self._signal(signal.SIGKILL)
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        if self.server:
            self.kill()
        shutil.rmtree(self.folder)

    def ask(self, statement: str) -> list[str]:
        """The rows of the answer, their columns separated by |."""
        asked = self.psql("--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "--command", statement)
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def psql(self, *options: str) -> list[str]:
        """The command of a session with it."""
        return [str(self.programs / "psql"), "--no-psqlrc", "--dbname", self.url.replace("+asyncpg", ""), *options]

    def _signal(self, number: signal.Signals) -> None:
        assert self.server
        self.server.send_signal(signal.SIGSTOP)  # so that it starts no more processes meanwhile
        listed = subprocess.run(["pgrep", "--parent", str(self.server.pid)], capture_output=True, text=True).stdout
        for pid in (*map(int, listed.split()), self.server.pid):
            os.kill(pid, number)

    def _end(self, number: signal.Signals) -> None:
        assert self.server
        self.server.send_signal(number)
        self.server.wait(60)
        self.server = None
