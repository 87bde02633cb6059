"""TLS=files: the certificate in TLS_FOLDER, checked; and one for localhost where there is none."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from loadtest.settings import plain_names
from renew import pem
from stack.console import Failure, say
from stack.settings import ROOT, StackSettings

# nginx's user and group in the image.
NGINX = 101
# The longest that Apple's systems believe.
DAYS = 825


def folder(settings: StackSettings) -> Path:
    """Where nginx finds site.pem; with TLS=acme natively, one that holds no certificate of yours."""
    return ROOT / settings.tls_folder / ("acme" if settings.tls == "acme" else "")


def path(settings: StackSettings) -> Path:
    return folder(settings) / "site.pem"


def trusted(settings: StackSettings) -> Path:
    """The folder of certificates, without keys, that the load test trusts besides those of public CAs."""
    return ROOT / settings.tls_folder / "trusted"


def prepare(settings: StackSettings, *, in_compose: bool) -> None:
    """Make a certificate for localhost and SERVER_NAMES where there is none, and check what there is.

    Raises Failure with one line where it cannot be used.
    """
    if settings.tls != "files":
        return
    file = path(settings)
    if not file.exists():
        public = trusted(settings) / "localhost.pem"
        names = ["localhost", *plain_names(settings.server_names)]
        _make(file, public, names, in_compose=in_compose)
        say(f"no certificate was there, so one for {' '.join(names)} is in {file}")
        say(f"browsers warn of it until they trust {public}: docs/https.md; curl does with --cacert {public}")
    check(settings, in_compose=in_compose)


def check(settings: StackSettings, *, in_compose: bool) -> str:
    """What the certificate says of itself, in a line. Raises Failure with one line where it cannot be used."""
    file = path(settings)
    if not file.exists():
        return f"none in {file}; make up makes one for localhost"
    first = _read(file)
    try:
        pem.hold_to_dates(first)
    except pem.UnusableError as error:
        raise _no_good(file, f"{error}") from None
    found = file.stat()
    if in_compose and not _may_read(found):
        raise Failure(
            f"TLS=files: nginx, user and group {NGINX} in its container, may not read {file}; type: "
            f"sudo chgrp {NGINX} {file} && sudo chmod 640 {file}"
        )
    return f"{', '.join(pem.names(first)) or 'no names'}, until {first.not_valid_after_utc:%Y-%m-%d}"


def trusting(settings: StackSettings) -> ssl.SSLContext:
    """For connections to this stack itself: trusts the certificate of the file, by whatever name it is reached."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(path(settings))
    return context


def hold_to_served(settings: StackSettings, *, in_compose: bool) -> None:
    """Raises Failure with one line where nginx does not serve the certificate of the file."""
    if settings.tls != "files":
        return
    address = ("127.0.0.1", settings.https_port)
    try:
        with socket.create_connection(address, timeout=10) as connection:
            if in_compose and settings.proxy_protocol_from:
                connection.sendall(b"PROXY UNKNOWN\r\n")
            trusting(settings).wrap_socket(connection, server_hostname="localhost").close()
    except OSError as error:
        raise Failure(
            f"HTTPS_PORT={settings.https_port} does not serve the certificate of {path(settings)}: {error}; where the "
            "folder itself was replaced, make down and make up bring the new one to nginx"
        ) from None


def _read(file: Path) -> x509.Certificate:
    """The first certificate of the file, to which its key fits. Raises Failure with one line where there is none."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise _no_good(file, f"{error.strerror}") from None
    try:
        return pem.first_certificate(text)
    except pem.UnusableError as error:
        raise _no_good(file, f"{error}") from None


def _no_good(file: Path, why: str) -> Failure:
    return Failure(
        f"TLS=files: {file}: {why}; it must hold the private key, the certificate and its chain: "
        "cat privkey.pem fullchain.pem >site.pem (docs/https.md)"
    )


def _may_read(found: os.stat_result) -> bool:
    return bool(
        found.st_mode & 0o004
        or (found.st_gid == NGINX and found.st_mode & 0o040)
        or (found.st_uid == NGINX and found.st_mode & 0o400)
    )


def _make(file: Path, public: Path, hosts: list[str], *, in_compose: bool) -> None:
    """A certificate that signs itself, and no other: whoever trusts it trusts nothing more. `public` has no key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    hour = datetime.timedelta(hours=1)
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - hour)
        .not_valid_after(now - hour + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public.parent.mkdir(parents=True, exist_ok=True)
    public.write_bytes(certificate.public_bytes(Encoding.PEM))
    part = file.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as written:
        written.write(private + certificate.public_bytes(Encoding.PEM))
    if in_compose and os.getuid() == 0:
        os.chown(part, 0, NGINX)
        part.chmod(0o640)
    elif in_compose:
        # Only root can give a file to nginx's group; anybody else can let in nobody or all.
        part.chmod(0o644)
    part.rename(file)
