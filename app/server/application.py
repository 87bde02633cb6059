"""The ASGI application that Gunicorn's workers load: what APP_MODULE names, inside the middleware."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import cast

from gunicorn.arbiter import Arbiter

from app.server.asgi import ASGIApp
from app.server.metrics import Metrics
from app.server.middleware import RequestMiddleware
from app.server.settings import Settings, read

logger = logging.getLogger("gunicorn.error")


def load(name: str) -> ASGIApp:
    """The object that `name` ("module:attribute") stands for.

    Exits with Gunicorn's status for an application that cannot be loaded, after one line that says why.
    """
    module, _, attribute = name.partition(":")
    try:
        application = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        # The traceback belongs to the faults inside the module, not to a name that is wrong.
        missing = isinstance(error, ModuleNotFoundError) and error.name and module.startswith(error.name)
        inside = not missing and not isinstance(error, AttributeError)
        logger.error("APP_MODULE=%s cannot be loaded: %s: %s", name, type(error).__name__, error, exc_info=inside)
        sys.exit(Arbiter.APP_LOAD_ERROR)
    if not callable(application):
        logger.error("APP_MODULE=%s is %s, not an ASGI application", name, type(application).__name__)
        sys.exit(Arbiter.APP_LOAD_ERROR)
    return cast(ASGIApp, application)


settings = read(Settings, os.environ)
application = RequestMiddleware(
    load(settings.app_module),
    Metrics(Path(os.environ["METRICS_DIR"])),
    settings.request_deadline_seconds,
    settings.answer_stall_seconds,
    settings.slow_request_ms / 1000,
)
