"""The settings of HTTPS: tls.conf and the other two of its kind, docker-compose.tls.yml, their rows of .env."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

CONF = "nginx/templates/nginx.conf.template"
TLS = "nginx/templates/tls.conf.template"
DEFAULT = "nginx/templates/tls-default.conf.template"
SERVER = "nginx/templates/tls-server.conf.template"
COMPOSE = "docker-compose.yml"
COMPOSE_TLS = "docker-compose.tls.yml"
RENEW = "renew/__main__.py"
PROOFS = "proofs/test_tls.py::"
SEEN = f"{PROOFS}test_the_app_sees_https_and_the_host_with_its_port"
REDIRECT = f"{PROOFS}test_plain_http_is_sent_to_the_same_place_by_https[native-localhost-POST]"
UNKNOWN = f"{PROOFS}test_a_name_that_nobody_claims_is_not_followed[native-https]"
RESUMED = f"{PROOFS}test_a_client_that_comes_back_after_a_reload_has_half_a_handshake"
ONCE = f"{PROOFS}test_a_certificate_is_read_once_a_second_and_not_at_each_handshake[compose]"
SWAPPED = f"{PROOFS}test_a_new_certificate_is_served_without_a_reload_and_cuts_nobody_off"
LOADED = f"{PROOFS}test_a_load_test_asks_by_https_and_verifies_the_certificate[compose]"
SWARM = "proofs/test_swarm_tls.py::"
UPSTREAM = "nginx/40-upstream.sh"
ACME = "proofs/test_acme.py::"
FRESH = f"{ACME}test_a_fresh_machine_has_its_certificate_without_a_restart"
ALONE = f"{ACME}test_the_key_is_nginxs_alone_and_the_way_out_is_the_loops_alone[compose]"
ASKED = f"{ACME}test_a_ca_that_is_down_is_said_and_asked_again_and_one_that_refuses_is_quoted"
HSTS = f"{PROOFS}test_hsts_is_said_by_https_and_not_by_http"
ALIKE = f"{PROOFS}test_the_port_of_https_waits_and_buffers_as_that_of_http[native]"
LISTEN_DEFAULT = (
    "listen ${NGINX_LISTEN_TLS} ssl default_server backlog=${LISTEN_BACKLOG}\n"
    "    sndbuf=${CLIENT_SOCKET_BUFFER_BYTES} rcvbuf=${CLIENT_SOCKET_BUFFER_BYTES};\n"
)
EXTENDS = '    extends: { file: docker-compose.tls.yml, service: "nginx-static-${STATIC_ROOT:+on}" }\n'
LOCUST_EXTENDS = '    extends: { file: docker-compose.tls.yml, service: "locust-${TLS}" }\n'
PUBLISHED = '    ports: ["${HTTPS_PORT}:443${PROXY_PROTOCOL_FROM:+4}"]\n'
ACME_CONTAINER = '  nginx-acme:\n    extends: { service: "nginx-http3-${HTTP3}" }\n'
MOUNT = """      # The folder, not the file: a file would stay the old one when another is renamed into its place.
      - type: bind
        source: ${TLS_FOLDER}
        target: /certificates
        read_only: true
        # A folder that is made by the engine is root's, and empty.
        bind: { create_host_path: false }
