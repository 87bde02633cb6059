"""The user's own code, variables, services and secrets: they stand in files of their own, and the stack takes them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from proofs.conftest import require_engine, started
from proofs.stack import ROOT, Stack, patched_copy, until

# In nobody's style, and a type checker would not have it.
APP = """
import os,json
async def app(scope,receive,send):
    if scope['type'] != 'http': return
    seen = {name: os.environ.get(name) for name in ('GREETING','TOKEN','FALLBACK')}
    if os.path.exists('/run/secrets/password'): seen['password'] = open('/run/secrets/password').read()
    number: int = 'no'
    await send({'type':'http.response.start','status':200,'headers':[]})
    await send({'type':'http.response.body','body':json.dumps(seen).encode()})
def create_app(): return app
"""
VARIABLES = """# as Compose reads them, in both ways of running
GREETING=good morning
TOKEN=${TOKEN:?set it in the shell}
FALLBACK="${NOWHERE:-set here}"
"""
# A subnet of its own for each run: two runs on one engine must not meet.
SUBNET = f"10.213.{os.getpid() % 256}.0/24"
SERVICES = """
services:
  app:
    networks: [app, own, outside]
    secrets: [password]
  store:
    image: nginx:1.30
    command: [sleep, infinity]
    networks: [own]
  once:
    image: nginx:1.30
    command: ["true"]
    networks: [own]
networks:
  outside:
  own: { internal: true, ipam: { config: [{ subnet: SUBNET }] } }
secrets:
  password: { file: ./secrets/password }
""".replace("SUBNET", SUBNET)
FILES = {"app/mine.py": APP, ".env.app": VARIABLES}
ROWS = {"APP_MODULE": "app.mine:app", "APP_ENV_FILE": ".env.app"}
SEEN = {"GREETING": "good morning", "TOKEN": "t0ken", "FALLBACK": "set here"}


# A whole project below app/, as its own tools have it: found by its folder, or installed by its pyproject.toml.
PROJECT = {
    "app/shop/pyproject.toml": """
[project]
name = "shop"
version = "0.1.0"
requires-python = ">=3.11"
[build-system]
requires = ["uv_build>=0.8,<1"]
build-backend = "uv_build"
""",
    "app/shop/src/shop/__init__.py": "",
    "app/shop/src/shop/web.py": APP,
}


@pytest.fixture(scope="module")
def native() -> Iterator[Stack]:
    stack = Stack("native", "own", files=FILES, **ROWS | {"APP_MODULE": "app.mine:create_app()"}, TOKEN="t0ken")
    yield from started(stack)


@pytest.fixture(scope="module")
def compose() -> Iterator[Stack]:
    require_engine()
    files = {"docker-compose.override.yml": SERVICES, "secrets/password": "s3cret"}
    stack = Stack("compose", "own", files=FILES | files, **ROWS, TOKEN="t0ken")
    del stack.environ["COMPOSE_FILE"]
    yield from started(stack)


def seen(stack: Stack) -> Any:
    with stack.client() as client:
        answer = client.get("/")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.xdist_group("native")
def test_the_apps_own_variables_reach_it_natively_and_a_factory_is_called(native: Stack) -> None:
    assert seen(native) == SEEN


@pytest.mark.xdist_group("compose")
def test_the_apps_own_variables_secrets_and_services_are_there_in_compose(compose: Stack) -> None:
    assert seen(compose) == SEEN | {"password": "s3cret"}
    assert len(compose.containers("store")) == 1, "the service of docker-compose.override.yml does not run"


def reaches_the_world_outside(stack: Stack) -> bool:
    """Whether the app's container comes to an address that is none of Docker's networks'."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.connect(("192.0.2.1", 9))  # sends nothing; the kernel chooses the address that it would send from
        except OSError:
            pytest.skip("this machine has no way out itself")
        address = trial.getsockname()[0]
    with socket.create_server((address, 0)) as world:
        port = world.getsockname()[1]
        connect = f"import socket; socket.create_connection(('{address}', {port}), timeout=3)"
        (app,) = stack.containers("app")
        return subprocess.run(["docker", "exec", app, "python", "-c", connect], capture_output=True).returncode == 0


