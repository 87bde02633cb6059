"""What make mutate says of a change that is noticed, of one that is not, and of one that cannot be tried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proofs import mutate
from proofs.settings import Setting, pages
from proofs.stack import Patch

PROOF = "tests/app/test_memory.py::test_without_proc_nothing_is_known"
NOTICED: Patch = ("app/server/memory.py", "        return 0\n", "        return 1\n")
UNNOTICED: Patch = ("app/server/memory.py", '"""How much memory', '"""How  much memory')
NO_PYTHON: Patch = ("app/server/memory.py", "import os\n", "import os os\n")


def setting(name: str, patch: Patch) -> Setting:
    return Setting([name], "does something", "none", "changed", [patch], [PROOF])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    monkeypatch.setattr(mutate, "REPORTS", tmp_path)
    monkeypatch.setattr(mutate, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(mutate, "faults", lambda inventory: [])
    monkeypatch.setattr(pages, "write", lambda results: print("the pages are written"))

    def run(*settings: Setting, arguments: tuple[str, ...] = ()) -> int:
        monkeypatch.setattr(mutate, "TABLE", list(settings))
        monkeypatch.setattr("sys.argv", ["mutate", *arguments])
        return mutate.main()

    return run


def test_a_change_that_is_noticed_is_killed_and_not_tried_again(run, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run(setting("a", NOTICED)) == 0
    said = capsys.readouterr().out
    assert "killed   a -> changed: 1 == 0" in said
    assert "the pages are written" in said
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["settings"]["a"]["proof"] == PROOF
    # As after an interruption: what is known is kept, what is not is tried.
    assert run(setting("a", NOTICED), setting("b", NOTICED)) == 0
    said = capsys.readouterr().out
    assert "1 of 2 are known from a run before" in said
    assert "1 of 1, 0 min left: killed   b" in said
    assert "proofs, on the tree as it is" not in said


@pytest.mark.parametrize(("patch", "verdict"), [(UNNOTICED, "survived"), (NO_PYTHON, "broken")])
def test_a_change_that_is_not_noticed_or_cannot_be_tried_fails_the_run(run, capsys, patch, verdict) -> None:  # type: ignore[no-untyped-def]
    assert run(setting("a", patch)) == 1
    assert f"{verdict:8} a -> changed" in capsys.readouterr().out


def test_a_proof_that_fails_without_a_change_proves_nothing(run) -> None:  # type: ignore[no-untyped-def]
    nothing = Setting(
        ["a"], "does something", "none", "changed", [NOTICED], ["tests/app/test_memory.py::test_of_nothing"]
    )
    with pytest.raises(SystemExit) as ended:
        run(nothing)
    assert ended.value.code not in (0, None)


def test_a_name_that_no_setting_has_is_said(run, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run(setting("a", NOTICED), arguments=("nowhere",)) == 2
    assert "ONLY=nowhere" in capsys.readouterr().err
