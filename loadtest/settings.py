"""Reads LOADTEST_*, SLO_* and LOCUST_HOST from the environment; every wrong one is named in a line of its own."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from loadtest.objectives import Objectives

SHAPES = ("closed", "rate")
MOST = 1_000_000


class SettingsError(Exception):
    """One line for each setting that is missing or wrong: its value, what it must be, what to do."""


@dataclass(frozen=True)
class Settings:
    """One headless run. `users` counts in a closed loop, `rate` (requests per second) at a constant arrival rate."""

    target: str
    module: str
    shape: str
    users: int
    rate: int
    seconds: int
    warmup_seconds: int
    processes: int
    objectives: Objectives
    # The processes are containers of other machines, and come by themselves (make loadtest WAY=swarm).
    elsewhere: bool = False


def read(environment: Mapping[str, str]) -> Settings:
    """Raises SettingsError with all that is wrong at once."""
    wrong: list[str] = []

    def number(name: str, least: int, most: int = MOST) -> float:
        text = environment.get(name, "")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            wrong.append(_line(name, text, f"a number from {least} to {most}"))
        return value

    def whole(name: str, least: int, most: int = MOST) -> int:
        text = environment.get(name, "")
        value = int(text) if text.isascii() and text.isdigit() else -1
        if not least <= value <= most:
            wrong.append(_line(name, text, f"a whole number from {least} to {most}"))
        return value

    target = environment.get("LOCUST_HOST", "").rstrip("/")
    if not _is_http(target):
        wrong.append(_line("LOCUST_HOST", target, "the address of the stack, such as http://127.0.0.1:80"))
    module = environment.get("LOADTEST_MODULE", "")
    if not module:
        wrong.append(_line("LOADTEST_MODULE", module, "a module: loadtest.demo, or loadtest.users from `make users`"))
    shape = environment.get("LOADTEST_SHAPE", "")
    if shape not in SHAPES:
        wrong.append(_line("LOADTEST_SHAPE", shape, f"one of: {', '.join(SHAPES)}"))
    settings = Settings(
        target=target,
        module=module,
        shape=shape,
        users=whole("LOADTEST_USERS", 1),
        rate=(rate := whole("LOADTEST_RATE", 1)),
        seconds=whole("LOADTEST_SECONDS", 1),
        warmup_seconds=whole("LOADTEST_WARMUP_SECONDS", 0),
        processes=whole("LOADTEST_PROCESSES", 1, 64),
        objectives=Objectives(
            p50_ms=number("SLO_P50_MS", 0),
            p95_ms=number("SLO_P95_MS", 0),
            p99_ms=number("SLO_P99_MS", 0),
            error_share=number("SLO_ERROR_SHARE", 0, 1),
            min_rps=number("SLO_MIN_RPS", 0),
            rate=rate if shape == "rate" else None,
        ),
        elsewhere="LOADTEST_ELSEWHERE" in environment,
    )
    if shape == "rate" and not wrong and settings.objectives.min_rps > rate:
        wrong.append(
            f"SLO_MIN_RPS={settings.objectives.min_rps:g} can never be met at LOADTEST_RATE={rate}: "
            "raise the rate or lower the objective"
        )
    if wrong:
        raise SettingsError("\n".join(wrong))
    return settings


def plain_names(server_names: str) -> list[str]:
    """Those of SERVER_NAMES that are host names, without wildcards and regular expressions."""
    return [name for name in server_names.split() if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name)]


def visited_name(environment: Mapping[str, str]) -> str:
    """The name that visitors ask for by HTTPS: the first of ACME_NAMES, else of SERVER_NAMES, else localhost."""
    return next(
        iter(plain_names(" ".join(environment.get(row, "") for row in ("ACME_NAMES", "SERVER_NAMES")))), "localhost"
    )


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _line(name: str, value: str, must: str) -> str:
    seen = f"{name}={value}" if value else f"{name} is not set"
    return f"{seen}: it must be {must}; set it in .env or on the command line"