@pytest.mark.xdist_group("compose")
def test_the_app_reaches_the_world_outside_by_a_network_of_its_own(compose: Stack) -> None:
    assert reaches_the_world_outside(compose)


@pytest.mark.xdist_group("compose")
def test_without_it_the_app_reaches_nothing_outside(compose_stack: Stack) -> None:
    assert not reaches_the_world_outside(compose_stack)


@pytest.mark.xdist_group("compose")
def test_a_library_may_write_to_its_home(compose_stack: Stack) -> None:
    (app,) = compose_stack.containers("app")
    write = "from pathlib import Path; (Path.home() / '.cache').mkdir(exist_ok=True)"
    done = subprocess.run(["docker", "exec", app, "python", "-c", write], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.xdist_group("compose")
def test_a_deploy_takes_them_too(compose: Stack) -> None:
    before = compose.containers("app")
    done = compose.make("deploy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert compose.containers("app") != before
    assert seen(compose) == SEEN | {"password": "s3cret"}


# One app of each framework, below /shop as docs/your-app.md says it.
BELOW = {
    "FastAPI": """
from fastapi import FastAPI
app = FastAPI(root_path="/shop")
app.get("/")(lambda: "the shop")
app.get("/items/{number}")(lambda number: f"item {number}")
""",
    "Starlette": """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
pages = [
    Route("/", lambda request: PlainTextResponse("the shop")),
    Route("/items/{number}", lambda request: PlainTextResponse(f"item {request.path_params['number']}")),
]
app = Starlette(routes=[Mount("/shop", routes=pages)])
""",
    "Django": """
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path
common = ["django.middleware.common.CommonMiddleware"]  # as startproject has it: it adds the slash
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], FORCE_SCRIPT_NAME="/shop", MIDDLEWARE=common)
urlpatterns = [
    path("", lambda request: HttpResponse("the shop")),
    path("items/<int:number>", lambda request, number: HttpResponse(f"item {number}")),
]
app = get_asgi_application()
""",
}


def below_a_path(framework: str) -> AbstractContextManager[Stack]:
    files = {"app/main.py": BELOW[framework]}
    return contextmanager(started)(Stack("native", "own-below", files=files, APP_MODULE="app.main:app"))


@pytest.mark.xdist_group("native")
@pytest.mark.parametrize("framework", BELOW)
def test_an_app_below_a_path_answers_there_and_health_is_where_the_stack_asks(framework: str) -> None:
    """nginx passes the path on as it is."""
    with below_a_path(framework) as stack, stack.client() as client:
        for path, said in {"/shop/": "the shop", "/shop": "the shop", "/shop/items/7": "item 7"}.items():
            answer = client.get(path, follow_redirects=True)
            assert (answer.status_code, answer.text.strip('"')) == (200, said), path
            assert str(answer.url).startswith(f"{stack.url}/shop"), "a redirect led out of the path"
        assert client.get("/readyz").status_code == 404
        assert client.get("/shopping").status_code == 404


@pytest.mark.xdist_group("native")
def test_an_app_below_a_path_has_its_docs_there() -> None:
    with below_a_path("FastAPI") as stack, stack.client() as client:
        without_slash = client.get("/shop")
        assert (without_slash.status_code, without_slash.headers["location"]) == (307, f"{stack.url}/shop/")
        for path in ("/shop/docs", "/shop/docs/"):
            assert "'/shop/openapi.json'" in client.get(path, follow_redirects=True).text, path
        assert client.get("/shop/openapi.json").json()["servers"] == [{"url": "/shop"}]


@pytest.mark.xdist_group("native")
def test_a_project_that_is_not_installed_is_found_by_its_folder() -> None:
    files = PROJECT | {".env.app": "PYTHONPATH=app/shop/src\n"}
    stack = Stack("native", "own-path", files=files, APP_MODULE="shop.web:app", APP_ENV_FILE=".env.app")
    with contextmanager(started)(stack):
        assert seen(stack)["GREETING"] is None


@pytest.mark.xdist_group("compose")
def test_a_project_with_a_pyproject_of_its_own_is_installed_into_the_image() -> None:
    require_engine()
    stack = Stack("compose", "own-project", files=PROJECT, APP_MODULE="shop.web:create_app()")
    with contextmanager(started)(stack, lambda stack: stack.add("./app/shop")):
        assert seen(stack)["GREETING"] is None


@pytest.mark.xdist_group("compose")
@pytest.mark.parametrize("command", ["make up", "make deploy", "docker compose up"])
@pytest.mark.parametrize("missing", ["TOKEN", "secrets/password"])
def test_what_is_required_and_missing_is_named_and_nothing_is_replaced(
    compose: Stack, command: str, missing: str
) -> None:
    before = {service: compose.containers(service) for service in ("nginx", "app", "store")}
    environ = {name: value for name, value in compose.environ.items() if name != missing}
    words = {"make up": [sys.executable, "-m", "stack", "up"], "make deploy": [sys.executable, "-m", "stack", "deploy"],
             "docker compose up": ["docker", "compose", "up", "--detach", "--force-recreate"]}[command]  # fmt: skip
    secret = compose.root / "secrets/password"
    text = secret.read_text()
    try:
        if missing == "secrets/password":
            secret.unlink()
        done = subprocess.run(words, cwd=compose.root, env=environ, capture_output=True, text=True, timeout=300)
    finally:
        secret.write_text(text)
    said = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode != 0, said
    assert missing in said[-1], said
    assert "Traceback" not in done.stderr
    assert {service: compose.containers(service) for service in before} == before
    assert seen(compose)["GREETING"] == "good morning"


@pytest.mark.xdist_group("native")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "TOKEN=${TOKEN:?set it in the shell}",
            ".env.app: required variable TOKEN is missing a value: set it in the shell",
        ),
        ("WORKERS=7", ".env.app has WORKERS, which is the stack's: change its row in .env"),
    ],
)
def test_a_fault_in_the_apps_own_variables_is_one_line_and_nothing_starts(line: str, said: str) -> None:
    stack = Stack("native", "own-bad", files=FILES | {".env.app": f"{line}\n"}, **ROWS)
    try:
        done = stack.make("up")
        assert (done.returncode, done.stderr.splitlines()) == (2, [said])
        assert not stack.folder.exists()
    finally:
        stack.down()


