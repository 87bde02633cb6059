import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import pytest

from bench import idle_load
from bench.processes import CannotRun
from stack.settings import ROOT

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@contextmanager
def server(answer: bytes = ANSWER, stays: bool = True) -> Iterator[tuple[int, list[socket.socket]]]:
    """Answers the first request of each connection, and keeps it open or not; its port, and what is open."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        opened: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                opened.append(client)  # before its answer: the test looks as soon as that is there
                with suppress(ConnectionResetError):  # another's answer was an error, and all are gone
                    client.recv(65536)
                    client.sendall(answer)
                if not stays:
                    client.close()

        thread = Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], opened
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in opened:
                client.close()


def test_the_connections_are_open_for_as_long_as_the_block_lasts() -> None:
    with server() as (port, opened):
        with idle_load.held(port, 450):
            assert len(opened) == 450
            assert len({client.getpeername()[0] for client in opened}) == len(idle_load.SOURCES)
        for client in opened:
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_connections_that_do_not_stay_are_no_idle_clients() -> None:
    lost = pytest.raises(CannotRun, match="of 20 idle connections were closed meanwhile")
    with server(stays=False) as (port, _), lost, idle_load.held(port, 20):
        pass


def test_a_first_answer_that_is_an_error_is_told() -> None:
    told = pytest.raises(CannotRun, match="503 Service Unavailable")
    with server(b"HTTP/1.1 503 Service Unavailable\r\n\r\n") as (port, _), told, idle_load.held(port, 3):
        pass


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(CannotRun, match=r"3 of 3 idle connections were open: .*refused"), idle_load.held(port, 3):
        pass


def test_the_soft_limit_is_raised_to_what_is_needed_or_to_the_hard_one() -> None:
    code = (
        "import resource; from bench import idle_load; resource.setrlimit(resource.RLIMIT_NOFILE, (300, 4096));"
        "print(idle_load.allow(100), resource.getrlimit(resource.RLIMIT_NOFILE)[0]);"
        "print(idle_load.allow(10_000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    reserved = idle_load.RESERVED
    assert done.stdout.split() == ["100", str(100 + reserved), str(4096 - reserved), "4096"]


def test_as_many_as_descriptors_and_source_ports_allow() -> None:
    ports = (32768, 60999)
    assert idle_load.allowed(10_000, 20_000, ports) == 10_000
    assert idle_load.allowed(10_000, 4_096, ports) == 4_096 - idle_load.RESERVED
    assert idle_load.allowed(10_000, 256, ports) == 0
    assert idle_load.allowed(10_000, 20_000, (60_000, 61_000)) == len(idle_load.SOURCES) * 750
