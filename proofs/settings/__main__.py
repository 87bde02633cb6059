"""`python -m proofs.settings`: what `make check` says of the proofs: that every setting has one."""

from __future__ import annotations

import sys

from app.server.settings import SettingsError
from proofs.settings import Unproven
from proofs.settings.inventory import inventory
from proofs.settings.table import TABLE, faults


def main() -> int:
    try:
        found = inventory()
        wrong = faults(found)
    except SettingsError as error:
        wrong = [str(error)]
    if wrong:
        print("\n".join(["FAILED  every setting has a proof", *wrong]))
        return 1
    unproven = sum(len(entry.names) for entry in TABLE if isinstance(entry, Unproven))
    note = f"{len(found)} settings, {unproven} of them listed with the reason why not"
    print(f"ok      every setting has a proof: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
