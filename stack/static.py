"""STATIC_ROOT: the folder whose files nginx serves by itself."""

from __future__ import annotations

import os
from pathlib import Path

from stack.console import Failure
from stack.settings import ROOT, StackSettings


def folder(settings: StackSettings) -> Path | None:
    """The folder, whole. None where no row asks for it."""
    return (ROOT / settings.static_root).resolve() if settings.static_root else None


def hold_to_readable(path: Path, mounted: Path, before: str = "") -> None:
    """Raises Failure with one line where nginx may not read what the owner of the clone may."""
    mode = path.stat().st_mode
    if (mode >> 6 & 0o5) & ~mode:
        raise Failure(f"{before}nginx, user 101 in its container, may not read {path}; type: chmod -R a+rX {mounted}")


def check(settings: StackSettings) -> str:
    """Raises Failure with one line where it is none, leads out of the clone, or holds a link, which nginx follows not.

    Also where nginx, another user in its container, may not read it.
    """
    found = folder(settings)
    if found is None:
        return ""
    row = f"STATIC_ROOT={settings.static_root}"
    if not found.is_relative_to(ROOT.resolve()):
        raise Failure(f"{row} leads to {found}, out of this clone: copy the files into a folder of the clone")
    if not found.is_dir():
        raise Failure(f"{row}: {found} is no folder; make it, or leave the row empty")
    count = 0
    for place, folders, files in os.walk(found):
        for name in [*folders, *files]:
            path = Path(place, name)
            if path.is_symlink():
                raise Failure(f"{row}: {path} is a link, which nginx would not follow; put the file itself there")
            hold_to_readable(path, found, f"{row}: ")
        count += len(files)
    return f"{count} files"
