"""The settings of docker-compose.yml."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

SETTINGS: list[Setting | Unproven] = []
