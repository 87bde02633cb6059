"""The process that runs the native stack's processes (`make up` starts it in the background)."""

from __future__ import annotations

import contextlib
import io
import os
import sys

import honcho.manager
import honcho.printer

from stack.console import Failure, fail
from stack.native import commands, take_lock
from stack.settings import app_variables, checked


class Log(io.TextIOBase):
    """Standard output, on which a line that cannot be written is lost: a full disk must not stop the stack."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(1, text.encode())
        return len(text)


def main() -> int:
    settings, table = checked()
    try:
        lock = take_lock()
    except Failure as failure:
        fail(str(failure))
    # honcho's own, 5 s, would kill Gunicorn in the middle of its drain.
    honcho.manager.KILL_WAIT = settings.stop_grace_seconds
    manager = honcho.manager.Manager(honcho.printer.Printer(Log()))
    for name, command in commands(settings).items():
        environ = os.environ | (app_variables(table) if name == "app" else {})
        manager.add_process(name, command, env=environ, cwd=os.getcwd())
    with lock:
        manager.loop()
    return manager.returncode or 0


if __name__ == "__main__":
    sys.exit(main())
