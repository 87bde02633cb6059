"""A page that everybody may keep: APP_MODULE=bench.experiments.cache_app:app."""

from __future__ import annotations

from fastapi import FastAPI, Response

app = FastAPI()


@app.get("/")
def root() -> str:
    return "ok"


@app.get("/page")
async def page(response: Response) -> dict[str, list[int]]:
    response.headers["Cache-Control"] = "public, max-age=5, stale-while-revalidate=60"
    return {"items": list(range(100))}
