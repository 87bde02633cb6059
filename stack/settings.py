"""All of .env, checked: what the app's settings do not cover is here."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, Field

from app.server import budget, space
from app.server.migrate import MigrationSettings
from app.server.settings import Count, Memory, Milliseconds, Port, Seconds, Settings, SettingsError, read

ROOT = Path(__file__).parent.parent
Cpus = Annotated[float, Field(gt=0, le=1024)]


def _networks(text: str) -> str:
    for word in text.split(" ") if text else []:
        if "%" in word or not ipaddress.ip_network(word).prefixlen:
            raise ValueError("no network")
    return text


Networks = Annotated[
    str,
    AfterValidator(_networks),
    Field(
        description="must be addresses and networks with a blank between, as 192.0.2.7 2001:db8::/32: the load "
        "balancer's, not everybody's"
    ),
]


LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
NAME = rf"{LABEL}(\.{LABEL})+"
Names = Annotated[
    str,
    Field(
        pattern=rf"^({NAME}( {NAME})*)?$",
        description="must be full names in lower case, blanks between, as www.example.com example.com; a CA gives no "
        "certificate for a wildcard this way",
    ),
]


class StackSettings(MigrationSettings, Settings):
    """One field for each row of .env."""

    app_env_file: str
    registry: Annotated[
        str,
        Field(
            pattern=r"^([a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)*)?$",
            description="must be a registry and a path in it, as registry.example.com/team, or empty",
        ),
    ]
    enable_lab: Literal["0", "1"]

    sticky_sessions: Literal["none", "address", "cookie"]
    static_root: Annotated[
        str,
        Field(
            pattern=r"^((\./)?[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?$",
            description="must be a folder in this clone, as ./app/static: no .. and no name that begins with a dot",
        ),
    ]

    http_port: Port
    ipv6: Literal["true", "false"]
    locust_ui_port: Port
    live_port: Port
    metrics: Literal["on", "off"]
    prometheus_port: Port
    prometheus_keep_days: Annotated[int, Field(ge=1, le=3650)]
    prometheus_keep_mb: Annotated[int, Field(ge=64, le=1_048_576)]
    locust: Literal["on", "off"]
    locust_master_port: Port
    https_port: Port
    tls_folder: Annotated[str, Field(min_length=1)]
    hsts_seconds: Annotated[int, Field(ge=0, le=2 * 366 * 86_400)]
    acme_names: Names
    acme_directory: Annotated[str, Field(pattern=r"^https://\S+$", description="must be the https:// address of a CA")]
    acme_email: Annotated[
        str, Field(pattern=r"^([^@\s]+@[^@\s]+)?$", description="must be an address for mail, or empty")
    ]
    acme_check_seconds: Seconds
    compose_profiles: str
    forwarded_headers_from: Networks
    proxy_protocol_from: Networks
    server_names: Annotated[
        str, Field(pattern=r"^[^;{}]+$", description="must be names as nginx's server_name takes them, blanks between")
    ]

    client_header_timeout_seconds: Seconds
    client_body_timeout_seconds: Seconds
    client_send_timeout_seconds: Seconds
    client_keepalive_seconds: Seconds
    client_keepalive_min_seconds: Seconds
    proxy_send_timeout_seconds: Seconds

    gzip_min_bytes: Annotated[int, Field(ge=0)]

    nginx_cpus: Cpus
    app_cpus: Cpus
    locust_cpus: Cpus
    locust_memory: Memory
    locust_pids: Count

    loadtest_module: Annotated[
        str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", description="must be a module, such as loadtest.users")
    ]
    loadtest_shape: Literal["closed", "rate"]
    loadtest_users: Count
    loadtest_rate: Count
    loadtest_seconds: Seconds
    loadtest_warmup_seconds: Annotated[int, Field(ge=0, le=3600)]
    loadtest_processes: Annotated[int, Field(ge=1, le=64)]
    slo_p50_ms: Milliseconds
    slo_p95_ms: Milliseconds
    slo_p99_ms: Milliseconds
    slo_error_share: Annotated[float, Field(ge=0, le=1)]
    slo_min_rps: Annotated[float, Field(ge=0)]

    def published(self) -> list[tuple[str, int]]:
        """The rows and numbers of the ports that the stack takes on this machine, in both ways of running."""
        found = [("HTTP_PORT", self.http_port), ("LIVE_PORT", self.live_port)]
        if self.metrics == "on":
            found.append(("PROMETHEUS_PORT", self.prometheus_port))
        if self.locust == "on":
            found.append(("LOCUST_UI_PORT", self.locust_ui_port))
        if self.tls != "off":
            found.append(("HTTPS_PORT", self.https_port))
        return found

    def url(self, host: str = "localhost") -> str:
        """Where the stack is found on this machine, without a slash at its end; with TLS=acme by its first name."""
        if self.tls == "off":
            return f"http://{host}:{self.http_port}"
        return f"https://{self.acme_names.split()[0] if self.tls == 'acme' else host}:{self.https_port}"

    @property
    def ready_seconds(self) -> int:
        """How long the stack may take until it answers. What is wrong is noticed earlier, so this may be generous."""
        return self.app_start_seconds + 60


# What a way of running gives in addition to .env; Compose's are in docker-compose.yml.
GIVEN = {"APP_HOST": "127.0.0.1", "TRUSTED_PROXIES": "127.0.0.1"}


def rows() -> dict[str, str]:
    """The rows of .env. A variable of the shell, or of make's command line, wins over its row, as in Compose."""
    table = {name: value or "" for name, value in dotenv_values(ROOT / ".env").items()}
    return {name: os.environ.get(name, value) for name, value in table.items()}


