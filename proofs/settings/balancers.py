"""The settings of a load balancer in front: balancers.conf and inside.conf."""

from __future__ import annotations

from proofs.settings import Setting, Unproven

SCRIPT = "nginx/40-upstream.sh"
CONF = "nginx/templates/nginx.conf.template"
PROOFS = "proofs/test_load_balancer.py::"
ARRIVES = f"{PROOFS}test_a_client_of_the_balancer_arrives_with_its_address_and_scheme"
STRANGER = f"{PROOFS}test_a_stranger_is_who_it_is_whatever_it_says"
TRUSTED = "$(printf 'set_real_ip_from %s;\\n' ${balancers})\n"
NETWORKS = "$(printf '    %s 1;\\n' ${balancers})\n"
INSIDE = "        include ${NGINX_RUN}/inside.conf;\n"

SETTINGS: list[Setting | Unproven] = [
    Setting(
        ["balancers.conf: set_real_ip_from", ".env: FORWARDED_HEADERS_FROM"],
        "The load balancer's addresses, whose word on the client's address is believed.",
        "nobody's word",
        "everybody's",
        [(SCRIPT, TRUSTED, "set_real_ip_from 0.0.0.0/0;\n")],
        [f"{STRANGER}[headers-native]"],
    ),
    Setting(
        ["balancers.conf: real_ip_header"],
        "How the load balancer says the client's address.",
        "X-Real-IP",
        "the default, which some balancers leave to the client",
        [(SCRIPT, "real_ip_header ${header};\n", "")],
        [f"{ARRIVES}[headers-native]"],
    ),
    Setting(
        ["balancers.conf: real_ip_recursive"],
        "Behind two that are named, a CDN and a load balancer, the client is who asked the first of them.",
        "off: the CDN is the client of all",
        "removed",
        [(SCRIPT, "real_ip_recursive on;\n", "")],
        [f"{PROOFS}test_behind_a_cdn_and_a_balancer_the_client_is_who_asked_the_cdn"],
    ),
    Setting(
        ["balancers.conf: geo $realip_remote_addr $stack_balancer"],
        "Whether the connection is the load balancer's: only then its word on the scheme is believed.",
        "none",
        "everybody's",
        [(SCRIPT, f"    default 0;\n{NETWORKS}", "    default 1;\n")],
        [f"{STRANGER}[headers-native]"],
    ),
    Setting(
        ["balancers.conf: map $stack_balancer $http_x_forwarded_proto $stack_scheme"],
        "The client's scheme, as the load balancer says it, where HTTPS ends there.",
        "none",
        "that of the connection to nginx",
        [(SCRIPT, "    ${schemes}\n", "")],
        [f"{ARRIVES}[headers-native]"],
    ),
    Setting(
        [".env: PROXY_PROTOCOL_FROM"],
        "The same for a load balancer that says it in the PROXY protocol.",
        "nobody's word",
        "nginx looks for the header, and believes it of nobody",
        [(SCRIPT, "        header=proxy_protocol\n", "")],
        [f"{ARRIVES}[v2-native]"],
    ),
    Setting(
        ["nginx.conf: default server / include inside.conf", "nginx.conf: server / include inside.conf"],
        "Where the health check and Locust ask, who send no PROXY header.",
        "none",
        "removed",
        [(CONF, INSIDE, "")],
        [f"{PROOFS}test_natively_this_machine_reaches_nginx_on_loopback[v2]"],
        breaks_start=True,
    ),
    Setting(
        ["tls-default.conf: include inside-tls.conf", "tls-server.conf: include inside-tls.conf"],
        "The same by HTTPS.",
        "none",
        "removed",
        [
            (f"nginx/templates/{part}.conf.template", "include ${NGINX_RUN}/inside-tls.conf;\n", "")
            for part in ("tls-default", "tls-server")
        ],
        [f"{PROOFS}test_https_through_the_balancer_is_that_of_its_client[v2-native]"],
        breaks_start=True,
    ),
]