@pytest.mark.xdist_group("native")
def test_the_stacks_checks_and_tests_judge_the_stack_alone() -> None:
    """With code in nobody's style, services, and rows in .env that the stack does not know."""
    rows = {"WORKERS": "1", "APP_MODULE": "app.mine:app", "STICKY_SESSIONS": "cookie", "SERVER_NAMES": "example.com",
            "APP_PIDS": "1024"}  # fmt: skip
    table = (ROOT / ".env").read_text() + "COMPOSE_PROJECT_NAME=mine\nSTORE_VERSION=1\n"
    for row, value in rows.items():
        table = re.sub(f"^{row}=.*", f"{row}={value}", table, flags=re.MULTILINE)
    files = {".env": table, "docker-compose.override.yml": SERVICES, "secrets/password": "s3cret"}
    stack = Stack("native", "own-check", files=FILES | files)
    environ = {name: value for name, value in stack.environ.items() if name not in stack.rows} | {"TOKEN": "t0ken"}
    del environ["COMPOSE_FILE"]
    try:
        tests = ["tests/app", "tests/settings", "tests/bench/test_capacity.py"]
        for command in (["stack", "check"], ["pytest", "-q", *tests]):
            done = subprocess.run(
                [sys.executable, "-m", *command],
                cwd=stack.root,
                env=environ,
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    finally:
        stack.down()


PAGE = (ROOT / "docs/your-app.md").read_text()
# The blocks of docs/your-app.md, each a docker-compose.override.yml for one thing; together they are one stack.
BLOCKS = {
    f"block-{number}.yml": text for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S))
}
REACHES = """
import socket, sys
socket.create_connection(("database", 5432), timeout=3)
print("the database is there", flush=True)
"""


