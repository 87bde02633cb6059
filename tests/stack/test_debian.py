from __future__ import annotations

from pathlib import Path

import pytest

from bench import load
from stack import debian
from stack.console import Failure


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it but an apt-get that installs a program of the package's name, or cannot."""
    (tmp_path / "apt-get").write_text(
        '#!/bin/bash\necho "$@" >>"${0%/*}/calls"\n'
        'if [ -e "${0%/*}/broken" ]; then echo "E: no route to the mirror" >&2; exit 100; fi\n'
        'if [ "$1" = install ]; then p="${0%/*}/${!#}"; echo "#!/bin/bash" >"$p"; /bin/chmod +x "$p"; fi\n'
    )
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(debian, "PATH", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 0)
    return tmp_path


def test_a_program_is_installed_after_an_update_of_the_lists(apt: Path) -> None:
    assert debian.found("wrk") is None
    debian.install("wrk")
    assert debian.found("wrk") == str(apt / "wrk")
    assert [line.split()[0] for line in (apt / "calls").read_text().splitlines()] == ["update", "install"]


def test_what_cannot_be_installed_says_why(apt: Path) -> None:
    (apt / "broken").touch()
    with pytest.raises(Failure, match=r"apt-get update --quiet failed: E: no route to the mirror; install wrk by hand"):
        debian.install("wrk")


def test_only_root_with_apt_get_can_install(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert debian.can_install()
    monkeypatch.setattr("os.getuid", lambda: 1000)
    assert not debian.can_install()


def test_the_load_comes_from_wrk_where_it_can_be_installed(apt: Path) -> None:
    assert load.generator() == "Locust"
    assert load.prepare() == "wrk"
    assert load.generator() == "wrk"


def test_the_load_comes_from_locust_where_wrk_cannot_be_had_and_says_why(
    apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (apt / "broken").touch()
    assert load.prepare().startswith("Locust (apt-get update --quiet failed: E: no route")
    monkeypatch.setattr("os.getuid", lambda: 1000)
    assert "sudo apt-get install wrk" in load.prepare()
