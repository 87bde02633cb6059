"""What every Locust process loads: the web UI's master and workers, and the workers of `python -m loadtest`."""

import os
import sys

import loadtest.runner  # noqa: F401
from loadtest.base import ModuleError, users

try:
    ClosedLoopUser, ConstantRateUser = users(os.environ.get("LOADTEST_MODULE", ""))
except ModuleError as error:
    sys.exit(f"locust: {error}")
