"""What the commands say, and how they wait."""

from __future__ import annotations

import re
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import NoReturn


class Failure(Exception):
    """A command cannot do what it was asked; the text is for the person who asked."""


class CannotTell(Exception):
    """A check cannot be made: what would have to be asked is not there."""


class Look(Exception):
    """A check found what a person has to judge."""


def run_checks(checks: Sequence[tuple[str, Callable[[], str | None]]], before_fault: str = "\n") -> int:
    """Run each check and print a line for it, with its note or its fault; 1 if one failed."""
    failed = 0
    for name, run in checks:
        try:
            note = run()
            say(f"ok      {name}{': ' + note if note else ''}")
        except CannotTell as reason:
            say(f"skipped {name}: {reason}")
        except Look as question:
            say(f"look    {name}: {question}")
        except Failure as failure:
            failed = 1
            say(f"FAILED  {name}{before_fault}{failure}")
    return failed


def say(line: str) -> None:
    print(line, flush=True)


def fail(line: str, status: int = 1) -> NoReturn:
    print(line, file=sys.stderr, flush=True)
    sys.exit(status)


def wait_for(what: str, happened: Callable[[], bool], seconds: float) -> None:
    """Ask `happened` until it says yes. Raises Failure after `seconds`."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise Failure(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.05)


def app_fault(log: str) -> str | None:
    """The app's own line about an APP_MODULE that cannot be loaded or is no application; None where it is well."""
    found = re.search(r"APP_MODULE=(?:[^\"\\]|\\.)*", log)
    return found[0] if found else None


def answers(url: str, seconds: float = 2) -> bool:
    """Whether `url` answers with a status below 500."""
    try:
        with urllib.request.urlopen(url, timeout=seconds):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections on this port."""
    with socket.socket() as connection:
        connection.settimeout(1)
        return connection.connect_ex((host, port)) == 0
