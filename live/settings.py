"""The settings of the live service, read from the environment; and the rows of .env that the page names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from live.parts import ROWS


@dataclass(frozen=True)
class Settings:
    host: str  # where it listens
    port: int
    nginx_status: tuple[str, int]
    nginx_tls: tuple[str, int] | None  # None: it serves no HTTPS
    counts: Path
    app_host: str
    app_port: int
    shared: bool  # all workers listen on one port: no address tells one from another
    objectives: tuple[float, ...]  # seconds
    rows: Mapping[str, str]

    @property
    def observer_port(self) -> int:
        """Each replica's observer answers on the port before the first worker's."""
        return self.app_port - 1


class SettingsError(Exception):
    """A variable is missing or wrong; the message is one line for a person."""


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings. Raises SettingsError, with a line that names the variable."""

    def get(name: str) -> str:
        if name not in environ:
            raise SettingsError(f"{name} is not set: put its row back into .env")
        return environ[name]

    def number(name: str, text: str | None = None) -> int:
        text = get(name) if text is None else text
        if not text.isdigit() or int(text) > 3_600_000:
            raise SettingsError(f"{name}={text}: must be a whole number; mend the row in .env, or what overrides it")
        return int(text)

    host, _, port = get("LIVE_NGINX_STATUS").rpartition(":")
    return Settings(
        host=get("LIVE_HOST"),
        port=number("LIVE_PORT"),
        nginx_status=(host, number("LIVE_NGINX_STATUS", port)),
        nginx_tls=None if get("TLS") == "off" else (host, number("HTTPS_PORT")),
        counts=Path(get("NGINX_COUNTS")),
        app_host=get("UPSTREAM_HOST"),
        app_port=number("APP_PORT"),
        shared=get("WORKER_LISTENERS") == "shared",
        objectives=tuple(number(f"SLO_P{share}_MS") / 1000 for share in (50, 95, 99)),
        rows={row: get(row) for row in ROWS},
    )
