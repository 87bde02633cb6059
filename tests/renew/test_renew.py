"""What the loop publishes, what it says, and when it tries again."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest

from proofs import certificates
from renew import __main__ as renew
from renew.pem import UnusableError

DIRECTORY = "https://ca.test/dir"


def no_good() -> dict[str, tuple[bytes, bytes, str]]:
    key, other = certificates.make_key(), certificates.make_key()
    own = certificates.private(key)
    return {
        "empty": (b"", b"", "it is empty"),
        "no certificate": (own, b"", "it holds no certificate"),
        "half a certificate": (own, certificates.certificate(key)[:300], "it holds no certificate"),
        "another's key": (certificates.private(other), certificates.certificate(key), "the private key is not that of"),
        "expired": (own, certificates.certificate(key, -30, -1), "it expired on"),
        "not yet valid": (own, certificates.certificate(key, 1, 30), "is the clock right?"),
        "another's name": (own, certificates.certificate(key, -1, 30, "a.test"), "it is not for b.test"),
    }


NO_GOOD = no_good()


@pytest.mark.parametrize("what", NO_GOOD)
def test_what_cannot_be_used_is_not_published(tmp_path: Path, what: str) -> None:
    key, chain, said = NO_GOOD[what]
    (tmp_path / "site.pem").write_bytes(b"what is in service")
    with pytest.raises(UnusableError, match=said.replace("?", r"\?")):
        renew.publish(key + chain, tmp_path, ["a.test", "b.test"])
    assert (tmp_path / "site.pem").read_bytes() == b"what is in service"


def test_what_came_is_published_once_also_after_a_crash_in_between(tmp_path: Path) -> None:
    key = certificates.make_key()
    chain = certificates.certificate(key, -1, 30, "a.test")
    pem = certificates.private(key) + chain
    (tmp_path / "site.new").write_bytes(b"half of a cert")
    assert renew.publish(pem, tmp_path, ["a.test"]).startswith("published a new certificate: ")
    assert (tmp_path / "site.pem").read_bytes() == pem
    assert renew.publish(pem, tmp_path, ["a.test"]) == ""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Requesting a certificate\n  Domain: b.test\n  Type:   connection\n  Detail: 192.0.2.1: refused\n\n"
         "Some challenges have failed.\nAsk for help or search for solutions\n", "192.0.2.1: refused"),
        ("Saving debug log\nAn unexpected error occurred:\nrequests.exceptions.SSLError: no\nAsk for help\n",
         "requests.exceptions.SSLError: no"),
        ("Saving debug log\nAnother instance of Certbot is already running.\nAsk for help\n",
         "Another instance of Certbot is already running."),
        ("", "certbot ended without a word"),
    ],
)  # fmt: skip
def test_the_reason_is_the_cas_own_word(said: str, reason: str) -> None:
    assert renew.reason(said) == reason


def test_the_pause_after_a_failure_grows_and_a_success_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = iter([False] * 8 + [True, False])
    pauses: list[float] = []

    def order(environ: object) -> None:
        try:
            good = next(outcomes)
        except StopIteration:
            raise SystemExit from None
        if not good:
            raise renew.OrderError("the CA is down")

    monkeypatch.setattr(renew, "order", order)
    monkeypatch.setattr(renew, "latest", lambda _: b"")
    monkeypatch.setattr(renew, "publish", lambda *_: "")
    monkeypatch.setattr(renew.time, "sleep", pauses.append)
    environ = {"ACME_NAMES": "a.test", "ACME_DIRECTORY": DIRECTORY, "ACME_CHECK_SECONDS": "3600",
               "RENEW_STATE": f"{tmp_path}/state", "RENEW_PUBLISHED": f"{tmp_path}/published"}  # fmt: skip
    with pytest.raises(SystemExit):
        renew.main(environ)
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 60]
    assert "no new certificate for a.test: the CA is down; nothing is published" in capsys.readouterr().out
    assert "tls_certificate_failures 1\n" in (tmp_path / "published/site.prom").read_text()


def given(folder: Path, port: int) -> dict[str, str]:
    """The environment for a CA on loopback."""
    return {"ACME_NAMES": "a.test", "ACME_EMAIL": "", "ACME_DIRECTORY": f"https://localhost:{port}/dir",
            "RENEW_STATE": f"{folder}/state", "RENEW_PUBLISHED": str(folder)}  # fmt: skip


def test_a_ca_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renew, "ORDER_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(renew.OrderError, match=f"https://localhost:{port}/dir gave no certificate within 2 s"):
            renew.order(given(tmp_path, port))


def test_a_ca_whose_own_certificate_is_wrong_is_asked_for_nothing(tmp_path: Path) -> None:
    key = certificates.make_key()
    (tmp_path / "ca.pem").write_bytes(
        certificates.private(key) + certificates.certificate(key, -1, 30, "elsewhere.test")
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "ca.pem")
    heard = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a handshake that the client ends, and the end of the test
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(ssl.SSLError), context.wrap_socket(connection, server_side=True) as told:
                    heard.append(told.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with pytest.raises(renew.OrderError, match="certificate verify failed"):
            renew.order(given(tmp_path, listener.getsockname()[1]))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert not any(heard), "it was told something"


def test_without_a_name_it_says_so_and_ends(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ACME_NAMES is empty"):
        renew.main({"ACME_NAMES": ""})


def test_a_folder_that_is_full_leaves_what_is_published(tmp_path: Path) -> None:
    key = certificates.make_key()
    pem = certificates.private(key) + certificates.certificate(key, -1, 30, "a.test")
    (tmp_path / "site.pem").write_bytes(b"what is in service")
    (tmp_path / "site.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        renew.publish(pem, tmp_path, ["a.test"])
    assert (tmp_path / "site.pem").read_bytes() == b"what is in service"
