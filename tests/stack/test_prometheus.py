"""The rules and the dashboard as files; proofs/test_prometheus.py has them in a stack."""

from __future__ import annotations

import pytest

from prometheus import dashboard
from proofs.conftest import lacks
from stack import check, debian, native
from stack.console import Failure
from stack.settings import ROOT


def test_the_rules_pass_their_tests() -> None:
    command = check.promtool()
    if not command:
        lacks("no promtool: neither the package prometheus nor the image", "REQUIRE_PROMETHEUS")
    check.hold_rules(command)


def test_each_alert_has_a_test_in_which_it_fires() -> None:
    tests = (ROOT / "prometheus/rules_test.yml").read_text()
    missing = [rule["alert"] for rule in dashboard.rules() if f'{{alertname="{rule["alert"]}"}}' not in tests]
    assert not missing


def test_each_alert_has_a_proof_in_which_its_failure_fires_it() -> None:
    proofs = (ROOT / "proofs/test_prometheus.py").read_text()
    missing = [rule["alert"] for rule in dashboard.rules() if f'"{rule["alert"]}"' not in proofs]
    assert not missing


def test_each_alert_says_what_to_do_and_whom_to_wake() -> None:
    for rule in dashboard.rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}


def test_the_dashboard_and_the_page_are_those_of_their_code() -> None:
    what = "is not that of prometheus/dashboard.py: python -m prometheus.dashboard"
    assert dashboard.JSON.read_text() == dashboard.dashboard(), what
    assert dashboard.ALERTS.read_text() == dashboard.page(), what


def test_a_machine_without_prometheus_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "found", lambda program: None)
    with pytest.raises(Failure, match="METRICS=on: prometheus is not installed; sudo apt-get install prometheus"):
        native.prometheus()
