"""The settings of the rows of .env that are no value of a directive or key elsewhere."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

SETTINGS: list[Setting | Unproven] = []
