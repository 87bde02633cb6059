"""The settings of nginx.conf but for its servers."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

CONF = "nginx/templates/nginx.conf.template"

SETTINGS: list[Setting | Unproven] = [
    Setting(
        ["nginx.conf: client_max_body_size", ".env: CLIENT_MAX_BODY_BYTES"],
        "A larger body is refused with 413 before the app sees any of it.",
        "1 MiB",
        "the default",
        [(CONF, "    client_max_body_size ${CLIENT_MAX_BODY_BYTES};\n", "")],
        ["proofs/test_proxy.py::test_a_body_over_the_limit_gets_413_as_json[native]"],
    ),
]
