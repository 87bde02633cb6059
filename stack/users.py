"""`make users`: a first loadtest/users.py, written from the OpenAPI schema of the running app."""

from __future__ import annotations

import json
import os
import random
import re
import ssl
from pprint import pformat
from textwrap import indent
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

from stack import certificate
from stack.console import Failure, say
from stack.settings import ROOT, StackSettings

FILE = ROOT / "loadtest/users.py"
HEAD = '''"""The requests of a load test. make users has written them from the schema of {app}; now they are yours.

The data is the simplest that the schema allows. Put in what your app knows, what a right answer is (the third argument
of call), and how often each request comes: @task(3). An order key must be a new one each time: uuid.uuid4().hex
"""

from locust import task

from loadtest.base import BaseUser


class Visitor(BaseUser):
    """A visitor of {app}."""

    abstract = True
'''


def write(settings: StackSettings) -> None:
    """Ask the running app for its schema, and write a request for each of its operations that removes nothing.

    Raises Failure where the file exists, the app does not answer, or the schema is none.
    """
    if FILE.exists():
        raise Failure("loadtest/users.py exists, and it is yours: move it away, then make users")
    url = f"{settings.url('127.0.0.1')}{os.environ.get('OPENAPI') or '/openapi.json'}"
    context = certificate.trusting(settings) if settings.tls == "files" else None
    schema = _schema(url, context)
    app = re.sub(r"[\s\\\"']+", " ", str(schema.get("info", {}).get("title", "this app"))).strip()
    methods, left_out = _methods(schema, url)
    if not methods:
        raise Failure(f"{url} names no request that can be written; write loadtest/users.py as loadtest/demo.py is")
    FILE.write_text(HEAD.format(app=app) + "".join(methods))
    for line in left_out:
        say(f"left out: {line}")
    say(
        f"loadtest/users.py has {len(methods)} requests; set LOADTEST_MODULE=loadtest.users in .env, then make loadtest"
    )


def _schema(url: str, context: ssl.SSLContext | None) -> dict[str, Any]:
    try:
        with build_opener(ProxyHandler({}), HTTPSHandler(context=context)).open(url, timeout=30) as answer:
            schema = json.load(answer)
    except HTTPError as error:
        raise Failure(f"{url}: status {error.code}; make users OPENAPI=/its/path names another schema") from None
    except OSError as error:
        raise Failure(f"{url}: {getattr(error, 'reason', error)}; make up starts the stack") from None
    except ValueError:
        raise Failure(f"{url} is not JSON; make users OPENAPI=/its/path names another schema") from None
    if not isinstance(schema, dict) or not isinstance(schema.get("paths"), dict):
        raise Failure(f"{url} is no OpenAPI schema; make users OPENAPI=/its/path names another")
    return schema


def _methods(schema: dict[str, Any], url: str) -> tuple[list[str], list[str]]:
    """The source of a method for each operation, and a line for each that has none."""
    import schemathesis  # here, because it takes a second to import, and only this command needs it

    methods: dict[str, str] = {}
    left_out: list[str] = []
    try:
        results: Any = schemathesis.openapi.from_dict(schema).get_all_operations()
        operations = [result.ok() for result in results]
    except Exception as error:
        raise Failure(f"{url}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    for operation in operations:
        what = f"{operation.method.upper()} {operation.path}"
        if operation.method == "delete":
            left_out.append(f"{what}: it removes something")
            continue
        media = operation.get_request_payload_content_types()
        if operation.body and not any("json" in kind for kind in media):
            left_out.append(f"{what}: it takes {' or '.join(media)}, write it by hand")
            continue
        try:
            case = _simplest(operation)
        except Exception as error:
            left_out.append(f"{what}: no data could be found for its schema ({type(error).__name__})")
            continue
        name = re.sub(r"\W+", "_", f"{operation.method}{operation.path}").strip("_")
        while name in methods:
            name += "_"
        methods[name] = _method(name, operation, case)
    return list(methods.values()), left_out


def _simplest(operation: Any) -> Any:
    """The schema's own example if it has one, else the simplest data that it allows: the same at each call."""
    from hypothesis import HealthCheck, Phase, find
    from hypothesis import settings as options

    few = options(
        database=None, max_examples=50, deadline=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    strategy = [*operation.get_strategies_from_examples(), operation.as_strategy()][0]
    return find(strategy, lambda case: True, settings=few, random=random.Random(0))


def _method(name: str, operation: Any, case: Any) -> str:
    path = operation.path
    for parameter, value in (case.path_parameters or {}).items():
        path = path.replace(f"{{{parameter}}}", quote(str(value), safe=""))
    if case.query:
        path += "?" + urlencode(case.query, doseq=True)
    headers = dict(case.headers or {})
    if case.cookies:
        headers["Cookie"] = "; ".join(f"{key}={value}" for key, value in case.cookies.items())
    right = [int(code) for code in map(str, operation.definition.raw.get("responses", {})) if re.match(r"2\d\d$", code)]
    arguments = [json.dumps(operation.method.upper()), json.dumps(path)]
    if path != operation.path:
        arguments.append(f"name={json.dumps(operation.path)}")
    if right and min(right) != 200:
        arguments.append(f"status={min(right)}")
    if headers:
        arguments.append(f"headers={pformat(headers, width=90, sort_dicts=False)}")
    if operation.body and case.media_type:
        arguments.append(f"json={pformat(case.body, width=90, sort_dicts=False)}")
    call = f"self.call({', '.join(arguments)})"
    if len(call) > 110 or "\n" in call:
        call = "self.call(\n" + "".join(indent(f"{argument},\n", "    ") for argument in arguments) + ")"
    return f"\n    @task\n    def {name}(self) -> None:\n{indent(call, ' ' * 8)}\n"
