"""`make trace ID=…`: what each tier has logged of one request, in the order of time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from stack.console import Failure, say

# As nginx takes one from a client: $stack_request_id in nginx/templates/nginx.conf.template.
PATTERN = re.compile(r"[A-Za-z0-9._-]{8,64}")


def trace(request_id: str, lines: Iterable[tuple[str, str]]) -> None:
    """Print the lines that have the id; each line comes with its tier. Raises Failure where no line has it."""
    if not PATTERN.fullmatch(request_id):
        raise Failure(f"ID={request_id}: must be a request id, as an answer has it in X-Request-ID")
    found = [(tier, entry) for tier, line in lines if (entry := _json(line)) and entry.get("request_id") == request_id]
    if not found:
        raise Failure(f"no line of the logs has {request_id}: nginx writes one up to a second late, and old ones go")
    # nginx's time is that of the end, in whole seconds: its line is the last.
    for tier, entry in sorted(found, key=lambda each: (each[0] == "nginx", each[1]["time"])):
        say(f"{tier:6}  {json.dumps({name: value for name, value in entry.items() if name != 'request_id'})}")


def _json(line: str) -> dict[str, str]:
    if not line.startswith("{"):
        return {}
    try:
        entry: dict[str, str] = json.loads(line)
    except ValueError:  # the app's own, or not whole yet
        return {}
    return entry
