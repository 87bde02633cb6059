"""What a worker process is doing: the worker class sets it, /readyz answers with it."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Literal

State = Literal["starting", "ready", "draining"]

state: State = "starting"

_STREAM = "app.server.event_stream"


def mark_stream(scope: MutableMapping[str, Any]) -> None:
    """Say that this request's answer is an event stream: a drain cancels it at once, and ends it with a last chunk.

    Without the mark a stream is known by its request's `Accept: text/event-stream` alone, which not every client
    sends, and lasts until UVICORN_GRACEFUL_SECONDS.
    """
    scope[_STREAM] = True


def is_stream(scope: MutableMapping[str, Any]) -> bool:
    """Whether the answer to this request, once it has begun, is an event stream."""
    if scope.get(_STREAM):
        return True
    # Only GET: a POST may accept an event stream and yet be a request like any other.
    return scope.get("method") == "GET" and any(
        name == b"accept" and b"text/event-stream" in value for name, value in scope["headers"]
    )
