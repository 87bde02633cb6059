"""A certificate authority: pebble, Let's Encrypt's test server, with a DNS of its own. Both on the host's network."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import tempfile
import urllib.request
from pathlib import Path

from proofs import certificates
from proofs.stack import DEADLINE, free_ports, until

PEBBLE = "ghcr.io/letsencrypt/pebble:2.10"
DNS = "ghcr.io/letsencrypt/pebble-challtestsrv:2.10"
# X509_V_FLAG_NO_CHECK_TIME of OpenSSL, for which Python has no name.
NO_CHECK_TIME = 0x200000


class Authority:
    """Every name is this host to it; it asks on `http_port`, and its certificates are valid for `seconds`."""

    def __init__(self, http_port: int, seconds: int = 90 * 86_400) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="proof-authority-"))
        self.port = free_ports(4)
        self.manager, self.dns = self.port + 1, self.port + 2
        self.name = f"proof-authority-{self.port}"
        self.http_port, self.seconds = http_port, seconds
        # The server's own certificate, which whoever asks has to trust.
        self.root = self.folder / "root.pem"
        key = certificates.make_key()
        self.root.write_bytes(certificates.certificate(key, -1, 30, "localhost", "pebble"))
        (self.folder / "key.pem").write_bytes(certificates.private(key))
        self.folder.chmod(0o755)
        self.running: list[str] = []

    def start(self, **addresses: str) -> None:
        """`addresses`: of names that are not this host's, with _ for the dot."""
        (self.folder / "pebble.json").write_text(json.dumps({"pebble": {
            "listenAddress": f"0.0.0.0:{self.port}", "managementListenAddress": f"127.0.0.1:{self.manager}",
            "certificate": "/proof/root.pem", "privateKey": "/proof/key.pem",
            "httpPort": self.http_port, "tlsPort": self.port + 3, "ocspResponderURL": "",
            "externalAccountBindingRequired": False, "retryAfter": {"authz": 1, "order": 1},
            "profiles": {"default": {"description": "short", "validityPeriod": self.seconds}},
        }}))  # fmt: skip
        if not self.running:
            self._run("dns", DNS, "-defaultIPv6", "", "-dnsserver", f"127.0.0.1:{self.dns}",
                      *(f"-{off}=" for off in ("doh", "http01", "https01", "tlsalpn01")),
                      "-management", f"127.0.0.1:{self.port + 3}")  # fmt: skip
        for name, address in addresses.items():
            self.point(name.replace("_", "."), address)
        self._run("pebble", PEBBLE, "-config", "/proof/pebble.json", "-dnsserver", f"127.0.0.1:{self.dns}")
        until("the authority answers", self.answers)

    def point(self, name: str, address: str) -> None:
        """From now on the name is this address to the authority."""
        url = f"http://127.0.0.1:{self.port + 3}"
        until("its DNS", lambda: socket.socket().connect_ex(("127.0.0.1", self.port + 3)) == 0)
        for path, asked in (("clear-a", {"host": name}), ("add-a", {"host": name, "addresses": [address]})):
            urllib.request.urlopen(f"{url}/{path}", data=json.dumps(asked).encode(), timeout=DEADLINE).close()

    def answers(self) -> bool:
        try:
            context = ssl.create_default_context(cafile=str(self.root))
            urllib.request.urlopen(f"https://localhost:{self.port}/dir", context=context, timeout=DEADLINE).close()
        except OSError:
            return False
        return True

    def issuers(self) -> ssl.SSLContext:
        """Trusts the certificates that it gives, which have another root in each of its lives.

        Also one that is over: a busy machine may not have the next before a minute has passed.
        """
        context = ssl.create_default_context(cafile=str(self.root))
        with urllib.request.urlopen(
            f"https://localhost:{self.manager}/roots/0", context=context, timeout=DEADLINE
        ) as answer:
            issuers = ssl.create_default_context(cadata=answer.read().decode())
        issuers.verify_flags |= NO_CHECK_TIME
        return issuers

    def log(self) -> str:
        done = subprocess.run(["docker", "logs", f"{self.name}-pebble"], capture_output=True, text=True)
        return done.stdout + done.stderr

    def stop(self) -> None:
        """The server; its DNS stays until the end."""
        subprocess.run(["docker", "rm", "--force", f"{self.name}-pebble"], check=True, capture_output=True)
        self.running.remove(f"{self.name}-pebble")

    def end(self) -> None:
        for container in self.running:
            subprocess.run(["docker", "rm", "--force", container], check=True, capture_output=True)
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()

    def _run(self, part: str, image: str, *words: str) -> None:
        name = f"{self.name}-{part}"
        settings = [
            "--network",
            "host",
            "--volume",
            f"{self.folder}:/proof:ro",
            "--env",
            "PEBBLE_VA_NOSLEEP=1",
            # By itself it refuses one in twenty, and certbot gives up at the second.
            "--env",
            "PEBBLE_WFE_NONCEREJECT=0",
        ]
        subprocess.run(
            ["docker", "run", "--detach", "--name", name, *settings, image, *words], check=True, capture_output=True
        )
        self.running.append(name)
