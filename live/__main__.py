"""`python -m live`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback

from live.server import Server
from live.settings import SettingsError, read
from live.watch import Watch


def end(fault: threading.ExceptHookArgs) -> None:
    """End with the fault of a thread: it is started again, and without what that thread did it would tell nothing."""
    traceback.print_exception(fault.exc_value)
    os._exit(1)


def main() -> int:
    try:
        settings = read()
        watch = Watch(settings)
        server = Server(watch)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"LIVE_PORT={settings.port}: {error.strerror}; stop what listens there, or change the row in .env",
              file=sys.stderr)  # fmt: skip
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # nobody loses anything: pages connect again
    threading.excepthook = end
    threading.Thread(target=watch.run, daemon=True).start()
    server.daemon_threads = True
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