@pytest.fixture(scope="module")
def page() -> Iterator[Stack]:
    require_engine()
    files = BLOCKS | {
        "secrets/password": "s3cret",
        "app/mine.py": APP,
        "app/reaches.py": REACHES,
        "app/jobs.py": f"{REACHES}import time\ntime.sleep(1e9)\n",
        ".env.app": "GREETING=good morning\n",
    }
    stack = Stack("compose", "page", files=files, **ROWS, APP_MIGRATE="python -m app.reaches")
    stack.environ["COMPOSE_FILE"] = ":".join(["docker-compose.yml", *BLOCKS])
    yield from started(stack)


def of_the_page(beginning: str) -> str:
    """The command in docs/your-app.md that begins so."""
    (command,) = set(re.findall(f"`({re.escape(beginning)}[^`]*)`", PAGE))
    return command


@pytest.mark.xdist_group("compose")
def test_the_pages_blocks_are_one_stack(page: Stack) -> None:
    """A secret, a database and the world outside, a migration that waits for the database, and a service for jobs."""
    assert len(BLOCKS) == 4, "a block that no test runs"
    assert seen(page) == {"GREETING": "good morning", "TOKEN": None, "FALLBACK": None, "password": "s3cret"}
    assert reaches_the_world_outside(page)
    until("the job", lambda: "the database is there" in page.compose("logs", "jobs"))
    broken = page.make("deploy", APP_MIGRATE="python -m app.nowhere")
    assert "the database was not migrated" in broken.stderr, broken
    done = page.make("deploy")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.xdist_group("compose")
def test_a_file_is_copied_into_the_volume_by_the_pages_command(page: Stack) -> None:
    (page.root / "orders.db").write_text("a table")
    subprocess.run(shlex.split(of_the_page("docker compose cp")), cwd=page.root, env=page.environ, check=True)
    assert page.compose("exec", "-T", "app", "cat", "/data/orders.db") == "a table"


@pytest.mark.xdist_group("native")
def test_where_uv_is_not_installed_the_pages_commands_bring_it_and_add_a_package() -> None:
    tree = patched_copy([])
    try:
        for command in (of_the_page("make .uv"), of_the_page(".uv/bin/uv add")):
            done = subprocess.run(
                shlex.split(command), cwd=tree, env=os.environ | {"UV_NO_SYNC": "1"}, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
        group = tomllib.loads((tree / "pyproject.toml").read_text())["dependency-groups"]["app"]
        assert group[0].startswith("sqlalchemy>="), group
    finally:
        shutil.rmtree(tree)


@pytest.mark.xdist_group("compose")
def test_the_readmes_five_commands_bring_a_starlette_app_from_a_fresh_clone_to_an_answer() -> None:
    require_engine()
    (block,) = re.findall(r"^```sh\n(cp .*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(block.splitlines()) == 5
    stack = Stack("compose", "readme")
    del stack.environ["APP_MODULE"]
    try:
        # The port is the test's own; HTTP_PORT is 80 where nobody changes it.
        done = stack.run_in_a_copy(block.replace("localhost", f"localhost:{stack.http_port}"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == '{"number":7}', done.stdout
    finally:
        stack.down()


def test_a_clone_that_nobody_else_may_read_is_named_and_its_images_run() -> None:
    """As where the umask is 077: nginx reads what is mounted, the others what is in their image."""
    require_engine()
    stack = Stack("compose", "private", patches=[("app/demo/main.py", "LAB = ", "LAB = ")], LOCUST="on")
    try:
        subprocess.run(["chmod", "-R", "go=", stack.root], check=True)
        refused = stack.make("up")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1), refused
        mend = f"chmod -R a+rX {stack.root}/nginx"
        for words in (f"may not read {stack.root}/nginx", f"type: {mend}"):
            assert words in refused.stderr
        assert stack.containers("") == []
        subprocess.run(shlex.split(mend), check=True)
        stack.up()
        with stack.client() as client:
            assert client.get("/").status_code == 200
        acme = ["--profile", "tls-acme", "run", "--rm", "--no-deps", "--no-TTY", "acme"]
        stack.compose(*acme, "python", "-c", "import renew.__main__")
        # Its network and volumes, which no other down knows.
        stack.compose("--profile", "tls-acme", "down", "--volumes")
    finally:
        stack.down()
