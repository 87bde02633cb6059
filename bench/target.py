"""What is loaded: the application that APP_MODULE names, and the paths of it that PATHS names. Any ASGI app will do."""

from __future__ import annotations

import http.client
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.load import Request
from bench.processes import CannotRun
from stack.console import app_fault
from stack.settings import rows

# What a request line takes as it is: no blanks, no control characters, nothing outside ASCII.
PATH = re.compile(r"/[!-~]*")


@dataclass(frozen=True)
class Target:
    """An application, and the paths that are asked of it in turn, with GET."""

    module: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.module}, GET {' '.join(self.paths)}"


def given(environ: Mapping[str, str] = os.environ) -> Target:
    """The app of .env, or the one that overrides it, and PATHS. Raises CannotRun where a path is none."""
    paths = environ.get("PATHS", "").split() or ["/"]
    for path in paths:
        if not PATH.fullmatch(path):
            raise CannotRun(
                f"PATHS={environ['PATHS']}: {path!r} is no path; each must begin with / and have no characters but "
                'those of a URL: PATHS="/ /items?limit=10"'
            )
    return Target(rows()["APP_MODULE"], tuple(paths))


def asked(request: Request) -> Request:
    """The same request for the first of PATHS, where there are any."""
    return replace(request, path=given().paths[0])


def require_answers(port: int, target: Target) -> None:
    """Raises CannotRun unless each path answers GET with 2xx on `port`: a load of errors would measure nothing."""
    for path in target.paths:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            found = f"{answer.status} {answer.reason}"
            right = 200 <= answer.status < 300
        except (OSError, http.client.HTTPException) as error:
            found, right = f"{type(error).__name__}: {error}", False
        finally:
            connection.close()
        if not right:
            raise CannotRun(
                f'PATHS="{" ".join(target.paths)}": GET {path} of {target.module} answered {found}; it must be 2xx: '
                "give paths that this app answers to, as PATHS=/items"
            )


def why_not_loaded(log: Path) -> str | None:
    """The app's own line about an APP_MODULE that cannot be loaded, with what to do; None where it is another fault."""
    try:
        found = app_fault(log.read_text())
    except OSError:
        return None
    if not found:
        return None
    if " cannot be loaded: " not in found:
        return found
    return (
        f"{found}; it must be module:attribute of an ASGI application that .venv/bin/python can import: install it "
        "there, or say where it is with PYTHONPATH=FOLDER"
    )