def app_variables(table: dict[str, str]) -> dict[str, str]:
    """The user's own variables, for the app alone, as Compose reads them from APP_ENV_FILE.

    Raises SettingsError, a line each, where a required one is missing or where one is a row of the stack.
    """
    name = table["APP_ENV_FILE"]
    if not (ROOT / name).is_file():
        return {}
    known = table | os.environ
    own: dict[str, str] = {}
    faults = []
    for variable, text in dotenv_values(ROOT / name, interpolate=False).items():
        if variable.lower() in StackSettings.model_fields:
            faults.append(f"{name} has {variable}, which is the stack's: change its row in .env")
        try:
            own[variable] = _interpolated(text or "", known | own)
        except LookupError as missing:
            faults.append(f"{name}: required variable {missing}")
    if faults:
        raise SettingsError("\n".join(faults))
    return own


def _interpolated(text: str, known: Mapping[str, str]) -> str:
    """${NAME}, ${NAME:-default} and ${NAME:?what is missing}, as in Compose; raises LookupError for the last."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if kind == ":?" and not known.get(name):
            raise LookupError(f"{name} is missing a value: {rest}")
        return known.get(name) or (rest if kind == ":-" else "")

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, text)


PUBLIC_CA = "acme-v02.api.letsencrypt.org"


def _acme_faults(settings: StackSettings) -> list[str]:
    found = []
    if not settings.acme_names:
        found.append("ACME_NAMES is empty with TLS=acme: set it to the names of this machine, as www.example.com")
    claimed = settings.server_names.split()
    for name in settings.acme_names.split():
        if not any(_claims(one, name) for one in claimed):
            found.append(
                f"ACME_NAMES has {name}, which SERVER_NAMES={settings.server_names} has not: nginx would answer 421; "
                "add it there"
            )
    balanced = settings.forwarded_headers_from or settings.proxy_protocol_from
    if settings.http_port != 80 and PUBLIC_CA in settings.acme_directory and not balanced:
        found.append(
            f"HTTP_PORT={settings.http_port} with TLS=acme: the CA asks on port 80 whether a name is this machine's; "
            "set HTTP_PORT=80"
        )
    return found


def _claims(server_name: str, name: str) -> bool:
    """Whether nginx's `server_name` takes this name, which is in lower case."""
    if server_name.startswith("~"):
        try:
            return bool(re.search(server_name.removeprefix("~"), name, re.IGNORECASE))
        except re.error:
            return True  # nginx's expressions know more than Python's
    pattern = server_name.lower()
    if pattern.startswith("."):
        return name == pattern[1:] or name.endswith(pattern)
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and name != pattern[1:]
    if pattern.endswith(".*"):
        return name.startswith(pattern[:-1])
    return name == pattern


def faults(settings: StackSettings) -> list[str]:
    """A line for each rule that the rows break: of the two budgets, sticky sessions, HTTPS, a load balancer."""
    found = budget.violations(settings) + space.violations(settings)
    if settings.sticky_sessions != "none" and settings.worker_listeners == "shared":
        found.append(
            f"STICKY_SESSIONS={settings.sticky_sessions} with WORKER_LISTENERS=shared: any worker that is free takes a "
            "connection from the shared port; set WORKER_LISTENERS=per-worker"
        )
    if settings.cache_mb and not settings.cache_paths:
        found.append(
            f"CACHE_MB={settings.cache_mb} with CACHE_PATHS empty: name the beginnings of the paths whose answers are "
            "everybody's, as /catalog/ /feed (docs/cache.md), or set CACHE_MB=0"
        )
    if settings.tls == "off" and settings.hsts_seconds:
        found.append(
            f"HSTS_SECONDS={settings.hsts_seconds} with TLS=off: browsers would ask by HTTPS, which nobody answers; "
            "set HSTS_SECONDS=0, or TLS=files"
        )
    if settings.http3 == "on" and settings.tls == "off":
        found.append("HTTP3=on with TLS=off: HTTP/3 is always encrypted; set HTTP3=off, or TLS=files")
    if settings.http3 == "on" and settings.proxy_protocol_from:
        found.append(
            f"HTTP3=on with PROXY_PROTOCOL_FROM={settings.proxy_protocol_from}: no balancer sends that protocol over "
            "UDP; set HTTP3=off"
        )
    if settings.tls == "acme":
        found += _acme_faults(settings)
    for row in ("http_port", "live_port", "prometheus_port", "locust_ui_port"):
        if settings.tls != "off" and settings.https_port == getattr(settings, row):
            found.append(
                f"HTTPS_PORT={settings.https_port} is {row.upper()} too; each needs a port of its own: change one"
            )
    if settings.forwarded_headers_from and settings.proxy_protocol_from:
        found.append(
            f"FORWARDED_HEADERS_FROM={settings.forwarded_headers_from} with "
            f"PROXY_PROTOCOL_FROM={settings.proxy_protocol_from}: a client's address can be said in one way only; "
            "leave the row empty whose protocol the load balancer next to nginx does not speak"
        )
    return found


def checked() -> tuple[StackSettings, dict[str, str]]:
    """The settings, and the rows they were read from.

    Raises SettingsError where a row is missing or wrong, or where rows do not go together, as in the two budgets.
    """
    table = rows()
    settings = read(StackSettings, GIVEN | table)
    if broken := faults(settings):
        raise SettingsError("\n".join(broken))
    return settings, table


def project() -> str:
    """The name that keeps this stack apart from others on the same machine; Compose's rule for it."""
    name = os.environ.get("COMPOSE_PROJECT_NAME") or rows().get("COMPOSE_PROJECT_NAME") or ROOT.name.lower()
    return "".join(c for c in name if c.isalnum() or c in "-_").lstrip("-_") or "stack"
