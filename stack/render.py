"""nginx's configuration for the native way: the same templates as in Compose, filled in the same way."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from stack.settings import ROOT, StackSettings

# What an older nginx than the image's does not know: the directive, and the first version that has it.
SINCE = {"keepalive_min_timeout": (1, 27, 4), "ssl_certificate_cache": (1, 27, 4)}
# Before this one, HTTP/2 was a word of `listen`.
HTTP2 = (1, 25, 1)


def fill(template: str, values: dict[str, str]) -> str:
    """Put `values` in for ${NAME}, as the image's envsubst does; what is not among them stays as it is."""
    return re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


def leave_out(text: str, version: tuple[int, ...]) -> tuple[str, list[str]]:
    """The text without the directives that this nginx lacks, and their names."""
    left_out = []
    for name, since in SINCE.items():
        if version < since:
            text, count = re.subn(rf"^\s*{name} .*;\n", "", text, flags=re.MULTILINE)
            left_out += [name] * bool(count)
    if version < HTTP2:
        text = re.sub(r"^\s*http2 on;\n", "", text, flags=re.MULTILINE)
        text = re.sub(r"^(\s*listen .*\bssl\b)", r"\1 http2", text, flags=re.MULTILINE)
    return text, left_out


def render(values: dict[str, str], folder: Path, version: tuple[int, ...]) -> list[str]:
    """Write the configuration for `values` (with NGINX_RUN, NGINX_LISTEN …) into `folder`.

    Returns the names of the directives left out because nginx `version` has them not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []
    for template in sorted((ROOT / "nginx/templates").glob("*.template")):
        if template.name.startswith("tls") and values["TLS"] == "off":
            continue  # the script below writes them, empty
        text, missing = leave_out(fill(template.read_text(), values), version)
        (folder / template.stem).write_text(text)
        left_out += missing
    environ = {"PATH": os.environ.get("PATH", os.defpath)} | values
    subprocess.run(["sh", str(ROOT / "nginx/40-upstream.sh")], env=environ, check=True)
    return left_out


def render_prometheus(settings: StackSettings, folder: Path) -> None:
    """Write its configuration: the same as in Compose, but for where the live service and the rules are."""
    text = (ROOT / "prometheus/prometheus.yml").read_text()
    text = text.replace("live:8090", f"127.0.0.1:{settings.live_port}")
    text = text.replace("[rules.yml]", json.dumps([str(ROOT / "prometheus/rules.yml")]))
    (folder / "prometheus.yml").write_text(text)


def reload_line(settings: StackSettings) -> str:
    ends = "; connections of HTTP/3 end when what is under way is answered" * (settings.http3 == "on")
    return f"nginx reloads its configuration, which has changed{ends}"
