"""examples/shop: what was answered 201 is in the database, once, whatever happens to the database and to the schema."""

from __future__ import annotations

import subprocess
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from subprocess import DEVNULL, PIPE
from typing import Any

import httpx
import pytest

from proofs import shop
from proofs.conftest import require_engine, started
from proofs.database import Database, running
from proofs.events import docker
from proofs.open_loop import OpenLoop
from proofs.shop import ORDER
from proofs.stack import DEADLINE, Stack, until

pytestmark = pytest.mark.xdist_group("load")
# A handler that asks the database for longer than its deadline allows.
SLOW = """
from sqlalchemy import text
from app.shop.database import transaction
from app.shop.main import app

@app.get("/slow")
async def slow():
    async with transaction() as session:
        await session.execute(text("SELECT pg_sleep(60)"))
"""


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with running() as database:
        yield database


@pytest.fixture(scope="module")
def stack(database: Database) -> Iterator[Stack]:
    rows = {"APP_MODULE": "app.slow:app", "REQUEST_DEADLINE_SECONDS": "8",
            "PROXY_NEXT_UPSTREAM_TIMEOUT_MS": "2000"}  # fmt: skip
    yield from started(shop.native("shop", database, {"app/slow.py": SLOW}, **rows))


def place(client: httpx.Client, key: str, order: dict[str, Any] = ORDER) -> httpx.Response:
    return client.post("/orders", json=order, headers={"Idempotency-Key": key})


