"""Which answers the shell offers to nginx's cache (CACHE_MB, CACHE_PATHS): those that it may keep for everybody.

nginx keeps an answer only where its header X-Accel-Buffering asks for a buffer, and takes the header out. By
Cache-Control it knows for how long. docs/cache.md has the rules, which are those of RFC 9111 for a shared cache.
"""

from __future__ import annotations

from email.utils import formatdate
from functools import lru_cache
from time import monotonic

from app.server.asgi import Message, Scope
from app.server.settings import Settings

# nginx looks every 10 s whether its cache has grown too large.
LOOK_SECONDS = 10
# A file's page that is not full, and nginx's header of it.
FILE_BYTES = 8 << 10
# Whoever sees one of these keeps nothing.
FORBID = {b"no-store", b"no-cache", b"private"}
# They say that nothing stale may be served, and these for how long it may: who sends both is not understood.
NEVER_STALE = {b"must-revalidate", b"proxy-revalidate"}
STALE = {b"stale-while-revalidate", b"stale-if-error"}


@lru_cache(maxsize=256)
def lets_keep(cache_control: bytes) -> bool:
    """Whether this Cache-Control lets a shared cache keep an answer, and says for how long. In doubt it does not."""
    said: dict[bytes, bytes] = {}
    for part in cache_control.lower().split(b","):
        name, _, value = (piece.strip() for piece in part.partition(b"="))
        if said.setdefault(name, value) != value:
            return False
    if said.keys() & FORBID or (said.keys() & NEVER_STALE and said.keys() & STALE):
        return False
    numbers = [said[name] for name in (b"s-maxage", b"max-age", *STALE) if name in said]
    # nginx would read a longer number as another one.
    if not all(number.isdigit() and len(number) < 10 for number in numbers):
        return False
    return int(said.get(b"s-maxage", said.get(b"max-age", b"0"))) > 0


class Offers:
    """A worker's share of what nginx takes in before it looks again: more would fill the memory that uploads need."""

    def __init__(self, paths: tuple[str, ...], share_bytes: int) -> None:
        self.paths = paths
        self.share_bytes = share_bytes
        self._left = share_bytes
        self._until = 0.0

    def look_at(self, scope: Scope, message: Message) -> None:
        """Offer this beginning of an answer, where nginx may keep it."""
        if scope["method"] != "GET" or message["status"] in (206, 304) or not scope["path"].startswith(self.paths):
            return
        headers: dict[bytes, bytes] = {}
        for name, value in message.get("headers", ()):
            key = name.lower()
            headers[key] = headers[key] + b"," + value if key in headers else value
        length = headers.get(b"content-length", b"")
        if (
            not lets_keep(headers.get(b"cache-control", b""))
            or not length.isdigit()
            or b"set-cookie" in headers
            or b"age" in headers  # another cache has had it: nginx would count from now
            or b"x-accel-buffering" in headers
            or b"*" in headers.get(b"vary", b"")
            or any(name == b"authorization" for name, _ in scope["headers"])
        ):
            return
        if (now := monotonic()) >= self._until:
            self._left, self._until = self.share_bytes, now + LOOK_SECONDS
        size = int(length) + FILE_BYTES
        if size > self._left:
            return
        self._left -= size
        added = [(b"x-accel-buffering", b"yes")]
        if b"date" not in headers:
            added.append((b"date", formatdate(usegmt=True).encode()))
        message["headers"] = [*message["headers"], *added]


def offers(settings: Settings) -> Offers | None:
    """None where nothing is kept. All workers together, with those of a deploy, offer CACHE_MB at most at a time."""
    if not settings.cache_mb:
        return None
    # Two looks of nginx's may have two of these times between them.
    workers = settings.workers * (settings.app_replicas + 1) * 2
    return Offers(tuple(settings.cache_paths.split()), (settings.cache_mb << 20) // workers)
