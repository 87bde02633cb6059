"""The process that runs the native stack's processes (`make up` starts it in the background)."""

from __future__ import annotations

import os
import sys

import honcho.manager

from stack.native import commands
from stack.settings import checked


def main() -> int:
    settings, _ = checked()
    # honcho's own, 5 s, would kill Gunicorn in the middle of its drain.
    honcho.manager.KILL_WAIT = settings.stop_grace_seconds
    manager = honcho.manager.Manager()
    for name, command in commands(settings).items():
        manager.add_process(name, command, env=dict(os.environ), cwd=os.getcwd())
    manager.loop()
    return manager.returncode or 0


if __name__ == "__main__":
    sys.exit(main())
