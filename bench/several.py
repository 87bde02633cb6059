"""python -m bench.several COUNT PORT COMMAND...: as many processes of a server that manages none, on one socket.

Daphne is one. `{fd}` in the command is the descriptor of the socket. HUP replaces one after the other, TERM ends all.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

# A new process says to nobody that it serves: so long its predecessor's siblings serve alone.
START_SECONDS = 2
BACKLOG = 2048


def main(count: int, port: int, command: list[str]) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    listener.setblocking(False)
    number = listener.fileno()
    given = [word.replace("{fd}", str(number)) for word in command]
    signals = {signal.SIGHUP, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def start() -> subprocess.Popen[bytes]:
        # A new process has its parent's mask, and would never hear of its end.
        return subprocess.Popen(
            given, pass_fds=[number], preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        )

    running = [start() for _ in range(count)]
    while signal.sigwait(signals) != signal.SIGTERM:
        for place, old in enumerate(running):
            _end([old])
            running[place] = start()
            if signal.sigtimedwait({signal.SIGTERM}, START_SECONDS):
                os.kill(os.getpid(), signal.SIGTERM)  # for the loop
                break
    _end(running)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
