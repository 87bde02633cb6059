"""What APP_MODULE names: an ASGI application, or a factory that makes one."""

from __future__ import annotations

import importlib
import inspect
import logging
import operator
import sys
from typing import Any, cast

from gunicorn.arbiter import Arbiter

from app.server import worker_state
from app.server.asgi import ASGIApp

logger = logging.getLogger("gunicorn.error")
MANY = 100  # arguments: who takes as many takes any number, as a wrapper does


def load(name: str) -> ASGIApp:
    """The application that `name` stands for: "module:attribute", or "module:function()" for one that makes it.

    Exits with Gunicorn's status for an application that cannot be loaded, after one line that says why.
    """
    module, _, attribute = name.partition(":")
    factory = attribute.endswith("()")
    try:
        found = operator.attrgetter(attribute.removesuffix("()"))(importlib.import_module(module))
        if factory and not _accepts(found, 0):
            _refuse(name, f"{_kind(found)} that cannot be called without arguments: name one that can")
        application = found() if factory else found
    except Exception as error:
        # The traceback belongs to the faults inside the module, not to a name that is wrong.
        missing = isinstance(error, ModuleNotFoundError) and error.name and module.startswith(error.name)
        inside = not missing and not isinstance(error, AttributeError)
        logger.error("APP_MODULE=%s cannot be loaded: %s: %s", name, type(error).__name__, error, exc_info=inside)
        sys.exit(Arbiter.APP_LOAD_ERROR)
    if fault := why_no_asgi_application(application):
        _refuse(name, fault.format(name=name))
    return cast(ASGIApp, application)


def why_no_asgi_application(found: Any) -> str | None:
    """What `found` is instead, and what to do; None for what can be called with scope, receive and send.

    Uvicorn tells by `async def`, and would miss a wrapper that only returns what is awaited. By its arguments an
    application is known before the first request.
    """
    if inspect.iscoroutine(found):
        found.close()  # else Python warns that nobody awaited it
        return "an async factory, whose application nobody awaits: make it def, and start what is async in the lifespan"
    if not callable(found):
        return f"{type(found).__name__}, not an ASGI application"
    if inspect.isclass(found) and not hasattr(found, "__await__"):
        return f"the class {found.__name__}, not an ASGI application: name an instance of it"
    if _accepts(found, 0) and not _accepts(found, MANY):
        return "a factory, not an ASGI application: for what it returns, write {name}()"
    if _accepts(found, 3):
        return None
    if _accepts(found, 2):
        return (
            f"{_kind(found)} that takes two arguments, as WSGI has it, not an ASGI application: wrap it "
            "(a2wsgi.WSGIMiddleware)"
        )
    return f"{_kind(found)} that does not take the three arguments of an ASGI application: scope, receive and send"


def _refuse(name: str, fault: str) -> None:
    worker_state.startup_failure = f"APP_MODULE={name} is {fault}"
    logger.error(worker_state.startup_failure)
    sys.exit(Arbiter.APP_LOAD_ERROR)


def _kind(found: Any) -> str:
    return "a function" if inspect.isroutine(found) else f"a {type(found).__name__}"


def _accepts(found: Any, arguments: int) -> bool:
    """Whether it can be called with this many; True where that cannot be known, as of some that are written in C."""
    try:
        inspect.signature(found).bind(*range(arguments))
    except ValueError:
        return True
    except TypeError:
        return False
    return True
