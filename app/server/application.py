"""The ASGI application that Gunicorn's workers load: what APP_MODULE names, inside the middleware."""

from __future__ import annotations

from app.server import cache
from app.server.loader import load
from app.server.middleware import RequestMiddleware
from app.server.worker import metrics, settings

application = RequestMiddleware(
    load(settings.app_module),
    metrics,
    settings.request_deadline_seconds,
    settings.answer_stall_seconds,
    settings.slow_request_ms / 1000,
    cache.offers(settings),
)
