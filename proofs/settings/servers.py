"""The settings of the servers of nginx.conf, answers.conf and errors.conf."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

SETTINGS: list[Setting | Unproven] = []