"""


def tls(name: str, does: str, default: str, change: str, before: str, after: str, proof: str) -> Setting:
    return Setting([f"tls.conf: {name}"], does, default, change, [(TLS, before, after)], [proof])


def acme(name: str, does: str, default: str, change: str, before: str, after: str, proof: str) -> Setting:
    return Setting([f"{COMPOSE}: services.acme.{name}"], does, default, change, [(COMPOSE, before, after)], [proof])


def included(part: str, where: str, does: str, indent: str) -> Setting:
    return Setting(
        [f"nginx.conf: {where}include {part}.conf"],
        does,
        "none",
        "removed",
        [(CONF, f"{indent}include ${{NGINX_RUN}}/{part}.conf;\n", "")],
        [UNKNOWN if part == "tls-default" else f"{SEEN}[native-HTTP/2]"],
        breaks_start=True,
    )


SETTINGS: list[Setting | Unproven] = [
    included("tls", "", "HTTPS for all servers: the certificate, the profile, whom to redirect.", "    "),
    included("tls-default", "default server / ", "The port of HTTPS, for names that nobody claims.", "        "),
    included("tls-server", "server / ", "HTTPS for the app, and the way there from plain HTTP.", "        "),
    Setting(
        ["tls.conf: map all $stack_certificate", "tls.conf: ssl_certificate", "tls.conf: ssl_certificate_key"],
        "Key and certificate are read when clients come: a new file is served without a reload.",
        "none; a path that is no variable is read at the start",
        "the path itself",
        [
            (TLS, "ssl_certificate $stack_certificate", "ssl_certificate ${NGINX_CERTIFICATES}/site.pem"),
            (TLS, "ssl_certificate_key $stack_certificate", "ssl_certificate_key ${NGINX_CERTIFICATES}/site.pem"),
        ],
        [f"{SWAPPED}[native]"],
    ),
    tls(
        "ssl_certificate_cache",
        "What was read serves for further handshakes: without it each costs 1.2 times the CPU.",
        "off",
        "removed",
        "ssl_certificate_cache max=2 valid=1s;\n",
        "",
        ONCE,
    ),
    tls(
        "ssl_certificate_cache max",
        "The key and the certificate: two.",
        "none; it must be given",
        "1: each takes the other's place",
        "max=2 ",
        "max=1 ",
        ONCE,
    ),
    tls(
        "ssl_certificate_cache valid",
        "A new file is served within a second.",
        "60s",
        "removed",
        " valid=1s;",
        ";",
        f"{SWAPPED}[compose]",
    ),
    tls(
        "ssl_protocols",
        "TLS 1.2 and 1.3.",
        "these two; before 1.23.4 TLS 1.0, 1.1 and 1.2",
        "TLS 1.2 alone",
        "TLSv1.2 TLSv1.3",
        "TLSv1.2",
        f"{PROOFS}test_tls_1_2_and_1_3_are_spoken_and_nothing_older[native-TLSv1_3]",
    ),
    tls(
        "ssl_ciphers",
        "In TLS 1.2 the six ciphers with forward secrecy and authentication of each record.",
        "HIGH:!aNULL:!MD5, with some 30 more",
        "the default",
        "ssl_ciphers ECDHE-ECDSA",
        "ssl_ciphers HIGH:!aNULL:!MD5; #",
        f"{PROOFS}test_the_ciphers_are_those_of_mozillas_intermediate_profile[native-ECDSA]",
    ),
    tls(
        "ssl_ecdh_curve",
        "The key exchanges of Mozilla's profile, first the one that withstands quantum computers.",
        "OpenSSL's own list, with two more",
        "the default",
        "ssl_ecdh_curve X25519MLKEM768:X25519:prime256v1:secp384r1;\n",
        "",
        f"{PROOFS}test_sslyze_finds_mozillas_intermediate_profile_kept[compose]",
    ),
    tls(
        "ssl_session_cache",
        "A client that comes back to any worker, also after a reload, has half a handshake.",
        "none",
        "removed",
        "ssl_session_cache shared:tls:10m;\n",
        "",
        f"{RESUMED}[native-TLSv1_2]",
    ),
    tls(
        "ssl_session_timeout",
        "For a day.",
        "5m",
        "removed",
        "ssl_session_timeout 1d;\n",
        "",
        f"{RESUMED}[native-TLSv1_3]",
    ),
    tls(
        "ssl_session_tickets",
        "Sessions are in the cache alone: no key stays in memory that opens what was recorded.",
        "on",
        "removed",
        "ssl_session_tickets off;\n",
        "",
        f"{RESUMED}[native-TLSv1_2]",
    ),
    Setting(
        ["tls.conf: ssl_session_ticket_key"],
        "WAY=swarm: a client resumes its session at every node, for all have the same key of tickets.",
        "a key of its own in each nginx",
        "removed",
        [(UPSTREAM, '    echo "ssl_session_ticket_key ${NGINX_TICKET_KEY};" >>"${NGINX_RUN}/tls.conf"\n', "")],
        [f"{SWARM}test_a_client_resumes_its_session_at_every_node[TLSv1_3]"],
    ),
    tls(
        "http2_max_concurrent_streams",
        "One connection sends as many requests at a time as one address may have: none of them gets 429.",
        "128",
        "removed",
        "http2_max_concurrent_streams ${CLIENT_MAX_REQUESTS_IN_FLIGHT};\n",
        "",
        f"{PROOFS}test_a_browser_with_one_connection_is_not_refused_for_what_it_was_allowed[native]",
    ),
    tls(
        "keepalive_requests",
        "A connection is not closed for the number of its requests.",
        "1000",
        "removed",
        "keepalive_requests 100000;\n",
        "",
        f"{PROOFS}test_one_connection_takes_thousands_of_requests[native]",
    ),
    tls(
        "map $stack_scheme$uri $stack_to_https",
        "What comes by plain HTTP is sent to HTTPS; health, errors, and a CA's question are answered where they come.",
        "none",
        "without the CA's question",
        r"|\.well-known/acme-challenge/)",
        ")",
        f"{PROOFS}test_health_and_a_cas_question_are_answered_by_plain_http[native-/.well-known/acme-challenge/token]",
    ),
    Setting(
        ["nginx.conf: map 443 $stack_https_port"],
        "A redirect names the published port, but not 443.",
        "none",
        "443 too",
        [(CONF, '        443 "";\n', "")],
        [f"{PROOFS}test_a_redirect_to_port_443_does_not_name_it"],
    ),
    Setting(
        ["tls.conf: map $stack_scheme 0 $stack_hsts", ".env: HSTS_SECONDS"],
        "HSTS, by HTTPS alone, for as long as the row says; with 0 it is not there.",
        "none",
        "by plain HTTP too",
        [(TLS, '"~^https [1-9]"', '"~ [1-9]"')],
        [f"{HSTS}[native-/]"],
    ),
    Setting(
        ["tls-default.conf: listen"],
        "Where requests by HTTPS for names that nobody claims arrive.",
        "*:80, or *:8000 without the rights for it",
        "127.0.0.2 alone",
        [(DEFAULT, LISTEN_DEFAULT, "listen 127.0.0.2:${NGINX_LISTEN_TLS} ssl default_server;\n")],
        [UNKNOWN],
    ),
    Setting(
        ["tls-default.conf: listen default_server"],
        "The server for every name that no other claims.",
        "the first server in the file",
        "given to the app's server",
        [
            (DEFAULT, LISTEN_DEFAULT, "listen ${NGINX_LISTEN_TLS} ssl;\n"),
            (SERVER, "listen ${NGINX_LISTEN_TLS} ssl;", "listen ${NGINX_LISTEN_TLS} ssl default_server;"),
        ],
        [UNKNOWN],
    ),
    *(
        Setting(
            [f"tls-default.conf: listen {name}"],
            does,
            default,
            "removed",
            [(DEFAULT, text, "")],
            [ALIKE],
        )
        for name, does, default, text in (
            ("backlog", "As many connections wait as on HTTP_PORT.", "511", " backlog=${LISTEN_BACKLOG}"),
            ("sndbuf", "The kernel keeps as much for a slow reader.", "as it sees fit, up to 4 MB",
             "sndbuf=${CLIENT_SOCKET_BUFFER_BYTES} "),
            ("rcvbuf", "The kernel keeps as much of what nginx does not read.", "as it sees fit, up to 6 MB and more",
             " rcvbuf=${CLIENT_SOCKET_BUFFER_BYTES}"),
        )
    ),
    Setting(
        [
            "tls-default.conf: listen [::]",
            "tls-default.conf: listen [::] default_server",
            "tls-default.conf: listen [::] backlog",
            "tls-default.conf: listen [::] sndbuf",
            "tls-default.conf: listen [::] rcvbuf",
            "tls-server.conf: listen [::]",
        ],
        "The same for clients of IPv6, on a socket of its own.",
        "none: nginx listens on IPv4 alone",
        "removed",
        [
            (DEFAULT, LISTEN_DEFAULT.replace("_TLS}", "_TLS_IPV6}"), ""),
            (SERVER, "listen ${NGINX_LISTEN_TLS_IPV6} ssl;\n", ""),
        ],
        [f"{PROOFS}test_a_client_of_ipv6_comes_by_https_as_itself[native]"],
    ),
    Setting(
        ["tls-server.conf: listen"],
        "Where requests for the app arrive by HTTPS.",
        "*:80, or *:8000 without the rights for it",
        "127.0.0.2 alone",
        [(SERVER, "listen ${NGINX_LISTEN_TLS} ssl;", "listen 127.0.0.2:${NGINX_LISTEN_TLS} ssl;")],
        [f"{SEEN}[native-HTTP/1.1]"],
    ),
    Setting(
        ["tls-server.conf: http2"],
        "HTTP/2, for those who ask for it in the handshake.",
        "off",
        "removed",
        [(SERVER, "http2 on;\n", "")],
        [f"{SEEN}[compose-HTTP/2]"],
    ),
    Setting(
        ["tls-server.conf: add_header Strict-Transport-Security"],
        "Says HSTS_SECONDS to browsers.",
        "none",
        "removed",
        [(SERVER, "add_header Strict-Transport-Security $stack_hsts always;\n", "")],
        [f"{HSTS}[native-/]"],
    ),
    Setting(
        ["tls-server.conf: add_header Strict-Transport-Security always"],
        "With errors too.",
        "on successful answers and redirects only",
        "removed",
        [(SERVER, "$stack_hsts always;", "$stack_hsts;")],
        [f"{HSTS}[native-/nowhere]"],
    ),
    Setting(
        ["tls-server.conf: if $stack_to_https"],
        "308: the method, the body and the path stay, to a name that this server claims.",
        "none",
        "301, with which a POST becomes a GET",
        [(SERVER, "return 308 ", "return 301 ")],
        [REDIRECT],
    ),
    Setting(
        ["docker-compose.yml: services.nginx.extends.file", "docker-compose.yml: services.nginx.extends.service",
         ".env: TLS"],
        "What nginx's container has more with TLS.",
        "none of it",
        "removed",
        [(COMPOSE, EXTENDS, "")],
        [f"{SEEN}[compose-HTTP/1.1]"],
        breaks_start=True,
    ),
    Setting(
        ["docker-compose.tls.yml: services.nginx-off"],
        "Nothing, without TLS.",
        "none: Compose refuses its files",
        "with the port of TLS=files",
        [(COMPOSE_TLS, "  nginx-off: {}\n", '  nginx-off: { ports: ["${HTTPS_PORT}:443"] }\n')],
        [f"{PROOFS}test_without_tls_the_containers_know_nothing_of_it"],
    ),
    Setting(
        ["docker-compose.tls.yml: services.nginx-files.ports", ".env: HTTPS_PORT"],
        "The port of the host on which the site answers by HTTPS.",
        "none",
        "removed",
        [(COMPOSE_TLS, PUBLISHED, "")],
        [f"{SEEN}[compose-HTTP/1.1]"],
        breaks_start=True,
    ),
    Setting(
        ["docker-compose.tls.yml: services.nginx-files.volumes", ".env: TLS_FOLDER"],
        "The folder of the certificate, and the script that looks at it before nginx starts.",
        "none",
        "without the folder",
        [(COMPOSE_TLS, MOUNT, "")],
        [f"{SEEN}[compose-HTTP/1.1]"],
        breaks_start=True,
    ),
    Setting(
        ["docker-compose.yml: services.locust.extends.file", "docker-compose.yml: services.locust.extends.service"],
        "What Locust has more with TLS: it asks by HTTPS.",
        "none of it",
        "removed",
        [(COMPOSE, LOCUST_EXTENDS, "")],
        [LOADED],
    ),
    Setting(
        ["docker-compose.tls.yml: services.locust-files.volumes", "docker-compose.tls.yml: services.locust-acme"],
        "The certificates that Locust trusts besides those of public CAs.",
        "none",
        "removed",
        [(COMPOSE_TLS, '    volumes: ["${TLS_FOLDER}/trusted:/trusted:ro"]\n', "")],
        [LOADED],
    ),
    Setting(
        ["tls-server.conf: include acme.conf", "acme.conf: location /.well-known/acme-challenge/ / root"],
        "TLS=acme: the CA's question is answered with the file that the loop has written.",
        "none: the question goes to the app",
        "removed",
        [(SERVER, "include ${NGINX_RUN}/acme.conf;\n", "")],
        [f"{FRESH}[native]"],
    ),
    Setting(
        [f"acme.conf: location {name}"
         for name in ("/.well-known/acme-challenge/ / try_files", "@acme / proxy_pass", "@acme / set",
                      "@acme / resolver")],
        "WAY=swarm: whichever node the CA asks, its answer comes from the node that has asked for the certificate.",
        "404 at the others",
        "removed",
        [(UPSTREAM, "    sed -i 's/^    root .*/&\\n    try_files $uri @acme;/' \"${NGINX_RUN}/acme.conf\"\n", "")],
        [f"{SWARM}test_one_certificate_is_got_for_all_nodes_and_each_answers_the_ca"],
    ),
    Setting(
        ["acme.conf: location @acme / proxy_intercept_errors"],
        "A question that nobody has an answer to gets nginx's own error, as on one machine.",
        "off: the page of what answers there",
        "removed",
        [(UPSTREAM, "    proxy_intercept_errors on;\n", "")],
        [f"{SWARM}test_one_certificate_is_got_for_all_nodes_and_each_answers_the_ca"],
    ),
    Setting(
        ["acme.conf: location @acme / resolver valid"],
        "It is found again when another node asks the CA.",
        "as long as the answer says: 600 s with Docker's",
        "removed",
        [(UPSTREAM, "    resolver ${UPSTREAM_RESOLVER} valid=1s;", "    resolver ${UPSTREAM_RESOLVER};")],
        [f"{SWARM}test_the_asking_node_may_be_off_and_a_deploy_has_another_one_ask"],
    ),
    Setting(
        ["docker-compose.yml: services.acme.profiles", ".env: COMPOSE_PROFILES"],
        "The container that asks the CA is there with TLS=acme alone.",
        "none: it is always there",
        "removed",
        [(COMPOSE, "    profiles: [tls-acme]\n", "")],
        [f"{PROOFS}test_without_tls_the_containers_know_nothing_of_it"],
        breaks_start=True,
    ),
    acme(
        "<<",
        "It is hardened as the others are.",
        "none of it",
        "removed",
        "  acme:\n    <<: *hardened\n",
        "  acme:\n",
        ALONE,
    ),
    Setting(
        ["docker-compose.yml: services.acme.networks.ca", "docker-compose.yml: networks.ca"],
        "The way out to the CA, which no other container has.",
        "a network of all services",
        "nginx has it too",
        [(COMPOSE, "    networks: [edge, app, load]\n", "    networks: [edge, app, load, ca]\n")],
        [ALONE],
    ),
    Setting(
        ["docker-compose.yml: services.acme.volumes", "docker-compose.yml: volumes.certificates",
         "docker-compose.yml: volumes.acme", "docker-compose.tls.yml: services.nginx-acme.volumes"],
        "nginx reads what the loop publishes, and cannot write there; the account is the loop's alone.",
        "none",
        "nginx may write",
        [(COMPOSE_TLS, '["certificates:/certificates:ro"]', '["certificates:/certificates"]')],
        [ALONE],
    ),
    acme(
        "tmpfs",
        "Certbot's temporary files: the root file system is read-only.",
        "none",
        "removed",
        '    volumes: ["certificates:/certificates", "acme:/acme"]\n    tmpfs: ["/tmp:size=16m"]\n',
        '    volumes: ["certificates:/certificates", "acme:/acme"]\n',
        f"{FRESH}[compose]",
    ),
    acme(
        "depends_on.nginx",
        "It asks once nginx can answer the CA: the first try is not in vain, and nobody waits for a second.",
        "all start at once",
        "removed",
        "      ACME_CHECK_SECONDS:\n    depends_on:\n      nginx: { condition: service_healthy }\n",
        "      ACME_CHECK_SECONDS:\n",
        f"{FRESH}[compose]",
    ),
    acme(
        "deploy.resources.limits",
        "What goes wrong in it takes no more memory than this.",
        "no limit",
        "removed",
        "    deploy:\n      resources:\n        limits: { memory: 256m }\n",
        "",
        ALONE,
    ),
    Setting(
        ["docker-compose.tls.yml: services.nginx-acme.ports"],
        "The port of the host on which the site answers by HTTPS.",
        "none",
        "removed",
        [(COMPOSE_TLS, f"{ACME_CONTAINER}{PUBLISHED}", ACME_CONTAINER)],
        [f"{FRESH}[compose]"],
    ),
    Setting(
        [".env: ACME_NAMES"],
        "The names of the certificate.",
        "none",
        "the first of them alone",
        [(RENEW, '",".join(environ["ACME_NAMES"].split())', 'environ["ACME_NAMES"].split()[0]')],
        [f"{FRESH}[native]"],
    ),
    Setting(
        [".env: ACME_DIRECTORY"],
        "The CA that is asked.",
        "certbot's own: Let's Encrypt",
        "the default",
        [(RENEW, '"--server", environ["ACME_DIRECTORY"], ', "")],
        [f"{FRESH}[native]"],
    ),
    Setting(
        [".env: ACME_EMAIL"],
        "An address that the CA can write to; where it is empty the CA gets none.",
        "none",
        "none is given",
        [(RENEW, '["--email", email] if email else []', "[]")],
        [f"{ACME}test_the_ca_gets_the_address_of_the_row"],
    ),
    Setting(
        [".env: ACME_CHECK_SECONDS"],
        "How often is looked whether the certificate is to be renewed, and the longest pause after a failure.",
        "none",
        "an hour",
        [(RENEW, 'int(environ["ACME_CHECK_SECONDS"])', "3600")],
        [ASKED],
    ),
]  # fmt: skip
