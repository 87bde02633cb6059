"""What make check says about a setting that has no proof, and about a proof whose setting is gone."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from app.server.metrics import METRICS
from live.metrics import METRICS as LIVE_METRICS
from proofs.settings import Setting, pages, table
from proofs.settings.inventory import inventory
from proofs.settings.symptoms import SYMPTOMS
from proofs.stack import ROOT, Patch, patched, patched_copy

CONF = "nginx/templates/nginx.conf.template"


def names_after(*patches: Patch) -> set[str]:
    """The inventory of a copy of the tree with these changes."""
    copy = patched_copy(patches)
    try:
        command = [sys.executable, "-m", "proofs.settings.inventory"]
        return set(subprocess.check_output(command, cwd=copy, text=True, timeout=60).splitlines())
    finally:
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("patch", "name"),
    [
        ((CONF, "    gzip on;\n", "    gzip on;\n    gzip_comp_level 9;\n"), "nginx.conf: gzip_comp_level"),
        ((CONF, "flush=1s;", "flush=1s if=$loggable;"), "nginx.conf: access_log if"),
        (("nginx/templates/proxy.conf.template", "proxy_pass", "proxy_set_header X-New new;\nproxy_pass"),
         "proxy.conf: proxy_set_header X-New"),
        (("nginx/40-upstream.sh", "max_fails=0", "max_fails=0 slow_start=1s"),
         "upstream.conf: upstream app / server slow_start"),
        (("app/server/gunicorn.conf.py", "workers = settings.workers\n", "workers = 1\npreload_app = True\n"),
         "gunicorn.conf.py: preload_app"),
        (("app/server/worker.py", "CONFIG_KWARGS: dict[str, Any] = {",
          'CONFIG_KWARGS: dict[str, Any] = {"root_path": "/x",'), "worker.py: root_path"),
        (("app/server/middleware.py", '{"/livez": self._livez,', '{"/new": self._livez, "/livez": self._livez,'),
         "middleware.py: /new"),
        (("docker-compose.yml", "  read_only: true\n", "  read_only: true\n  init: true\n"),
         "docker-compose.yml: x-hardened.init"),
        (("stack/settings.py", "    enable_lab:", "    new_row: int = 1\n    enable_lab:"), ".env: NEW_ROW"),
    ],
)  # fmt: skip
def test_a_setting_that_is_added_is_found_by_parsing(patch: Patch, name: str) -> None:
    before = set(inventory())
    assert name not in before
    assert names_after(patch) - before == {name}


def test_a_setting_without_a_proof_and_a_proof_without_its_setting_are_named() -> None:
    found = inventory()
    listed = table.TABLE[0].names[0]
    assert table.faults(["nginx.conf: brand_new", *found])[0].startswith("nginx.conf: brand_new: no proof names it")
    assert any(f"{listed}: " in fault and "gone" in fault for fault in table.faults([n for n in found if n != listed]))


def test_every_change_of_the_table_can_be_made() -> None:
    """Its text stands in its file: else make mutate would stop in the middle."""
    for setting in table.TABLE:
        if isinstance(setting, Setting):
            assert patched(setting.patches), setting.names
            assert setting.proofs, setting.names


def test_every_symptom_names_settings_and_proofs_that_exist() -> None:
    names = set(inventory())
    for symptom in SYMPTOMS:
        assert set(symptom.settings) <= names, symptom.seen
        for proof in symptom.proofs:
            path, _, test = proof.partition("::")
            assert f"def {test}(" in (ROOT / path).read_text(), proof


def test_the_page_of_symptoms_is_the_table() -> None:
    assert pages.SYMPTOMS_PAGE.read_text() == pages.symptoms_page(), "python -m proofs.mutate --write-docs"


def test_the_page_of_metrics_is_the_table_and_symptoms_name_what_exists() -> None:
    assert pages.METRICS_PAGE.read_text() == pages.metrics_page(), "python -m proofs.mutate --write-docs"
    known = {metric.family for metric in (*METRICS, *LIVE_METRICS)}
    for symptom in SYMPTOMS:
        assert pages.families(symptom) <= known, symptom.seen
