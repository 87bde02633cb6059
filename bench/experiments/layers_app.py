"""Applications for the experiment `layers`: what APP_MODULE names, in one part of the shell, or as tutorials wrap it.

Gunicorn calls one of the functions: what only another of them needs must not be imported.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING, cast

from gunicorn.util import import_app

from app.server import logs
from app.server.asgi import ASGIApp, Message, Receive, Scope, Send
from app.server.metrics import Metrics
from app.server.middleware import RequestMiddleware, RequestResponse
from app.server.worker import metrics as metrics_of_worker
from app.server.worker import settings

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

logger = logging.getLogger("app.requests")


class _One:
    """One part of the shell around an application, for HTTP alone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.http(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError


class _RequestId(_One):
    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                logs.request_id.set(value.decode("latin-1"))
                break
        await self.app(scope, receive, send)


class _Uncounted(Metrics):
    def __init__(self) -> None:
        """No board."""

    def begin(self) -> None:
        """Nothing."""

    def cut(self, reason: str) -> None:
        """Nothing."""

    def stream(self, change: int) -> None:
        """Nothing."""


class _Unrecorded(RequestResponse):
    __slots__ = ()

    def _record(self) -> None:
        """Nothing."""


class _Deadline(_One):
    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        deadline, stall = settings.request_deadline_seconds, settings.answer_stall_seconds
        self.middleware = RequestMiddleware(app, _Uncounted(), deadline, stall, 0)

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Unrecorded(self.middleware, scope, receive, send)
        try:
            await self.middleware.app(scope, receive, request.forward)
        except asyncio.CancelledError:
            if not request.may_be_cancelled():
                raise
        finally:
            is_answered = request.on_end_of_call()
        if not is_answered:
            await request.end(None)


class _Timed(_One):
    """Status and duration of each answer, as two parts of the shell need them."""

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0
        start = perf_counter()

        def forward(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        self.begin()
        await self.app(scope, receive, forward)
        self.end(scope, status, perf_counter() - start)

    def begin(self) -> None:
        """A request has come."""

    def end(self, scope: Scope, status: int, seconds: float) -> None:
        raise NotImplementedError


class _Counted(_Timed):
    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self.metrics = metrics_of_worker

    def begin(self) -> None:
        self.metrics.begin()

    def end(self, scope: Scope, status: int, seconds: float) -> None:
        self.metrics.end(scope["method"], getattr(scope.get("route"), "path", ""), status, seconds)


class _Logged(_Timed):
    def end(self, scope: Scope, status: int, seconds: float) -> None:
        if status >= 500 or seconds >= settings.slow_request_ms / 1000:
            logger.warning("%s %s", scope["method"], scope["path"], extra={"status": status})


def _bare() -> ASGIApp:
    # Not app.server.application: that is the whole shell.
    return cast(ASGIApp, import_app(settings.app_module))


def request_id() -> ASGIApp:
    return _RequestId(_bare())


def deadline() -> ASGIApp:
    return _Deadline(_bare())


def metrics() -> ASGIApp:
    return _Counted(_bare())


def log() -> ASGIApp:
    return _Logged(_bare())


def shell() -> ASGIApp:
    from app.server.application import application

    return application


class _Chosen:
    """All of them in one process, which the first part of the path chooses from: two processes of the same program
    differ by more than a part of the shell costs. The parts get the rest of the path.
    """

    def __init__(self, apps: dict[str, ASGIApp]) -> None:
        self.apps = apps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.apps["bare"](scope, receive, send)
            return
        name, _, path = scope["path"][1:].partition("/")
        scope["path"] = f"/{path}"
        scope["raw_path"] = scope["path"].encode()
        await self.apps[name](scope, receive, send)


def chosen() -> ASGIApp:
    parts = (request_id, deadline, metrics, log, shell)
    return _Chosen({"bare": _bare()} | {part.__name__: part() for part in parts})


def typical() -> ASGIApp:
    """As tutorials have it: metrics of a package, and a middleware that binds the request id and logs each request."""
    import structlog
    from fastapi import FastAPI
    from prometheus_fastapi_instrumentator import Instrumentator
    from starlette.middleware.base import BaseHTTPMiddleware

    app = _bare()
    if not isinstance(app, FastAPI):
        raise TypeError(f"{settings.app_module} is no FastAPI application: the tutorials' middleware is for those")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )
    lines = structlog.get_logger()

    async def log_request(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        structlog.contextvars.clear_contextvars()
        given = request.headers.get("x-request-id") or str(uuid.uuid4())
        structlog.contextvars.bind_contextvars(request_id=given, method=request.method, path=request.url.path)
        begun = time.perf_counter()
        response = await call_next(request)
        duration = time.perf_counter() - begun
        lines.info("request", status=response.status_code, duration_ms=round(duration * 1000, 2))
        response.headers["X-Request-ID"] = given
        return response

    app.add_middleware(BaseHTTPMiddleware, dispatch=log_request)
    Instrumentator().instrument(app).expose(app)
    return app
