"""TLS=acme: a certificate that comes and is renewed by itself, from a real authority. Native and in Compose."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from proofs import http2, open_loop
from proofs.authority import Authority
from proofs.conftest import require_engine, started
from proofs.events import RATE
from proofs.open_loop import OpenLoop
from proofs.stack import DEADLINE, PATIENT_BUDGET, Stack, until
from stack.settings import ROOT

NAMES = ("a.test", "b.test")
# The authority's name in the container, and whom to trust that it is the authority: what a company with its own has to
# say too (docs/https.md).
OVERRIDE = """services:
  acme:
    extra_hosts: ["pebble:host-gateway"]
    volumes: ["{root}:/root.pem:ro"]
    environment: {{ REQUESTS_CA_BUNDLE: /root.pem }}
"""
WAYS = ["native", "compose"]


class Site:
    """A stack with TLS=acme, and the authority it asks; both not yet started."""

    def __init__(self, way: str, name: str, opened: ExitStack, seconds: int = 90 * 86_400, **rows: str) -> None:
        require_engine()  # the authority is a container
        self.files = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        self.files.chmod(0o755)
        rows = {"TLS_FOLDER": str(self.files), "ACME_NAMES": " ".join(NAMES), "ACME_CHECK_SECONDS": "2"} | rows
        self.stack = Stack(way, name, TLS="acme", **rows)
        self.authority = Authority(self.stack.http_port, seconds)
        opened.callback(self.authority.end)
        self.stack.environ["REQUESTS_CA_BUNDLE"] = str(self.authority.root)
        host = "localhost"
        if way == "compose":
            host = "pebble"
            (self.files / "override.yml").write_text(OVERRIDE.format(root=self.authority.root))
            self.stack.environ["COMPOSE_FILE"] += f":{self.files}/override.yml"
        self.stack.environ["ACME_DIRECTORY"] = f"https://{host}:{self.authority.port}/dir"

        self.stack.trust = self.trust  # type: ignore[method-assign]

    def trust(self, *protocols: str) -> ssl.SSLContext:
        """Trusts the authority, whatever name its certificate is for."""
        context = self.authority.issuers()
        context.check_hostname = False
        context.set_alpn_protocols(list(protocols))
        return context

    def log(self) -> list[str]:
        """What the loop has said."""
        if self.stack.way == "compose":
            text = self.stack.compose("logs", "--no-log-prefix", "acme")
        else:
            text = (self.stack.folder / "stack.log").read_text()
        return [line.partition("acme: ")[2] for line in text.splitlines() if "acme: " in line]

    def served(self, name: str = NAMES[0]) -> str | None:
        """The certificate that is shown to a client that trusts the authority; None where there is none."""
        with contextlib.suppress(ssl.SSLError, ConnectionError), self.connect(name) as connection:
            return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"")
        return None

    def connect(self, name: str) -> ssl.SSLSocket:
        connection = socket.create_connection(("127.0.0.1", self.stack.https_port), timeout=DEADLINE)
        return self.authority.issuers().wrap_socket(connection, server_hostname=name)

    def published(self, file: str) -> str:
        if self.stack.way == "compose":
            return self.stack.compose("exec", "acme", "cat", f"/certificates/{file}")
        return (self.files / "acme" / file).read_text()


@pytest.fixture(scope="module", params=[pytest.param(way, marks=pytest.mark.xdist_group(way)) for way in WAYS])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A fresh machine, after its start."""
    with ExitStack() as opened:
        site = Site(request.param, "acme", opened)
        site.authority.start()
        opened.enter_context(contextmanager(started)(site.stack))
        yield site


def test_a_fresh_machine_has_its_certificate_without_a_restart(site: Site) -> None:
    """At the first try: a second one would be a minute later."""
    for name in NAMES:
        until(f"a certificate for {name}", lambda name=name: site.served(name))
    assert [line for line in site.log() if "no new certificate" in line] == []
    with httpx.Client(verify=site.authority.issuers(), timeout=DEADLINE) as client:
        headers = {"Host": f"{NAMES[0]}:{site.stack.https_port}"}
        there = f"https://127.0.0.1:{site.stack.https_port}/"
        seen = client.get(there, headers=headers, extensions={"sni_hostname": NAMES[0]}).json()
    assert (seen["scheme"], seen["host"]) == ("https", headers["Host"])
    if site.stack.way == "compose":
        (nginx,) = site.stack.containers("nginx")
        assert site.stack.inspect(nginx)["RestartCount"] == 0


@pytest.mark.parametrize(
    ("path", "status"),
    [("/.well-known/acme-challenge/none", 404), ("/.well-known/acme-challenge/../../site.pem", 308),
     ("/.well-known/acme-challenge/%2e%2e/%2e%2e/site.pem", 308), ("/.well-known/other", 308)],
)  # fmt: skip
def test_plain_http_has_the_cas_question_and_no_more(site: Site, path: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", site.stack.http_port), timeout=DEADLINE) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {NAMES[0]}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert answer.startswith(f"HTTP/1.1 {status} "), answer
    assert "PRIVATE KEY" not in answer


def test_an_answer_for_the_ca_is_text(site: Site) -> None:
    until("a certificate", site.served)
    folder = ".well-known/acme-challenge"
    if site.stack.way == "compose":
        write = f"mkdir -p /certificates/{folder} && echo proof >/certificates/{folder}/token"
        site.stack.compose("exec", "acme", "sh", "-c", write)
    else:
        (site.files / "acme" / folder).mkdir(parents=True, exist_ok=True)
        (site.files / "acme" / folder / "token").write_text("proof\n")
    with httpx.Client(timeout=DEADLINE) as client:
        answer = client.get(f"http://127.0.0.1:{site.stack.http_port}/{folder}/token", headers={"Host": NAMES[0]})
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, "proof\n", "text/plain")


