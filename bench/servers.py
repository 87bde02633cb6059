"""ASGI servers that can serve the same application: how each is started, and how it keeps idle connections longest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from stack import native

APPLICATION = "app.server.application:application"


@dataclass(frozen=True)
class Server:
    """A server. `command` has {bin}, {port} and {workers} to fill in; `longest` are its options for idle connections
    that are kept as long as it can, "" where it has none.
    """

    name: str
    package: str
    command: str
    longest: str = ""

    def line(self, port: int, workers: int, options: str = "", application: str = APPLICATION) -> str:
        """The command for a shell, without `exec`."""
        command = fill_in(self.command, {"bin": str(native.BIN), "port": str(port), "workers": str(workers)})
        return " ".join(filter(None, (command, options, application)))

    def why_not(self) -> str | None:
        """Why it cannot be had; None where it can."""
        try:
            version(self.package)
        except PackageNotFoundError:
            return f"{self.name}: the package {self.package} is not installed (make test installs it)"
        return None


def fill_in(command: str, values: Mapping[str, str]) -> str:
    """Put `values` in for {name}; what is not among them stays as it is."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), command)


SERVERS = (
    Server(
        "uvicorn --workers",
        "uvicorn",
        "{bin}/uvicorn --host 127.0.0.1 --port {port} --workers {workers} --backlog 2048 --http httptools "
        "--no-access-log --no-server-header --no-date-header --timeout-graceful-shutdown 15",
        longest="--timeout-keep-alive 75",
    ),
    Server(
        "Gunicorn's ASGI worker",
        "gunicorn",
        "{bin}/gunicorn --bind 127.0.0.1:{port} --workers {workers} --worker-class asgi --backlog 2048 "
        "--graceful-timeout 20 --no-control-socket",
        longest="--keep-alive 75",
    ),
    Server(
        "Hypercorn",
        "hypercorn",
        "{bin}/hypercorn --bind 127.0.0.1:{port} --workers {workers} --worker-class uvloop --backlog 2048 "
        "--graceful-timeout 15",
        longest="--keep-alive 75",
    ),
    # It has neither workers nor an option for idle connections: Twisted's own time, 60 s.
    Server(
        "Daphne",
        "daphne",
        "{bin}/python -m bench.several {workers} {port} {bin}/daphne --fd {fd} -v 0 --no-server-name",
    ),
    # Of idle connections it knows only the time for a header.
    Server(
        "Granian",
        "granian",
        "{bin}/granian --interface asgi --host 127.0.0.1 --port {port} --workers {workers} --loop uvloop "
        "--backlog 2048 --http 1 --no-ws --respawn-failed-workers --log-level warning",
        longest="--http1-header-read-timeout 60000",
    ),
)
