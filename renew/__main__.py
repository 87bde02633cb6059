"""`python -m renew`: asks a CA for the certificate of ACME_NAMES, publishes it for nginx, and renews it.

Certbot asks and keeps account and keys in RENEW_STATE. The CA's question is answered by nginx from RENEW_PUBLISHED.
What came is checked, then renamed to RENEW_PUBLISHED/site.pem: nginx sees it by itself. Until TERM.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from typing import IO, NoReturn
from urllib.parse import urlsplit

from renew import pem, share

# A CA that answers no more is given up.
ORDER_SECONDS = 300
# After a failure; twice as long after each further one, up to ACME_CHECK_SECONDS.
PAUSE_SECONDS = 60
# WAY=swarm: how often each node looks for a new one where the CA is asked.
COPY_SECONDS = 2


def main(environ: Mapping[str, str]) -> NoReturn:
    """Never returns. Raises SystemExit where there is no name to ask for; whatever ends it, certbot has ended."""
    names = environ["ACME_NAMES"].split()
    if not names:
        sys.exit("acme: ACME_NAMES is empty: set it to the names of this machine, as www.example.com")
    check_seconds = int(environ["ACME_CHECK_SECONDS"])
    state, published = Path(environ["RENEW_STATE"]), Path(environ["RENEW_PUBLISHED"])
    for folder in (state, published):
        folder.mkdir(parents=True, exist_ok=True)
    lock = _alone(state)
    failures = 0
    if "RENEW_SEAL" in environ:
        share.serve(published, share.seal(environ))
    with lock:
        while True:
            try:
                order(environ)
                said = publish(latest(environ), published, names)
                say(said or f"{until(published)}; next look in {check_seconds} s")
                failures = 0
            except (OSError, OrderError, pem.UnusableError) as error:
                failures += 1
                pause = min(check_seconds, PAUSE_SECONDS * 2 ** (failures - 1))
                say(f"no new certificate for {' '.join(names)}: {error}; {until(published)}; next try in {pause} s")
            note(published, failures)
            time.sleep(pause if failures else check_seconds)


def copy(environ: Mapping[str, str]) -> NoReturn:
    """Publish what RENEW_FROM has, again and again. A failure is said once; what is published stays."""
    published, names = Path(environ["RENEW_PUBLISHED"]), environ["ACME_NAMES"].split()
    opening, said = share.seal(environ), ""
    while True:
        try:
            line = publish(share.fetch(environ["RENEW_FROM"], opening), published, names)
        except (OSError, HTTPException, pem.UnusableError) as error:
            line = f"nothing from {environ['RENEW_FROM']}: {error}; {until(published)}"
        if line and line != said:
            say(line)
        said = line
        time.sleep(COPY_SECONDS)


class OrderError(Exception):
    """Why the CA has given no certificate, in a line."""


def latest(environ: Mapping[str, str]) -> bytes:
    """Key and chain that came last. A folder for each CA: another ACME_DIRECTORY begins anew."""
    folder = Path(environ["RENEW_STATE"]) / "live" / _lineage(environ)
    return (folder / "privkey.pem").read_bytes() + (folder / "fullchain.pem").read_bytes()


def order(environ: Mapping[str, str]) -> None:
    """Ask for a certificate where there is none for these names, or it is time for a new one.

    Raises OrderError.
    """
    state = environ["RENEW_STATE"]
    email = environ["ACME_EMAIL"]
    account = ["--email", email] if email else []
    command = [
        str(Path(sys.executable).with_name("certbot")), "certonly", "--non-interactive", "--agree-tos",
        "--server", environ["ACME_DIRECTORY"], *account,
        "--webroot", "--webroot-path", environ["RENEW_PUBLISHED"],
        "--cert-name", _lineage(environ), "--domains", ",".join(environ["ACME_NAMES"].split()),
        "--keep-until-expiring", "--renew-with-new-domains",
        "--config-dir", state, "--work-dir", f"{state}/work", "--logs-dir", f"{state}/logs", "--max-log-backups", "3",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ORDER_SECONDS)
    except subprocess.TimeoutExpired:
        raise OrderError(f"{environ['ACME_DIRECTORY']} gave no certificate within {ORDER_SECONDS} s") from None
    if done.returncode:
        raise OrderError(reason(done.stdout + done.stderr))


def reason(said: str) -> str:
    """Certbot's own word for what went wrong: the CA's, or its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    details = [line.removeprefix("Detail: ") for line in lines if line.startswith("Detail: ")]
    unexpected = [after for line, after in pairwise(lines) if line.startswith("An unexpected error")]
    rest = [line for line in lines if not line.startswith(("Ask for help", "See the logfile", "Some challenges"))]
    return " / ".join(details or unexpected or rest[-1:] or ["certbot ended without a word"])[:500]


def publish(new: bytes, published: Path, names: list[str]) -> str:
    """Rename it into nginx's sight, where it is usable and not yet there; what it says of itself.

    Raises UnusableError or OSError: what was published stays.
    """
    file = published / "site.pem"
    if file.exists() and file.read_bytes() == new:
        return ""
    certificate = pem.first_certificate(new)
    pem.hold_to_dates(certificate)
    if missing := sorted(set(names) - set(pem.names(certificate))):
        raise pem.UnusableError(f"it is not for {' '.join(missing)}")
    part = published / "site.new"
    with part.open("wb") as written:
        written.write(new)
        written.flush()
        os.fsync(written.fileno())
    part.rename(file)
    return f"published a new certificate: {until(published)}"


def until(published: Path) -> str:
    """How long what is published lasts, in words."""
    end = _end(published)
    if end is None:
        return "nothing is published: HTTPS answers nobody"
    days = (end - datetime.datetime.now(datetime.UTC)).total_seconds() / 86_400
    return f"the published one lasts until {end:%Y-%m-%d %H:%M} UTC, {days:.1f} days"


def note(published: Path, failures: int) -> None:
    """The same for Prometheus, in site.prom."""
    end = _end(published)
    text = (
        "# HELP tls_certificate_not_after_timestamp_seconds Until when the certificate in service is valid.\n"
        "# TYPE tls_certificate_not_after_timestamp_seconds gauge\n"
        f"tls_certificate_not_after_timestamp_seconds {end.timestamp() if end else 0:.0f}\n"
        "# HELP tls_certificate_failures Failures to get a certificate since the last success.\n"
        "# TYPE tls_certificate_failures gauge\n"
        f"tls_certificate_failures {failures}\n"
    )
    part = published / "site.prom.new"
    try:
        part.write_text(text)
        part.rename(published / "site.prom")
    except OSError as error:
        say(f"cannot write {published}/site.prom: {error}")


def say(line: str) -> None:
    print(f"acme: {line}", flush=True)


def _lineage(environ: Mapping[str, str]) -> str:
    parts = urlsplit(environ["ACME_DIRECTORY"])
    return f"{parts.netloc}{parts.path}".replace("/", "-").replace(":", "-")


def _end(published: Path) -> datetime.datetime | None:
    try:
        return pem.first_certificate((published / "site.pem").read_bytes()).not_valid_after_utc
    except (OSError, pem.UnusableError):
        return None


def _alone(state: Path) -> IO[str]:
    """The file whose lock this process holds from now on; waits where another has it."""
    file = (state / "renew.lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"another one renews in {state}: this one waits for its end")
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


if __name__ == "__main__":
    os.umask(0o027)  # nginx, of the same group, reads; nobody else
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (copy if "RENEW_FROM" in os.environ else main)(os.environ)
