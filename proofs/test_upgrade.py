"""A newer version of the stack merges under somebody's app: what is theirs and what is the stack's do not meet."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dotenv import dotenv_values

from proofs.stack import patched_copy

AUTHOR = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]


@pytest.fixture
def tree() -> Iterator[Path]:
    root = patched_copy([])
    yield root
    shutil.rmtree(root)


def git(tree: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *AUTHOR, *arguments], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, f"git {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def commit(tree: Path, branch: str, change: Callable[[Path], None]) -> None:
    git(tree, "switch", "--quiet", "--create", branch, "version-1")
    change(tree)
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", branch)


def edit(path: Path, *changes: tuple[str, str]) -> None:
    """Put the second of each pair in the place of the first, a pattern that must be found."""
    text = path.read_text()
    for pattern, new in changes:
        text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
        assert count, f"{path.name} has no {pattern}"
    path.write_text(text)


def yours(tree: Path) -> None:
    """What docs/your-app.md tells to do, and what `uv add --group app` leaves."""
    (tree / "app/main.py").write_text("from fastapi import FastAPI\n\napp = FastAPI()\n")
    (tree / "app/shop").mkdir(exist_ok=True)
    (tree / "app/shop/pyproject.toml").write_text('[project]\nname = "shop"\nversion = "1"\n')
    (tree / ".env.app").write_text("DATABASE_URL=${DATABASE_URL:?set it in the shell}\n")
    (tree / "docker-compose.override.yml").write_text("services: { store: { image: nginx:1.30 } }\n")
    own = {
        "APP_MODULE": "app.main:app",
        "WORKERS": "4",
        "SERVER_NAMES": "example.com",
        "CLIENT_MAX_BODY_BYTES": "5000000",
    }
    edit(tree / ".env", *((f"^{row}=.*", f"{row}={value}") for row, value in own.items()))
    edit(tree / "pyproject.toml", (r"^app = \[[^]]*\]", 'app = [\n    "sqlalchemy>=2.0",\n]'))
    entry = '[[package]]\nname = "sqlalchemy"\nversion = "2.0.0"\nsource = { registry = "https://pypi.org/simple" }\n\n'
    edit(tree / "uv.lock", (r'^\[\[package\]\]\nname = "starlette"', f'{entry}[[package]]\nname = "starlette"'))


def the_stacks(tree: Path) -> None:
    """A release: rows, services, versions, and the README from its first line to its last."""
    edit(
        tree / ".env",
        (r"^REQUEST_DEADLINE_SECONDS=.*", "REQUEST_DEADLINE_SECONDS=9"),
        (r"^HTTP_PORT=.*", "HTTP_PORT=81"),
        (r"^LOG_LEVEL=.*", "LOG_LEVEL=warning\n# New in this version.\nNEW_ROW=1"),
    )
    edit(
        tree / "docker-compose.yml",
        (r"^  locust: ", "  new: { image: nginx:1.30 }\n\n  locust: "),
        (r"^      LOG_LEVEL:$", "      LOG_LEVEL:\n      NEW_ROW:"),
    )
    edit(tree / "pyproject.toml", (r'"uvicorn>=[^"]*"', '"uvicorn>=0.99"'), (r'"mypy>=[^"]*"', '"mypy>=99"'))
    edit(tree / "uv.lock", (r'(name = "(starlette|sqlparse|uvicorn)"\nversion = ).*', r'\1"99.0.0"'))
    (tree / "README.md").write_text("".join(f"{line}, said anew\n" for line in (tree / "README.md").open()))
    git(tree, "mv", "app/server/turns.py", "app/server/other.py")


def test_a_newer_version_of_the_stack_merges_under_an_app(tree: Path) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "version 1")
    git(tree, "tag", "version-1")
    commit(tree, "yours", yours)
    commit(tree, "version-2", the_stacks)
    git(tree, "switch", "--quiet", "yours")
    git(tree, "merge", "--quiet", "--no-edit", "version-2")
    rows = dotenv_values(tree / ".env")
    assert (rows["APP_MODULE"], rows["WORKERS"], rows["SERVER_NAMES"]) == ("app.main:app", "4", "example.com")
    assert (rows["NEW_ROW"], rows["REQUEST_DEADLINE_SECONDS"], rows["HTTP_PORT"]) == ("1", "9", "81")
    project = (tree / "pyproject.toml").read_text()
    assert '"sqlalchemy>=2.0"' in project
    assert '"uvicorn>=0.99"' in project
    assert 'name = "sqlalchemy"' in (tree / "uv.lock").read_text()
