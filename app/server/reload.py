"""`python -m app.server.reload`: load the application's code anew, wait, and say what came of it.

Exit status 0 when every worker runs the new code; 1, with the reason, when the old one serves on.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from app.server import status


def main() -> int:
    before = status.read()
    if before is None:
        return _fail("the app is not running: start it with make up")
    if before["state"] in ("starting", "reloading"):
        return _fail(f"generation {before['attempt']} is still {before['state']}: wait for it, then ask again")
    begun = time.monotonic()
    os.kill(before["master"], signal.SIGHUP)
    # The master holds each worker to its own deadline; this one only ends a wait for a master that is stuck.
    limit = begun + (len(before["workers"]) + 1) * (int(os.environ["APP_START_SECONDS"]) + 10)
    limit += int(os.environ["GUNICORN_GRACEFUL_SECONDS"])
    while time.monotonic() < limit:
        now = status.read()
        if now is None:
            return _fail("the app has stopped meanwhile")
        # An old worker answers on its open connections, with the old code, until it finishes or has left.
        old = [worker["state"] for worker in now["workers"] if worker["generation"] < now["generation"]]
        if now["attempt"] > before["attempt"] and now["state"] == "ready" and set(old) <= {"finishing"}:
            rest = f"; {len(old)} old workers finish what they have begun" if old else ""
            print(f"reloaded: generation {now['generation']} is ready, {time.monotonic() - begun:.1f} s{rest}")
            return 0
        if now["attempt"] > before["attempt"] and now["state"] == "failed":
            return _fail(f"{now['reason']}; generation {now['generation']} serves on")
        time.sleep(0.1)
    return _fail("no outcome in time: see the app's log")


def _fail(reason: str) -> int:
    print(f"not reloaded: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
