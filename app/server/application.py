"""The ASGI application that Gunicorn's workers load: what APP_MODULE names, inside the middleware."""

from __future__ import annotations

import os
from pathlib import Path

from app.server.loader import load
from app.server.metrics import Metrics
from app.server.middleware import RequestMiddleware
from app.server.settings import Settings, read

settings = read(Settings, os.environ)
application = RequestMiddleware(
    load(settings.app_module),
    Metrics(Path(os.environ["METRICS_DIR"])),
    settings.request_deadline_seconds,
    settings.answer_stall_seconds,
    settings.slow_request_ms / 1000,
)
