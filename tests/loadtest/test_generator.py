"""When the load generator itself is called the bottleneck, and when a worker's container is called healthy."""

import subprocess
import time
from pathlib import Path

from loadtest.generator import Usage, advice, is_saturated, requests_of_one
from loadtest.probe import connected
from proofs.stack import until

TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0200A8C0:A1B2 0300A8C0:{port} {state} 00000000:00000000 00:00000000 00000000 10001        0 1 1 0 20 4 30 10 -1
"""


def test_a_process_busy_for_a_quarter_of_the_time_is_the_bottleneck() -> None:
    assert is_saturated([0.95] * 5 + [0.3] * 15)


def test_a_short_burst_is_not_the_bottleneck() -> None:
    assert not is_saturated([0.95] * 4 + [0.3] * 16)


def test_a_run_that_ended_before_a_sample_names_no_bottleneck() -> None:
    assert not is_saturated([])


def test_a_process_that_computes_is_seen_to_be_busy() -> None:
    usage = Usage("this one")
    start = time.monotonic()
    while time.monotonic() < start + 0.3:
        pass
    usage.sample(time.monotonic() - start)
    assert usage.busy[0] > 0.6, usage


def test_a_process_that_sleeps_is_not_busy() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        until("its sleep", lambda: ") S " in Path(f"/proc/{child.pid}/stat").read_text())
        usage = Usage("it", pid=child.pid)
        time.sleep(0.3)
        usage.sample(0.3)
        child.kill()
    assert usage.busy[0] < 0.5, usage


def test_a_worker_is_healthy_while_connected_to_its_master() -> None:
    assert connected(TABLE.format(port="15B5", state="01"))
    assert not connected(TABLE.format(port="15B5", state="06")), "a closed connection"
    assert not connected(TABLE.format(port="0050", state="01")), "a connection to the target"


def test_what_one_process_can_send_follows_from_its_cpu() -> None:
    workers = [Usage("worker 1", cpu=[0.3, 0.3]), Usage("worker 2", cpu=[0.2, 0.2])]
    assert requests_of_one(workers, 1000) == 1400  # 0.5 CPUs for 1000: 2000 in a whole one, of which 70 %
    assert requests_of_one([], 1000) == requests_of_one(workers, 0) == 0


def test_the_processes_for_a_rate_are_said() -> None:
    assert advice(1400, 3000).endswith("LOADTEST_RATE=3000 needs 3")
    assert "LOADTEST_RATE" not in advice(1400, 0)
