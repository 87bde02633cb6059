import os
import subprocess
import sys
import time
from pathlib import Path

from bench import cpu


def test_a_process_name_with_blanks_and_brackets_does_not_shift_the_columns() -> None:
    stat = "42 (a ) (b) S 7 42 42 0 -1 4194304 9 0 0 0 11 22 3 4 20 0 1 0 0 0 0"
    assert cpu.parse(stat) == (7, 11 + 22 + 3 + 4)


def test_the_cpu_of_a_child_counts_for_the_tree() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        assert cpu.tree_seconds(child.pid) >= 0.3 - 2 * cpu.TICK_SECONDS
        assert cpu.tree_seconds(os.getpid()) >= cpu.tree_seconds(child.pid)
        child.communicate(b"\n")


def test_a_process_that_waits_uses_none() -> None:
    with subprocess.Popen(["sleep", "5"]) as child:
        before = cpu.tree_seconds(child.pid)
        time.sleep(0.1)
        assert cpu.tree_seconds(child.pid) - before <= cpu.TICK_SECONDS
        child.kill()


def test_the_work_of_a_child_that_has_ended_is_not_other_work() -> None:
    # In this order: other work between the two readings counts for all, and never against what is asserted.
    all_before, other_before = everything(), cpu._used()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"], check=True)
    other_work, all_work = cpu._used() - other_before, everything() - all_before
    assert all_work - other_work >= 0.8


def everything() -> float:
    """Seconds of CPU that all processes of this machine have used."""
    user, nice, system, _idle, _iowait, irq, softirq = Path("/proc/stat").read_text().split()[1:8]
    return sum(map(int, (user, nice, system, irq, softirq))) * cpu.TICK_SECONDS
