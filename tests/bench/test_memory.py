import os
import subprocess
import sys

from bench import memory

ROLLUP = """55d0c0a00000-7ffd1b5fe000 ---p 00000000 00:00 0                          [rollup]
Rss:               70656 kB
Pss:               41234 kB
Pss_Dirty:         30000 kB
Pss_Anon:          29000 kB
Swap:                  0 kB
"""


def test_pss_is_read_and_not_its_parts() -> None:
    assert memory.parse(ROLLUP) == 41234 * 1024


def test_a_process_that_ends_has_none() -> None:
    assert memory.parse("") == 0
    assert memory.tree_bytes(1 << 30) == 0


def test_the_memory_of_children_counts() -> None:
    alone = memory.tree_bytes(os.getpid())
    command = [sys.executable, "-c", "held = b'x' * 50_000_000; print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        together = memory.tree_bytes(os.getpid())
        child.stdin.close()
    assert together - alone > 45_000_000
