"""`python -m stack.again COMMAND …`: run COMMAND, and again whenever it ends, as the engine does in Compose."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

PAUSE_SECONDS = 1.0

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        child = subprocess.Popen(sys.argv[1:])
        try:
            child.wait()
        except (SystemExit, KeyboardInterrupt):
            # Killed: a frozen one would hear nothing else.
            child.kill()
            child.wait()
            raise
        print(f"{' '.join(sys.argv[2:])} ended with status {child.returncode}: started again", flush=True)
        time.sleep(PAUSE_SECONDS)
