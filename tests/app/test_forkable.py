"""What two processes cannot share is found in the one that is about to be forked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In a process of its own: that of the tests has threads and sockets.
SCRIPT = """
import asyncio, os, socket, sqlite3, threading
from app.server import forkable
listener = socket.create_server(("127.0.0.1", 0))
address = listener.getsockname()
before = forkable.descriptors()
{}
print(forkable.obstacle(before).replace(str(address[1]), "PORT").replace(os.getcwd(), "FOLDER"), flush=True)
os._exit(0)
"""
CASES = {
    "pass": "",
    "threading.Thread(target=threading.Event().wait, name='poller').start()": "starts a thread (poller)",
    "kept = socket.socket(fileno=os.dup(listener.fileno()))": "listens at 127.0.0.1:PORT",
    "kept = socket.create_connection(address)": "opens a connection to 127.0.0.1:PORT",
    "kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)": "opens a socket",
    "kept = asyncio.new_event_loop()": "makes an event loop",
    "kept = sqlite3.connect('a.db'); kept.execute('create table t (a)')": "opens the SQLite database FOLDER/a.db",
    "import numpy; numpy.ones((300, 300)) @ numpy.ones((300, 300))": "",  # its threads know of forks
    "kept = open('log', 'a'), os.pipe(), socket.socketpair(), sqlite3.connect(':memory:')": "",
    "asyncio.run(asyncio.sleep(0))": "",  # a loop that has come to its end
}


@pytest.mark.parametrize(("begin", "found"), CASES.items(), ids=range(len(CASES)))
def test_what_an_application_begins_is_found(tmp_path: Path, begin: str, found: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(begin)]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{found}\n", "")
