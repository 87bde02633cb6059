"""The settings of gunicorn.conf.py, worker.py and shell.py."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

SETTINGS: list[Setting | Unproven] = []
