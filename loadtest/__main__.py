"""`python -m loadtest FOLDER`: one headless run against LOCUST_HOST, its report in a new folder of FOLDER.

Exit status 0: all objectives met, 1: missed, 2: could not run or not measure, 128 + n: ended by signal n.
"""

import sys
from pathlib import Path

import locust  # noqa: F401  # first: gevent replaces the sockets, which warns and may hang once ssl is imported

from loadtest.run import main

if len(sys.argv) != 2:
    print("usage: python -m loadtest FOLDER", file=sys.stderr)
    sys.exit(2)
sys.exit(main(Path(sys.argv[1])))