def place_at_once(stack: Stack, database: Database | shop.ComposeDatabase) -> list[httpx.Response]:
    """The answers to a new order that is sent 60 times at once, which is one order."""
    key = uuid.uuid4().hex
    # Threads with one pool close each other's idle connections.
    with ThreadPoolExecutor(20) as threads, stack.client(headers={"Connection": "close"}) as client:
        answers = list(threads.map(lambda _: place(client, key), range(60)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert database.ask(f"SELECT count(*) FROM orders WHERE key = '{key}'") == ["1"]
    return answers


def test_an_order_is_in_the_database_when_it_is_answered(stack: Stack, database: Database) -> None:
    key = uuid.uuid4().hex
    with stack.client() as client:
        placed = place(client, key)
        assert placed.status_code == 201, placed.text
        assert database.ask(f"SELECT id, sku, quantity FROM orders WHERE key = '{key}'") == [
            f"{placed.json()['id']}|tea|2"
        ]
        assert client.get(f"/orders/{placed.json()['id']}").json() == placed.json()


def test_an_order_that_is_sent_many_times_at_once_is_one_order(stack: Stack, database: Database) -> None:
    place_at_once(stack, database)


def test_a_key_that_was_used_for_another_order_is_refused(stack: Stack) -> None:
    key = uuid.uuid4().hex
    with stack.client() as client:
        assert place(client, key).status_code == 201
        assert place(client, key, ORDER | {"quantity": 3}).status_code == 409


def test_the_deadline_ends_the_query_in_the_database(stack: Stack, database: Database) -> None:
    running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
    with ThreadPoolExecutor(1) as thread, stack.client() as client:
        answer = thread.submit(client.get, "/slow")
        until("the query", lambda: database.ask(running) == ["1"])
        assert answer.result().status_code == 504
    until("its end", lambda: database.ask(running) == ["0"], seconds=20)


def connections(database: Database) -> int:
    """Those of the app's workers."""
    return int(
        database.ask(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND pid != pg_backend_pid()"
        )[0]
    )


def test_a_worker_has_no_more_connections_than_its_row_says(stack: Stack, database: Database) -> None:
    most = int(stack.rows["DATABASE_POOL_SIZE"]) * int(stack.rows["WORKERS"])
    with ThreadPoolExecutor(4 * most) as threads, stack.client() as client:
        answers = [threads.submit(client.get, "/slow") for _ in range(4 * most)]
        looks = []
        while not all(answer.done() for answer in answers):
            looks.append(connections(database))
        assert max(looks) == most, "the pools were not filled, or held to no row"
        # Those without a place in the pool, and those whose query took too long.
        assert {answer.result().status_code for answer in answers} == {503, 504}


def test_pools_that_the_rule_lets_in_find_their_connections_in_a_reload(stack: Stack, database: Database) -> None:
    most = int(stack.rows["DATABASE_POOL_SIZE"]) * int(stack.rows["WORKERS"])
    ending = threading.Event()

    def ask() -> None:
        with stack.client() as client:
            while not ending.is_set():
                client.get("/slow")

    with ThreadPoolExecutor(2 * most) as threads:
        for _ in range(2 * most):
            threads.submit(ask)
        try:
            until("full pools", lambda: connections(database) >= most)
            done = stack.make("reload")
            until("full pools again", lambda: connections(database) >= most)
        finally:
            ending.set()
    assert done.returncode == 0, done.stdout + done.stderr
    log = (database.folder / "log").read_text()
    assert "too many clients" not in log, log
    assert "remaining connection slots" not in log, log


def test_an_app_that_takes_its_pool_from_the_row_does_not_start_without_one(database: Database) -> None:
    stack = shop.native("shop-none", database, DATABASE_POOL_SIZE="0")
    try:
        done = stack.make("up")
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert "DATABASE_POOL_SIZE=0: must be at least 1; set the row in .env" in said, said
    finally:
        stack.down()


def assert_nothing_answered_is_missing(outcome: Any) -> None:
    assert outcome.answered["POST"] > 0, outcome
    assert not outcome.doubled, outcome
    assert outcome.applied == outcome.answered["POST"], f"{outcome}: {outcome.applied} of those answered are there"


@contextmanager
def away(database: Database, how: str) -> Iterator[None]:
    """The database is away for the block."""
    {"killed": database.kill, "frozen": database.freeze, "stopped": database.stop}[how]()
    try:
        yield
    finally:
        database.thaw() if how == "frozen" else database.start()


def none_lost(load: OpenLoop, seconds: float) -> bool:
    """Whether in the next `seconds` orders were answered, and none was lost. From now on with a load that a
    busy machine bears too: what it refuses in an overload says nothing of the database.
    """
    load.rate = 20
    answered, lost = load.outcome.answered.total(), len(load.outcome.lost)
    load.run_for(seconds)
    return len(load.outcome.lost) == lost and load.outcome.answered.total() > answered


@pytest.mark.parametrize("how", ["killed", "frozen", "stopped"])
def test_when_the_database_goes_and_comes_the_app_answers_again_and_no_order_is_lost(
    stack: Stack, database: Database, how: str
) -> None:
    before = [worker["pid"] for worker in stack.workers()]
    with stack.client() as client, shop.orders(stack, database) as load:
        load.run_for(1)
        with away(database, how):
            # The first answers may still be those of requests that were under way.
            refused = until("503", lambda: a if (a := place(client, uuid.uuid4().hex)).status_code == 503 else None)
            assert refused.json() == {"detail": "the database does not answer: send the same again in a moment"}
            assert refused.headers["retry-after"] == "1"
            load.run_for(2 * int(stack.rows["WORKER_TIMEOUT_SECONDS"]) / 10)
            assert [client.get(path).status_code for path in ("/nginx-health", "/docs")] == [200, 200]
            for slot in range(2):
                ready = httpx.get(f"http://127.0.0.1:{stack.app_port + slot}/readyz", timeout=DEADLINE)
                assert ready.status_code == 200
            assert client.get("/health/database").status_code == 503
        until("an answer", lambda: client.get("/health/database").status_code == 200)
        # Those that waited for the database have the pool's places first; who comes meanwhile may be refused.
        until("two seconds of orders, none of them lost", lambda: none_lost(load, 2))
    assert [worker["pid"] for worker in stack.workers()] == before, "a worker was replaced because of the database"
    assert_nothing_answered_is_missing(load.outcome)
    assert load.outcome.lost, "the database was away, and nobody noticed"


def test_a_database_that_is_down_at_the_start_is_said_before_anything_starts() -> None:
    database = Database()
    stack = shop.native("shop-down", database)
    try:
        done = stack.make("up")
        assert done.returncode == 1
        assert (
            "the database was not migrated (its log is above), so nothing was started" in done.stderr.splitlines()[-1]
        )
        assert "Connection refused" in done.stderr or "Connect call failed" in done.stderr, done.stderr
    finally:
        stack.down()
        database.remove()


def test_a_shop_that_starts_without_its_database_refuses_orders_until_it_comes() -> None:
    """As after a power cut: the engine starts containers in any order, and nobody migrates. At first there is no
    database, then none of its connections is free."""
    database = Database(max_connections=4)
    stack = shop.native("shop-early", database, APP_MIGRATE="")
    others: list[subprocess.Popen[str]] = []

    def one_more() -> bool:
        """Whether another session with the database got in."""
        others.append(subprocess.Popen(database.psql(), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True))
        assert others[-1].stdin
        assert others[-1].stdout
        with suppress(BrokenPipeError):
            others[-1].stdin.write("\\echo in\n")
            others[-1].stdin.flush()
        return others[-1].stdout.readline() == "in\n"

    try:
        stack.up()
        with stack.client() as client:
            assert place(client, "early").status_code == 503
            database.start()
            while one_more():
                pass
            assert client.get("/health/database").status_code == 503
            for other in others:
                other.kill()
            until("an answer", lambda: client.get("/health/database").status_code == 200)
    finally:
        for other in others:
            other.kill()
            other.wait()
        stack.down()
        database.remove()


MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "{number}"
down_revision = "{before}"

def upgrade():
    {upgrade}
"""


@pytest.fixture(scope="module")
def containers() -> Iterator[Stack]:
    require_engine()
    yield from started(shop.compose("shop"))


def edit(stack: Stack, name: str, before: str, after: str) -> None:
    path = stack.root / "app/shop" / name
    text = path.read_text()
    assert before in text, f"{name} has no {before!r}"
    path.write_text(text.replace(before, after))


def test_the_readme_brings_the_shop_into_the_stack(containers: Stack) -> None:
    with containers.client() as client:
        placed = place(client, "readme")
        assert placed.status_code == 201, placed.text
        assert client.get(f"/orders/{placed.json()['id']}").json() == placed.json()
    names = {name: set(containers.inspect(containers.containers(name)[0])["NetworkSettings"]["Networks"])
             for name in ("app", "nginx", "database")}  # fmt: skip
    assert names["app"] & names["database"] == {f"{containers.project}_database"}
    assert not names["nginx"] & names["database"], "nginx reaches the database"
    assert containers.compose("ps", "--all", "--quiet", "migrate") == ""


def test_an_order_that_two_replicas_get_at_once_is_one_order(containers: Stack) -> None:
    """Only the database knows of both."""
    database = shop.ComposeDatabase(containers)

    def replicas_that_got_one() -> set[str]:
        """The addresses of the app's containers that such an order has come to."""
        ids = {answer.headers["x-request-id"] for answer in place_at_once(containers, database)}
        lines = until("nginx's log of them", lambda: found if len(found := logged(ids)) == len(ids) else None)
        return {address.partition(":")[0] for line in lines for address in line["upstream"].split(", ")}

    def logged(ids: set[str]) -> list[dict[str, Any]]:
        return [line for line in containers.access_log() if line["request_id"] in ids]

    containers.scale(2)
    try:
        until("an order that came to both replicas", lambda: len(replicas_that_got_one()) == 2)
    finally:
        containers.scale(1)


def test_the_schema_expands_and_contracts_under_load_and_no_order_is_lost(containers: Stack) -> None:
    """Three deploys: a column and the code that uses it, the code without it, the schema without it."""
    versions = containers.root / "app/shop/migrations/versions"
    database = shop.ComposeDatabase(containers)
    model = "    quantity: Mapped[int]\n", "    quantity: Mapped[int]\n    note: Mapped[str | None]\n"
    field = "class PlacedOrder", "    note: str | None = None\n\n\nclass PlacedOrder"

    def deploy() -> None:
        with shop.orders(containers, database) as load:
            load.run_for(1)
            done = containers.make("deploy")
            load.run_for(1)
        assert done.returncode == 0, done.stdout + done.stderr
        print(load.outcome)
        load.outcome.assert_nothing_lost_or_doubled()

    (versions / "0002_note.py").write_text(
        MIGRATION.format(number="0002", before="0001", upgrade="op.add_column('orders', sa.Column('note', sa.Text()))")
    )
    edit(containers, "models.py", *model)
    edit(containers, "main.py", *field)
    deploy()
    with containers.client() as client:
        assert place(client, "noted", ORDER | {"note": "as a gift"}).json()["note"] == "as a gift"
    edit(containers, "models.py", *reversed(model))
    edit(containers, "main.py", *reversed(field))
    deploy()
    (versions / "0003_no_note.py").write_text(
        MIGRATION.format(number="0003", before="0002", upgrade="op.drop_column('orders', 'note')")
    )
    deploy()
    assert database.ask("SELECT version_num FROM alembic_version") == ["0003"]
    assert database.ask("SELECT count(*) FROM orders WHERE key = 'noted'") == ["1"]


def test_a_migration_that_fails_in_a_deploy_leaves_orders_and_schema_as_they_are(containers: Stack) -> None:
    database = shop.ComposeDatabase(containers)
    (version,) = database.ask("SELECT version_num FROM alembic_version")
    file = containers.root / "app/shop/migrations/versions/9999_bad.py"
    upgrade = "op.add_column('orders', sa.Column('half', sa.Text())); op.drop_column('orders', 'nowhere')"
    file.write_text(MIGRATION.format(number="9999", before=version, upgrade=upgrade))
    before = containers.containers("app")
    try:
        with shop.orders(containers, database) as load:
            done = containers.make("deploy")
    finally:
        file.unlink()
    assert done.returncode == 1
    assert "so nothing was started or replaced" in done.stderr.splitlines()[-1]
    assert containers.containers("app") == before
    assert database.ask("SELECT version_num FROM alembic_version") == [version]
    assert database.ask("SELECT count(*) FROM information_schema.columns WHERE column_name = 'half'") == ["0"]
    load.outcome.assert_nothing_lost_or_doubled()


def test_a_migration_that_waits_for_a_lock_gives_up_and_orders_go_on(containers: Stack) -> None:
    """Behind a change of the schema that waits, every order would wait as well."""
    database = shop.ComposeDatabase(containers)
    (version,) = database.ask("SELECT version_num FROM alembic_version")
    file = containers.root / "app/shop/migrations/versions/9999_waits.py"
    upgrade = "op.add_column('orders', sa.Column('x', sa.Text()))"
    holder = ["docker", "exec", "--interactive", *containers.containers("database")]
    holder += ["psql", "--quiet", "--username=shop"]
    with subprocess.Popen(holder, stdin=PIPE, stdout=PIPE, text=True) as session:
        assert session.stdin
        assert session.stdout
        try:
            session.stdin.write("BEGIN; SELECT id FROM orders LIMIT 1; \\echo locked\n")
            session.stdin.flush()
            assert any("locked" in line for line in session.stdout)
            file.write_text(MIGRATION.format(number="9999", before=version, upgrade=upgrade))
            with shop.orders(containers, database) as load:
                done = containers.make("deploy")
        finally:
            file.unlink(missing_ok=True)
            session.stdin.close()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "canceling statement due to lock timeout" in done.stdout + done.stderr
    assert database.ask("SELECT version_num FROM alembic_version") == [version]
    load.outcome.assert_nothing_lost_or_doubled()


def test_a_database_container_that_is_killed_comes_back_with_all_orders(containers: Stack) -> None:
    database = shop.ComposeDatabase(containers)
    (container,) = containers.containers("database")
    with containers.client() as client, shop.orders(containers, database) as load:
        load.run_for(1)
        docker("kill", container)
        until("503", lambda: place(client, "away").status_code == 503)
        docker("start", container)
        until("two seconds of orders, none of them lost", lambda: none_lost(load, 2))
    assert_nothing_answered_is_missing(load.outcome)
