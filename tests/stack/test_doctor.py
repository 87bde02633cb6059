"""make doctor finds each fault that is planted, and a machine without one is well."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proofs.stack import ROOT, SMALL_BUDGET, free_ports
from stack import compose, doctor
from stack.settings import GIVEN, StackSettings, rows

SERVER = {
    "LOCUST": "off",
    "ENABLE_LAB": "0",
    "SERVER_NAMES": "localhost",
    "TLS": "files",
    "HTTP3": "off",
    "IPV6": "true",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH whose programs say what a file beside them says; all is well at first."""
    for program, said in (("systemctl", "enabled"), ("timedatectl", "yes"), ("docker", "/")):
        (tmp_path / f"{program}.says").write_text(said)
        (tmp_path / program).write_text(f"#!/bin/sh\nexec cat {tmp_path}/{program}.says\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(compose, "engine", lambda: "28.5.2")
    monkeypatch.setattr(compose, "check_configuration", lambda: None)
    monkeypatch.setattr(compose, "memory_limits", lambda: {"app": (64 << 20, 2), "nginx": (64 << 20, 1)})
    monkeypatch.setattr(doctor, "DISK_BYTES", 1)
    monkeypatch.setattr(compose, "running", lambda: False)
    return tmp_path


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def seen(capsys: pytest.CaptureFixture[str], **changed: str) -> tuple[int, dict[str, str]]:
    """The exit status, and each line that is not ok, by its name."""
    ports = free_ports(2)
    table = GIVEN | rows() | SMALL_BUDGET | SERVER | {"HTTP_PORT": f"{ports}", "HTTPS_PORT": f"{ports + 1}"} | changed
    status = doctor.doctor(StackSettings.model_validate({name.lower(): value for name, value in table.items()}))
    lines = capsys.readouterr().out.splitlines()
    return status, {line[8:].partition(": ")[0]: line for line in lines if not line.startswith(("ok ", "look "))}


def test_a_machine_without_a_fault_is_well(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert seen(capsys) == (0, {})


@pytest.mark.parametrize(
    ("changed", "name", "said"),
    [
        ({"LOCUST": "on"}, "LOCUST", "set LOCUST=off"),
        ({"ENABLE_LAB": "1"}, "ENABLE_LAB", "set ENABLE_LAB=0"),
        ({"SERVER_NAMES": "~."}, "SERVER_NAMES", "set it to your own"),
        ({"TLS": "off"}, "HTTPS", "set TLS=acme"),
        ({"TLS": "acme", "ACME_NAMES": "nowhere.invalid"}, "nowhere.invalid", "mend your DNS"),
    ],
)
def test_a_row_that_is_not_for_strangers_is_found(
    machine: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, str], name: str, said: str
) -> None:
    status, found = seen(capsys, **changed)
    assert (status, list(found)) == (1, [name])
    assert found[name].startswith("FAILED")
    assert said in found[name]


@pytest.mark.parametrize(
    ("program", "says", "name", "said"),
    [
        ("systemctl", "disabled", "it starts again after a reboot", "systemctl enable docker"),
        ("timedatectl", "no", "clock", "timedatectl set-ntp true"),
    ],
)
def test_what_the_system_says_is_found(
    machine: Path, capsys: pytest.CaptureFixture[str], program: str, says: str, name: str, said: str
) -> None:
    (machine / f"{program}.says").write_text(says)
    status, found = seen(capsys)
    assert (status, list(found)) == (1, [name])
    assert said in found[name]


def test_a_port_of_another_program_is_found(machine: Path, capsys: pytest.CaptureFixture[str], taken: int) -> None:
    status, found = seen(capsys, HTTP_PORT=str(taken))
    assert (status, list(found)) == (1, [f"HTTP_PORT={taken}"])


def test_an_open_port_is_shown_and_one_on_loopback_is_not(
    machine: Path, capsys: pytest.CaptureFixture[str], taken: int
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        with pytest.raises(doctor.Look) as look:
            doctor._open(StackSettings.model_validate({n.lower(): v for n, v in (GIVEN | rows()).items()}))
        shown = str(look.value).partition(": ")[0].split()
        assert str(listener.getsockname()[1]) in shown
        assert str(taken) not in shown


def test_an_engine_that_is_too_old_is_found(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "engine", lambda: "26.1.5")
    status, found = seen(capsys)
    assert (status, list(found)) == (1, ["Docker"])
    assert "with IPV6=true it must be 27 or newer" in found["Docker"]
    assert seen(capsys, IPV6="false") == (0, {})


def test_memory_and_disk_that_are_too_small_are_found(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "memory_limits", lambda: {"app": (1 << 50, 1), "nginx": (1, 1)})
    monkeypatch.setattr(doctor, "DISK_BYTES", 1 << 60)
    status, found = seen(capsys)
    assert (status, list(found)) == (1, ["memory", "disk"])
    assert "2,147,483,648 MB may be used" in found["memory"]


def test_what_cannot_be_asked_is_skipped_with_the_reason(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "timedatectl").unlink()
    (machine / "systemctl.says").write_text("")
    status, found = seen(capsys)
    assert status == 0
    assert found["clock"].startswith("skipped")
    assert found["it starts again after a reboot"].endswith("says nothing")


def test_the_command_says_it_and_exits_with_1() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stack", "doctor"],
        cwd=ROOT, env=os.environ | SMALL_BUDGET | {"LOCUST": "on"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "FAILED  LOCUST: it is on: set LOCUST=off" in done.stdout
