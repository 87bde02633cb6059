"""Django with its admin: a project as startproject makes it, and one application with a model for uploads.

Needed: the packages django and whitenoise; the 7 lines of SETTINGS; PYTHONPATH in .env.app; for bodies of up to 6 MiB
the rows CLIENT_MAX_BODY_BYTES and NGINX_MAX_UPLOADS_IN_FLIGHT; migrate and createsuperuser by hand.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from proofs.conftest import started
from proofs.stack import PATIENT_BUDGET, Stack

pytestmark = pytest.mark.xdist_group(__name__)

SETTINGS = """
import os
DEBUG = False
ALLOWED_HOSTS = ["*"]  # SERVER_NAMES has them
SECRET_KEY = os.environ["SECRET_KEY"]
MIDDLEWARE.insert(1, "whitenoise.middleware.WhiteNoiseMiddleware")
WHITENOISE_USE_FINDERS = True  # the static files of all applications, without collectstatic
MEDIA_ROOT = os.environ["DATA_DIR"]
DATABASES["default"]["NAME"] = f"{MEDIA_ROOT}/site.sqlite3"

INSTALLED_APPS.append("documents")
"""
MODEL = """
from django.contrib import admin
from django.db import models
class Document(models.Model):
    title = models.CharField(max_length=100)
    file = models.FileField()
    def __str__(self): return self.title
admin.site.register(Document)
"""
ROWS = PATIENT_BUDGET | {
    "APP_MODULE": "mysite.asgi:application",
    "APP_ENV_FILE": ".env.app",
    "CLIENT_MAX_BODY_BYTES": str(6 << 20),
    "NGINX_MAX_UPLOADS_IN_FLIGHT": "23",
    "CLIENT_MAX_UPLOADS_IN_FLIGHT": "16",
}
UPLOAD = bytes(range(256)) * (5_000_000 // 256)
USER, PASSWORD = "ada", "of a proof"


@pytest.fixture(scope="module")
def site() -> Iterator[Stack]:
    files = {".env.app": "PYTHONPATH=app/site\n", "app/site/README": ""}
    stack = Stack("native", "django", files=files, SECRET_KEY="of a proof", **ROWS)
    yield from started(stack, make_project)


def make_project(stack: Stack) -> None:
    folder, data = stack.root / "app/site", stack.folder / "data"
    data.mkdir(parents=True)
    environ = stack.environ | {"DATA_DIR": str(data), "DJANGO_SUPERUSER_PASSWORD": PASSWORD}

    def run(*command: str) -> None:
        subprocess.run([sys.executable, *command], cwd=folder, env=environ, check=True)

    run("-m", "django", "startproject", "mysite", ".")
    run("manage.py", "startapp", "documents")
    (folder / "documents/models.py").write_text(MODEL)
    with (folder / "mysite/settings.py").open("a") as settings:
        settings.write(SETTINGS)
    run("manage.py", "makemigrations", "--verbosity=0", "documents")
    run("manage.py", "migrate", "--verbosity=0")
    run("manage.py", "createsuperuser", "--no-input", f"--username={USER}", "--email=ada@example.com")


def send_form(client: httpx.Client, path: str, fields: dict[str, str], **files: tuple[str, bytes]) -> httpx.Response:
    """Fetch the page of the form and send it, with the token that the page has for it."""
    page = client.get(path)
    assert page.status_code == 200, page.text
    (token,) = set(re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text))
    return client.post(path, data=fields | {"csrfmiddlewaretoken": token}, files=files or None)


def log_in(client: httpx.Client) -> None:
    logged_in = send_form(client, "/admin/login/?next=/admin/", {"username": USER, "password": PASSWORD})
    assert (logged_in.status_code, logged_in.headers.get("location")) == (302, "/admin/"), logged_in.text


def test_a_person_logs_in_and_stays_logged_in_on_all_workers(site: Stack) -> None:
    with site.client() as client:
        log_in(client)
        pages = [client.get("/admin/") for _ in range(10)]
    assert {page.status_code for page in pages} == {200}
    assert all("Documents" in page.text for page in pages)


def test_a_form_from_another_site_is_refused(site: Stack) -> None:
    with site.client() as client:
        client.get("/admin/login/")
        fields = {"username": USER, "password": PASSWORD}
        assert client.post("/admin/login/", data=fields).status_code == 403
        client.headers["Origin"] = "http://elsewhere.example"
        assert send_form(client, "/admin/login/", fields).status_code == 403
        client.headers["Origin"] = site.url
        assert send_form(client, "/admin/login/", fields).status_code == 302


def test_static_files_are_served_and_compressed(site: Stack) -> None:
    with site.client() as client:
        (path,) = re.findall(r'href="(/static/[^"]*/base\.css)"', client.get("/admin/login/").text)
        sheet = client.get(path, headers={"Accept-Encoding": "gzip"})
        script = client.get("/static/admin/js/core.js", headers={"Accept-Encoding": "gzip"})
    for answer, kind in ((sheet, "text/css"), (script, "text/javascript")):
        assert answer.headers["content-type"].startswith(kind)
        assert (answer.status_code, answer.headers.get("content-encoding")) == (200, "gzip")
        assert "{" in answer.text


def test_a_file_of_5_mb_is_uploaded(site: Stack) -> None:
    with site.client() as client:
        log_in(client)
        sent = send_form(client, "/admin/documents/document/add/", {"title": "all bytes"}, file=("all.bin", UPLOAD))
        assert sent.status_code == 302, sent.text
        assert "all bytes" in client.get("/admin/documents/document/").text
    assert (site.folder / "data/all.bin").read_bytes() == UPLOAD
