"""The settings of the app container, read from the environment. Their one home is .env: nothing has a default here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

Seconds = Annotated[int, Field(ge=1, le=3600)]
Milliseconds = Annotated[int, Field(ge=1, le=3_600_000)]
Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Memory = Annotated[str, Field(pattern=r"^[1-9]\d*[kmg]$", description="must be a number with k, m or g, as 512m")]


def _power_of_ten(number: int) -> int:
    if str(number).rstrip("0") != "1":
        raise ValueError("no power of ten")
    return number


class SettingsError(Exception):
    """The environment is no good. Each line of the message is one fault: the row, its value, what it must be."""


class Settings(BaseModel):
    """One field for each environment variable, in lower case; the names carry the units."""

    model_config = ConfigDict(frozen=True)

    app_module: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(\(\))?$",
            description="must be module:attribute, as app.yours:app, or module:function() for a factory",
        ),
    ]
    workers: Annotated[int, Field(ge=1, le=256)]
    worker_start: Literal["fork", "import"]
    worker_listeners: Literal["per-worker", "shared"]
    max_requests: Annotated[int, Field(ge=0)]
    max_requests_jitter: Annotated[int, Field(ge=0)]
    worker_memory_mb: Annotated[int, Field(ge=0, le=1_000_000)]
    log_level: Literal["debug", "info", "warning", "error"]
    slow_request_ms: Milliseconds

    app_host: str
    app_port: Annotated[int, Field(ge=3, le=65535)]  # the two before are the observer's and nginx's counters'
    listen_backlog: Annotated[int, Field(ge=1, le=65535)]
    trusted_proxies: str

    proxy_connect_timeout_ms: Milliseconds
    proxy_next_upstream_timeout_ms: Milliseconds
    proxy_next_upstream_tries: Annotated[int, Field(ge=1, le=1000)]
    proxy_read_timeout_seconds: Seconds
    upstream_keepalive_seconds: Seconds
    request_deadline_seconds: Seconds
    answer_stall_seconds: Seconds
    event_stream_ping_seconds: Seconds
    app_keepalive_seconds: Seconds
    websocket_ping_seconds: Seconds
    drain_seconds: Seconds
    replaced_worker_seconds: Annotated[int, Field(ge=1, le=86_400)]
    uvicorn_graceful_seconds: Seconds
    gunicorn_graceful_seconds: Seconds
    nginx_shutdown_seconds: Seconds
    stop_grace_seconds: Seconds
    stop_delay_seconds: Annotated[int, Field(ge=0, le=3600)]
    app_start_seconds: Seconds
    worker_timeout_seconds: Seconds
    longest_block_seconds: Seconds

    slo_p50_ms: Milliseconds
    slo_p95_ms: Milliseconds
    slo_p99_ms: Milliseconds

    database_pool_size: Annotated[int, Field(ge=0, le=10_000)]
    database_max_connections: Annotated[int, Field(ge=0, le=262_143)]
    app_replicas: Annotated[int, Field(ge=1, le=100)]
    cache_mb: Annotated[int, Field(ge=0, le=1_000_000)]
    cache_paths: Annotated[
        str,
        Field(
            pattern=r"^(/[A-Za-z0-9/._~-]*( /[A-Za-z0-9/._~-]*)*)?$",
            description="must be beginnings of paths with a blank between, as /catalog/ /feed",
        ),
    ]
    tls: Literal["off", "files", "acme"]
    http3: Literal["on", "off"]
    client_max_body_bytes: Annotated[int, Field(ge=1)]
    client_max_header_bytes: Annotated[int, Field(ge=1024, le=1 << 20)]
    client_body_buffer_bytes: Annotated[
        int, AfterValidator(_power_of_ten), Field(ge=1000, description="must be a power of ten from 1000 on, as 100000")
    ]
    client_max_requests_in_flight: Count
    client_max_uploads_in_flight: Count
    nginx_max_requests_in_flight: Count
    nginx_max_uploads_in_flight: Count
    app_max_requests_in_flight: Annotated[int, Field(ge=0, le=1_000_000)]
    nginx_workers: Annotated[int, Field(ge=1, le=256)]
    nginx_worker_connections: Annotated[int, Field(ge=64, le=1_000_000)]
    upstream_keepalive_connections: Count
    proxy_buffer_bytes: Annotated[int, Field(ge=4096, le=1 << 20)]
    client_socket_buffer_bytes: Annotated[int, Field(ge=4096, le=1 << 26)]
    app_socket_buffer_bytes: Annotated[int, Field(ge=16_384, le=1 << 26)]
    nginx_memory: Memory
    nginx_tmp: Memory
    nginx_pids: Count
    app_memory: Memory
    app_tmp: Memory
    app_pids: Count

    @property
    def listeners(self) -> int:
        """How many ports the app listens on, from app_port on: one for each worker, or one for all."""
        return self.workers if self.worker_listeners == "per-worker" else 1


AnyModel = TypeVar("AnyModel", bound=BaseModel)


def read(model: type[AnyModel], environ: Mapping[str, str]) -> AnyModel:
    """Fill `model` from the variables of its fields' names in upper case.

    Raises SettingsError with a line for each variable that is missing or wrong.
    """
    present = {name: environ[name.upper()] for name in model.model_fields if name.upper() in environ}
    try:
        return model.model_validate(present)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            field = str(fault["loc"][0])
            must_be = model.model_fields[field].description or fault["msg"][0].lower() + fault["msg"][1:]
            faults.append(_fault(field.upper(), fault["type"], must_be, fault["input"]))
        raise SettingsError("\n".join(faults)) from None


def _fault(name: str, kind: str, must_be: str, value: object) -> str:
    if kind == "missing":
        return f"{name} is not set: put its row back into .env"
    return f"{name}={value}: {must_be}; mend the row in .env, or what overrides it"
