"""A Django site of two sync views. Django gives each request under way a thread of its own."""

from __future__ import annotations

import time

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path


def slow(request: HttpRequest) -> HttpResponse:
    time.sleep(float(request.GET["seconds"]))
    return HttpResponse("slow")


def light(request: HttpRequest) -> HttpResponse:
    return HttpResponse("light")


urlpatterns = [path("slow", slow), path("light", light)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="of a proof")
application = get_asgi_application()
