"""The table of all settings: what each does, and the change to it that a proof must notice.

`make mutate` makes each change in a copy of the tree and runs the proofs named here, which must fail.
`make check` holds the table to the inventory (proofs/settings/inventory.py), which is made by parsing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proofs.stack import Patch


@dataclass(frozen=True)
class Setting:
    """One change that must not go unnoticed.

    `names` are those of the inventory that the change concerns: a directive and the row of .env that is its value go
    together. `default` is what holds where nothing is said. `change` says in a few words what `patches` put in its
    place: "removed", "60s, the default". `proofs` are pytest's ids, of which at least one must fail with the change.
    """

    names: Sequence[str]
    does: str
    default: str
    change: str
    patches: Sequence[Patch]
    proofs: Sequence[str]
    # With the change the stack does not even start, and that is what a person notices.
    breaks_start: bool = False


@dataclass(frozen=True)
class Unproven:
    """A setting that cannot be proved here, and why. At most one in twenty."""

    names: Sequence[str]
    does: str
    default: str
    reason: str
