"""`python -m app.server.migrate`: runs APP_MIGRATE within its time. Exit status 0 when it has done its work, else 1.

The stack runs it with the new version's code before that gets a request.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel

from app.server.settings import Seconds, SettingsError, read


class MigrationSettings(BaseModel):
    """The rows of .env that it reads."""

    app_migrate: str
    app_migrate_seconds: Seconds


def main() -> int:
    try:
        settings = read(MigrationSettings, os.environ)
    except SettingsError as error:
        return _fail(str(error))
    # As in the image: the programs of the environment that the app runs in.
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    command = subprocess.Popen(
        settings.app_migrate, shell=True, env=os.environ | {"PATH": path}, start_new_session=True
    )

    def end(*_: object) -> None:
        os.killpg(command.pid, signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    name = f"APP_MIGRATE={settings.app_migrate}"
    try:
        status = command.wait(settings.app_migrate_seconds)
    except subprocess.TimeoutExpired:
        end()
        return _fail(f"{name}: not done after APP_MIGRATE_SECONDS={settings.app_migrate_seconds}, so it was killed")
    return _fail(f"{name}: exit status {status}") if status else 0


def _fail(line: str) -> int:
    print(f"migration failed: {line}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
