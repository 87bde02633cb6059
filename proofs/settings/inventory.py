"""Every setting of the stack by name, found by parsing the files that hold them; `make check` holds the table to it.

A name is the file and the path in it: "proxy.conf: proxy_read_timeout", "nginx.conf: listen backlog" (a parameter of a
directive is a setting of its own), "docker-compose.yml: services.nginx.user", "gunicorn.conf.py: timeout".
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crossplane
import yaml
from gunicorn.config import KNOWN_SETTINGS

from app.server.settings import read
from stack import native
from stack.render import render
from stack.settings import GIVEN, ROOT, StackSettings, rows

# Blocks whose lines make one table together: each is one setting.
TABLES = ("map", "geo", "if", "types")
# Directives of which there are many: the first argument is part of the name.
NAMED = ("proxy_set_header", "proxy_hide_header", "add_header", "error_page", "include", "log_format")
# Arguments that are settings of their own.
FLAGS = ("default_server", "resolve", "always", "reuseport", "backup")
# Not security, resources, health, networks or lifecycle: what is built and passed in.
LEFT_OUT_OF_COMPOSE = ("build", "image", "develop", "environment", "x-hardened.logging.driver")
# ... but these say who is believed and where is written to.
ENVIRONMENT = ("TRUSTED_PROXIES", "APP_HOST", "UPSTREAM_RESOLVER", "UPSTREAM_HOST", "NGINX_ENVSUBST_OUTPUT_DIR")

# Constants of the worker's modules that Uvicorn and Linux have set.
FACTS = ("TICKS_IN_A_SECOND", "SO_ATTACH_FILTER", "PR_SET_CHILD_SUBREAPER", "WORKER_DESCRIPTORS", "APPLICATION")


def inventory() -> list[str]:
    """The names of all settings, in the order of their files. Raises SettingsError where a row is missing or wrong."""
    names = [*_nginx(), *_gunicorn(), *_uvicorn(), *_numbers(), *_shell(), *_compose(), *_rows()]
    return list(dict.fromkeys(names))


def _nginx() -> Iterator[str]:
    """The directives of the configuration as the image reads it."""
    table = rows()
    settings = read(StackSettings, GIVEN | table)
    with tempfile.TemporaryDirectory() as folder:
        values = native.environment(settings, table) | {"NGINX_RUN": folder, "UPSTREAM_RESOLVER": "127.0.0.11"}
        values |= {"TLS": "acme", "HTTPS_PORT": "443", "HTTP3": "on", "HSTS_SECONDS": "0"}
        values["UPSTREAM_HERE"] = values["UPSTREAM_HOST"]  # as on a swarm: with the other nodes' behind
        values["NGINX_TICKET_KEY"] = "/run/secrets/ticket-key"  # likewise
        values["NGINX_ACME"] = "acme:8000"  # likewise
        values["STICKY_SESSIONS"] = "none"  # whatever the row says: its directives take the place of least_conn
        # With a load balancer in front, whatever the rows say: without one there is nothing to find.
        values |= {"FORWARDED_HEADERS_FROM": "192.0.2.1", "PROXY_PROTOCOL_FROM": ""}
        values |= {"STATIC_ROOT": "app/static", "NGINX_STATIC": folder, "CACHE_MB": "8", "CACHE_PATHS": "/kept/"}
        render(values, Path(folder), (1, 30))
        parsed = crossplane.parse(f"{folder}/nginx.conf", check_ctx=False, check_args=False)
    if parsed["errors"]:
        raise ValueError(f"nginx.conf: {parsed['errors'][0]['error']}")
    seen = set()
    for file in parsed["config"]:
        if file["file"] not in seen:  # some are included twice
            seen.add(file["file"])
            yield from _directives(Path(file["file"]).name, "", file["parsed"])


def _directives(file: str, path: str, lines: list[dict[str, Any]]) -> Iterator[str]:
    for line in lines:
        directive, arguments = line["directive"], line["args"]
        name = f"{path}{directive}"
        if directive in TABLES:
            yield f"{file}: {name} {' '.join(arguments)}"
        elif "block" in line:
            if directive == "server":
                name = f"{path}{_server(line['block'])}"
            elif arguments:
                name += f" {' '.join(arguments)}"
            below = "" if directive == "http" else f"{name} / "
            yield from _directives(file, below, line["block"])
        else:
            if directive == "listen":
                name += " [::]" * arguments[0].startswith("[") + " quic" * ("quic" in arguments)
            if directive in NAMED:
                until = -1 if directive == "error_page" else 1
                first = " ".join(Path(argument).name for argument in arguments[:until])
                name += f" {first}"
            yield f"{file}: {name}"
            for argument in arguments:
                key, found, _ = argument.partition("=")
                if argument in FLAGS or (found and key.isidentifier() and directive != "error_page"):
                    yield f"{file}: {name} {key}"


def _server(block: list[dict[str, Any]]) -> str:
    default = any("default_server" in line["args"] for line in block if line["directive"] == "listen")
    return "default server" if default else "server"


def _gunicorn() -> Iterator[str]:
    known = {setting.name for setting in KNOWN_SETTINGS}
    for node in ast.parse((ROOT / "app/server/gunicorn.conf.py").read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node] if isinstance(node, ast.FunctionDef) else []
        for target in targets:
            name = getattr(target, "id", getattr(target, "name", ""))
            if name in known:
                yield f"gunicorn.conf.py: {name}"


def _dictionary(path: str, name: str) -> ast.Dict:
    """The dictionary that is assigned to `name` (a variable or an attribute) in a file."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if name in (getattr(target, "id", ""), getattr(target, "attr", "")):
                    return node.value
    raise ValueError(f"{path} has no dictionary {name}")


