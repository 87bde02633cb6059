"""What is an ASGI application, and what is said of that which is none."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.endpoints import HTTPEndpoint

from app.server import loader


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": scope["type"]})


def returns_an_awaitable(*args: Any, **kwargs: Any) -> Any:
    return asgi(*args, **kwargs)


async def more(scope: Any, receive: Any, send: Any, option: int = 1) -> None: ...


def create_app(debug: bool = False, config: Any = None, name: str = "") -> FastAPI:
    return FastAPI(debug=debug)


async def create_later() -> FastAPI:
    return FastAPI()


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    return []


class Asgi2:
    def __init__(self, scope: Any) -> None: ...
    async def __call__(self, receive: Any, send: Any) -> None: ...


class Wsgi:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


@pytest.mark.parametrize(
    "application", [asgi, returns_an_awaitable, more, FastAPI(), APIRouter(), HTTPEndpoint, functools.partial(asgi)]
)
def test_what_takes_scope_receive_and_send_is_an_application(application: Any) -> None:
    assert loader.why_no_asgi_application(application) is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (create_app, "a factory, not an ASGI application: for what it returns, write {name}()"),
        (create_later, "a factory"),
        (create_later(), "an async factory"),
        (wsgi, "a function that takes two arguments, as WSGI has it"),
        (Wsgi(), "a Wsgi that takes two arguments, as WSGI has it"),
        (Asgi2, "the class Asgi2"),
        (FastAPI, "the class FastAPI"),
        (lambda scope: None, "a function that does not take the three arguments"),
        (pytest, "module, not an ASGI application"),
        (None, "NoneType, not an ASGI application"),
    ],
)
def test_what_is_none_is_named(found: Any, said: str) -> None:
    assert (loader.why_no_asgi_application(found) or "").startswith(said)


class Holder:
    app = staticmethod(asgi)


def test_a_factory_is_called_and_an_attribute_may_lie_deeper() -> None:
    assert isinstance(loader.load(f"{__name__}:create_app()"), FastAPI)
    assert loader.load(f"{__name__}:Holder.app") is asgi
