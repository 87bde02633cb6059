from __future__ import annotations

import re

import pytest
from dotenv import dotenv_values

from app.server import budget
from app.server.settings import Settings, SettingsError, read
from stack.settings import GIVEN, ROOT, StackSettings

ROWS = {name: value or "" for name, value in dotenv_values(ROOT / ".env").items()}


def settings(**rows: str) -> StackSettings:
    return read(StackSettings, GIVEN | ROWS | rows)


def test_the_committed_table_is_good() -> None:
    assert budget.violations(settings()) == []


def test_no_checked_row_is_missing_and_every_row_that_the_stack_reads_is_checked() -> None:
    """A row that only the user's docker-compose.override.yml reads may stand in .env too."""
    fields = {name.upper() for name in StackSettings.model_fields} - set(GIVEN)
    assert fields <= set(ROWS)
    text = (ROOT / "docker-compose.yml").read_text()
    read_by_compose = re.findall(r"\$\{(\w+)", text) + re.findall(r"^      ([A-Z_]+):$", text, flags=re.MULTILINE)
    assert set(read_by_compose) <= fields


def test_a_missing_row_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^WORKERS is not set: put its row back into \.env$"):
        read(Settings, GIVEN | {name: value for name, value in ROWS.items() if name != "WORKERS"})


def test_every_fault_has_a_line_of_its_own() -> None:
    with pytest.raises(SettingsError) as caught:
        settings(WORKERS="0", LOG_LEVEL="loud")
    assert [line.partition("=")[0] for line in str(caught.value).splitlines()] == ["WORKERS", "LOG_LEVEL"]


@pytest.mark.parametrize("rule", budget.RULES, ids=lambda rule: rule.name)
def test_a_rule_holds_on_one_side_of_its_bound_and_breaks_on_the_other(rule: budget.Rule) -> None:
    good = settings()
    bound = budget._in_seconds(good, rule.right) * rule.factor / (good.workers if rule.each_worker else 1)
    bound -= budget._in_seconds(good, rule.plus) if rule.plus else 0
    unit = 1000 if rule.left.endswith("_ms") else 1
    strict = rule.relation in ("less than", "more than")
    step = -1 if rule.relation in ("less than", "at most") else 1
    just_good, just_bad = (bound * unit + step, bound * unit) if strict else (bound * unit, bound * unit - step)
    assert rule.broken_by(good.model_copy(update={rule.left: int(just_good)})) is None
    line = rule.broken_by(good.model_copy(update={rule.left: int(just_bad)}))
    assert line is not None
    for part in (rule.name, f"{rule.left.upper()}={int(just_bad)}", f"{rule.right.upper()}=", rule.symptom):
        assert part in line


@pytest.mark.parametrize("seconds", [1, 3, 60, 600])
def test_one_row_changes_the_longest_wait_and_the_rows_that_follow_are_offered(seconds: int) -> None:
    changed = settings(REQUEST_DEADLINE_SECONDS=str(seconds))
    *broken, offer = budget.violations(changed)
    assert broken
    assert offer.startswith("these rows hold: ")
    rows = dict(row.split("=") for row in offer.removeprefix("these rows hold: ").split())
    assert "REQUEST_DEADLINE_SECONDS" not in rows
    assert budget.violations(settings(REQUEST_DEADLINE_SECONDS=str(seconds), **rows)) == []


def test_rows_that_hold_are_not_changed() -> None:
    assert budget.fitting(settings()) == {}