@pytest.mark.parametrize("site", ["compose"], indirect=True)
@pytest.mark.xdist_group("compose")
def test_the_key_is_nginxs_alone_and_the_way_out_is_the_loops_alone(site: Site) -> None:
    until("a certificate", site.served)
    stack = site.stack
    assert stack.compose("exec", "nginx", "stat", "-c", "%a %u:%g", "/certificates/site.pem").strip() == "640 10002:101"
    for service in ("app", "nginx"):
        mounts = stack.compose("exec", service, "cat", "/proc/mounts")
        assert " /acme " not in mounts, f"{service} has the account"
        assert (" /certificates " in mounts) == (service == "nginx"), service
    found = {service: stack.inspect(*stack.containers(service)) for service in ("acme", "app", "nginx")}
    (published,) = [mount for mount in found["nginx"]["Mounts"] if mount["Destination"] == "/certificates"]
    assert not published["RW"], "nginx may write there"
    attached = {service: list(container["NetworkSettings"]["Networks"]) for service, container in found.items()}
    assert attached.pop("acme") == [f"{stack.project}_ca"]
    assert not [service for service, networks in attached.items() if f"{stack.project}_ca" in networks]
    limits = found["acme"]["HostConfig"]
    assert (limits["Memory"], limits["ReadonlyRootfs"]) == (256 << 20, True)


@pytest.mark.xdist_group("native")
def test_the_ca_gets_the_address_of_the_row() -> None:
    address = "hostmaster@a.test"
    with ExitStack() as opened:
        site = Site("native", "acme-mail", opened, ACME_EMAIL=address, ACME_CHECK_SECONDS="600")
        site.authority.start()
        opened.enter_context(contextmanager(started)(site.stack))
        until("a certificate", site.served)
        said = (site.files / "acme/account/logs/letsencrypt.log").read_text()
    assert said.count(f'"mailto:{address}"') == 2, "certbot has not sent it, and the CA has not taken it"


@pytest.mark.parametrize("site", ["native"], indirect=True)
@pytest.mark.xdist_group("native")
def test_a_second_loop_waits_for_the_end_of_the_first(site: Site) -> None:
    until("a certificate", site.served)
    folder = site.files / "acme"
    environ = site.stack.environ | {"RENEW_PUBLISHED": str(folder), "RENEW_STATE": str(folder / "account")}
    second = subprocess.Popen([sys.executable, "-m", "renew"], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        assert second.stdout
        assert "another one renews in " in second.stdout.readline()
    finally:
        second.terminate()
        second.wait(timeout=DEADLINE)
    assert second.returncode == 0


@pytest.mark.xdist_group("native")
def test_a_ca_that_is_down_is_said_and_asked_again_and_one_that_refuses_is_quoted() -> None:
    with ExitStack() as opened:
        site = Site("native", "acme-late", opened)
        opened.enter_context(contextmanager(started)(site.stack))
        down = until("the CA that is down", lambda: [line for line in site.log() if "no new certificate" in line])[0]
        assert "nothing is published: HTTPS answers nobody; next try in 2 s" in down
        assert "refused" in down, down
        until("the failure's figure", lambda: figure(site, "tls_certificate_failures") > 0)
        # The authority comes, and takes the name for another machine's.
        site.authority.start(b_test="240.0.0.1")
        until("the CA's word", lambda: [line for line in site.log() if "/.well-known/acme-challenge/" in line])
        assert site.served() is None
        site.authority.point(NAMES[1], "127.0.0.1")
        until("a certificate", site.served)
        until("no failure", lambda: figure(site, "tls_certificate_failures") == 0)
        assert figure(site, "tls_certificate_not_after_timestamp_seconds") > 0


def figure(site: Site, name: str) -> float:
    try:
        lines = site.published("site.prom").splitlines()
    except FileNotFoundError:
        return 0  # it is not told yet
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@pytest.mark.xdist_group("load")
@pytest.mark.parametrize(("way", "version"), [("native", "HTTP/2"), ("compose", "HTTP/1.1")])
def test_a_renewal_under_load_loses_nothing(way: str, version: str) -> None:
    """And where the CA is gone afterwards, what is published serves on."""
    with ExitStack() as opened:
        site = Site(way, "acme-renewed", opened, seconds=60, **PATIENT_BUDGET | {"MAX_REQUESTS": "0"})
        site.authority.start()
        opened.enter_context(contextmanager(started)(site.stack))
        first = until("a certificate", site.served)
        trust = site.trust("h2" if version == "HTTP/2" else "http/1.1")
        kind = http2.Connections if version == "HTTP/2" else open_loop.Connections
        with OpenLoop(site.stack, RATE, connections=kind(site.stack.https_port, trust)) as running:
            until("the renewal", lambda: site.served() not in (None, first), 3 * DEADLINE)
            running.run_for(1)
        running.outcome.assert_nothing_lost_or_doubled()
        before = len(site.log())
        site.authority.stop()
        failed = until(
            "a failure", lambda: [line for line in site.log()[before:] if "no new certificate" in line], 3 * DEADLINE
        )
        assert "the published one lasts until 20" in failed[0]
        published = site.published("site.pem").partition("-----END PRIVATE KEY-----")[2]
        trust = ssl.create_default_context(cadata=published)
        trust.check_hostname, trust.verify_flags = False, ssl.VERIFY_X509_PARTIAL_CHAIN
        with httpx.Client(verify=trust, timeout=DEADLINE) as client:
            assert client.get(site.stack.url).status_code == 200
