"""The settings of proxy.conf and upstream.conf."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

SETTINGS: list[Setting | Unproven] = []
