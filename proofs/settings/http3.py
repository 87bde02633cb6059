"""The settings of HTTP/3, in the files of HTTPS."""

from __future__ import annotations

from proofs.settings import Setting, Unproven
from proofs.settings.tls import COMPOSE_TLS, DEFAULT, SERVER, TLS

PROOFS = "proofs/test_http3.py::"
SEEN = f"{PROOFS}test_the_app_sees_what_it_sees_by_the_others"
UNKNOWN = f"{PROOFS}test_a_name_that_nobody_claims_gets_421"
TOLD = f"{PROOFS}test_browsers_are_told_by_https_and_not_by_http"
LISTEN = "listen ${NGINX_LISTEN_QUIC} quic reuseport default_server;\n"
LISTEN_IPV6 = "listen ${NGINX_LISTEN_QUIC_IPV6} quic reuseport default_server;\n"

SETTINGS: list[Setting | Unproven] = [
    Setting(
        ["tls.conf: http3_max_concurrent_streams"],
        "One connection sends as many requests at a time as one address may have: none of them gets 429.",
        "128",
        "removed",
        [(TLS, "http3_max_concurrent_streams ${CLIENT_MAX_REQUESTS_IN_FLIGHT};\n", "")],
        [f"{PROOFS}test_a_client_with_one_connection_is_not_refused_for_what_it_was_allowed"],
    ),
    Setting(
        ["tls.conf: map $scheme on $stack_alt_svc"],
        "Browsers read by HTTPS that HTTP/3 is there, and on which port.",
        "none",
        "by plain HTTP too",
        [(TLS, '"https on" ', '"~ on$" ')],
        [TOLD],
    ),
    Setting(
        ["tls-server.conf: add_header Alt-Svc", ".env: HTTP3"],
        "Says that HTTP/3 is there.",
        "none, and no browser comes by it",
        "removed",
        [(SERVER, "add_header Alt-Svc $stack_alt_svc always;\n", "")],
        [TOLD],
    ),
    Setting(
        ["tls-server.conf: add_header Alt-Svc always"],
        "With errors too.",
        "on successful answers and redirects only",
        "removed",
        [(SERVER, "$stack_alt_svc always;", "$stack_alt_svc;")],
        [TOLD],
    ),
    Setting(
        ["tls-default.conf: listen quic"],
        "Where requests by HTTP/3 for names that nobody claims arrive.",
        "none",
        "removed",
        [(DEFAULT, LISTEN, ""), (DEFAULT, LISTEN_IPV6, "")],
        [UNKNOWN],
    ),
    Setting(
        ["tls-default.conf: listen quic default_server"],
        "The server for every name that no other claims.",
        "the first server in the file",
        "given to the app's server",
        [
            (DEFAULT, LISTEN, LISTEN.replace(" default_server", "")),
            (SERVER, "listen ${NGINX_LISTEN_QUIC} quic;", "listen ${NGINX_LISTEN_QUIC} quic default_server;"),
        ],
        [UNKNOWN],
    ),
    Setting(
        ["tls-default.conf: listen quic reuseport"],
        "Each of nginx's workers has a socket of its own, and the kernel spreads the connections over them.",
        "one socket for all",
        "removed",
        [(DEFAULT, LISTEN, LISTEN.replace(" reuseport", ""))],
        [f"{PROOFS}test_connections_are_spread_over_nginxs_workers"],
    ),
    Setting(
        [
            "tls-default.conf: listen [::] quic",
            "tls-default.conf: listen [::] quic reuseport",
            "tls-default.conf: listen [::] quic default_server",
            "tls-server.conf: listen [::] quic",
        ],
        "The same for clients of IPv6.",
        "none: nginx listens on IPv4 alone",
        "removed",
        [(DEFAULT, LISTEN_IPV6, ""), (SERVER, "listen ${NGINX_LISTEN_QUIC_IPV6} quic;\n", "")],
        [f"{PROOFS}test_a_client_of_ipv6_comes_by_http3"],
    ),
    Setting(
        ["tls-server.conf: listen quic"],
        "Where requests for the app arrive by HTTP/3.",
        "none",
        "removed",
        [(SERVER, "listen ${NGINX_LISTEN_QUIC} quic;\n", "")],
        [SEEN],
    ),
    Setting(
        [
            "docker-compose.tls.yml: services.nginx-files.extends",
            "docker-compose.tls.yml: services.nginx-acme.extends",
            "docker-compose.tls.yml: services.nginx-http3-on.ports",
        ],
        "The port of UDP, with HTTP3=on.",
        "none",
        "removed",
        [(COMPOSE_TLS, '    ports: ["${HTTPS_PORT}:443/udp"]\n', "    ports: []\n")],
        [SEEN],
    ),
    Setting(
        ["docker-compose.tls.yml: services.nginx-http3-off"],
        "Nothing, without HTTP/3.",
        "none: Compose refuses its files",
        "with the port of UDP",
        [(COMPOSE_TLS, "  nginx-http3-off: {}\n", '  nginx-http3-off: { ports: ["${HTTPS_PORT}:443/udp"] }\n')],
        [f"{PROOFS}test_without_it_no_port_of_udp_is_taken"],
    ),
]
