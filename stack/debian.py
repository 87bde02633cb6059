"""Programs that the native way and the bench need, from Debian's or Ubuntu's packages."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess

from stack.console import Failure, say

# Also where a user's shell does not look: nginx is in /usr/sbin.
PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"


def found(program: str) -> str | None:
    """Its path, where it is installed."""
    return shutil.which(program, path=PATH)


def can_install() -> bool:
    return os.getuid() == 0 and found("apt-get") is not None


def install(package: str) -> None:
    """Install it with apt-get. Raises Failure with apt-get's last line where that fails."""
    say(f"installing {package} with apt-get")
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PATH": PATH}
    update = ["apt-get", "update", "--quiet"]
    with open(found("apt-get") or "apt-get") as program:
        fcntl.flock(program, fcntl.LOCK_EX)  # of two at once, apt-get fails the second
        for command in (update, ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", package]):
            done = subprocess.run(command, env=environ, capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise Failure(f"{' '.join(command)} failed: {last}; install {package} by hand")
