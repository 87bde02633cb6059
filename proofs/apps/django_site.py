"""A Django site of sync views. Django gives each request under way a thread of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

RELEASED = Path(os.environ["DATA_DIR"], "released")


def slow(request: HttpRequest) -> HttpResponse:
    """Takes so long, or until /release is asked for."""
    end = time.monotonic() + float(request.GET["seconds"])
    while time.monotonic() < end and not RELEASED.exists():
        time.sleep(0.5)
    return HttpResponse("slow")


def release(request: HttpRequest) -> HttpResponse:
    RELEASED.touch()
    return HttpResponse("released")


def light(request: HttpRequest) -> HttpResponse:
    return HttpResponse("light")


urlpatterns = [path("slow", slow), path("release", release), path("light", light)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="of a proof")
application = get_asgi_application()
