"""`python -m stack.after URL COMMAND …`: become COMMAND once URL answers."""

from __future__ import annotations

import os
import sys
import time

from stack.console import answers

if __name__ == "__main__":
    url, *command = sys.argv[1:]
    while not answers(url):
        time.sleep(0.05)
    os.execv(command[0], command)
