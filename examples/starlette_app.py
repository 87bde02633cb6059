"""A Starlette application: make capacity APP_MODULE=examples.starlette_app:app PATHS="/ /items/7" """

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def index(request: Request) -> JSONResponse:
    return JSONResponse({"items": "/items/{number}"})


async def item(request: Request) -> JSONResponse:
    return JSONResponse({"number": request.path_params["number"]})


app = Starlette(routes=[Route("/", index), Route("/items/{number:int}", item)])
