"""CACHE_MB: what nginx keeps of the app's answers goes when other code answers."""

from __future__ import annotations


def empty(folder: str) -> list[str]:
    """The command that makes nginx forget all that it keeps in `folder`; where there is none it does nothing.

    The first byte of a file is nginx's version of the format. By another one a file is no answer: it is asked for anew,
    and goes when nginx makes room. Without the file nginx would say in the log, each time, that it cannot remove it.
    sed writes a new file: a client that is being sent the old one gets it whole.
    """
    change = "sed -i '1s/^./\\x00/'"
    return ["sh", "-c", f"[ ! -d {folder} ] || LC_ALL=C find {folder} -type f -exec {change} {{}} +"]