def _uvicorn() -> Iterator[str]:
    for key in _dictionary("app/server/worker.py", "CONFIG_KWARGS").keys:
        yield f"worker.py: {ast.literal_eval(key)}"  # type: ignore[arg-type]


def _numbers() -> Iterator[str]:
    """How often and how long the worker does what it does: the constants of its modules."""
    for path in ("accept.py", "drain.py", "forkserver.py", "server.py", "turns.py"):
        for node in ast.parse((ROOT / "app/server" / path).read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                (name,) = [target.id for target in node.targets if isinstance(target, ast.Name)]
                if name not in FACTS:
                    yield f"{path}: {name}"


def _shell() -> Iterator[str]:
    """The endpoints that the shell answers itself, what it is made with, and the headers it reads and writes."""
    path = "app/server/middleware.py"
    for key in _dictionary(path, "internal").keys:
        yield f"middleware.py: {ast.literal_eval(key)}"  # type: ignore[arg-type]
    tree = ast.parse((ROOT / path).read_text())
    (shell,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RequestMiddleware"]
    (made,) = [node for node in shell.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    for argument in made.args.args[2:]:  # without self and the application
        yield f"middleware.py: {argument.arg}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and node.value.startswith(b"x-"):
            yield f"middleware.py: {node.value.decode()}"


def _compose() -> Iterator[str]:
    for file in ("docker-compose.yml", "docker-compose.tls.yml"):
        document = yaml.compose((ROOT / file).read_text(), Loader=yaml.SafeLoader)
        assert isinstance(document, yaml.MappingNode)
        yield from (f"{file}: {name}" for name in _keys(document, "", set()))


def _keys(node: yaml.MappingNode, path: str, seen: set[int]) -> Iterator[str]:
    """The paths of the settings below a node of a Compose file."""
    seen.add(id(node))
    for key, value in node.value:
        name = f"{path}{key.value}"
        if key.value in LEFT_OUT_OF_COMPOSE or name in LEFT_OUT_OF_COMPOSE:
            if key.value == "environment" and isinstance(value, yaml.MappingNode):
                yield from (f"{name}.{k.value}" for k, _ in value.value if k.value in ENVIRONMENT)
        elif isinstance(value, yaml.MappingNode) and value.value and id(value) not in seen and not _is_one(value):
            yield from _keys(value, f"{name}.", seen)
        elif key.value == "networks" and isinstance(value, yaml.SequenceNode):
            yield from (f"{name}.{item.value}" for item in value.value)
        else:
            yield name


def _is_one(node: yaml.MappingNode) -> bool:
    """`{ condition: … }` and the like: the value of that for which it is written."""
    return bool(node.flow_style) and len(node.value) == 1 and isinstance(node.value[0][1], yaml.ScalarNode)


def _rows() -> Iterator[str]:
    # Others are the user's: what Compose itself reads, or what docker-compose.override.yml does.
    yield from (f".env: {name}" for name in map(str.upper, StackSettings.model_fields) if name not in GIVEN)


if __name__ == "__main__":
    print("\n".join(inventory()))
