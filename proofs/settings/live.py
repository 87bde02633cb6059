"""The settings of the live service and of what nginx writes for it."""

from __future__ import annotations

from proofs.settings import Setting, Unproven
from proofs.settings.compose import FILE, PUBLISHED, READ_ONLY, health, in_place_of, named, without

CONF = "nginx/templates/nginx.conf.template"
PROOFS = "proofs/test_live.py::"
COUNTED = f"{PROOFS}test_every_request_is_counted_with_its_status_and_cause"
FULL = f"{PROOFS}test_a_full_space_for_counts_loses_lines_and_no_request"

SETTINGS: list[Setting | Unproven] = [
    Setting(
        ["nginx.conf: log_format count"],
        "A line for each request, of what is counted and nothing of its client.",
        "none",
        "without the workers that were tried",
        [(CONF, "'$status|$upstream_addr|", "'$status|-|")],
        [f"{COUNTED}[native]"],
    ),
    Setting(
        ["nginx.conf: server / access_log"],
        "What the live service asks of nginx is no request of a client.",
        "the logs of all others",
        "removed",
        [(CONF, "        access_log off;\n        # In place", "        # In place")],
        [f"{COUNTED}[native]"],
    ),
    Setting(
        ["nginx.conf: server / limit_conn"],
        "The live service is answered also when all places are taken: a full nginx is not one that is down.",
        "the limits of the clients",
        "removed",
        [(CONF, "        limit_conn uploads 65535;\n", "")],
        ["proofs/test_limits.py::test_requests_of_all_addresses_together_are_bounded"],
    ),
    Setting(
        ["nginx.conf: server / stub_status"],
        "nginx's own counters of connections and requests.",
        "none",
        "removed",
        [(CONF, "        stub_status;\n", "")],
        [f"{PROOFS}test_nginx_counts_its_connections[native]"],
    ),
    Setting(
        named("services.live.<<"),
        "Takes from this service what no service needs (x-hardened).",
        "none of it",
        "removed",
        in_place_of("  live:\n    <<: *hardened\n", "  live:\n"),
        [f"{READ_ONLY}[live]"],
    ),
    Setting(
        named("services.live.ports", "LIVE_PORT"),
        "The live page, on the host's loopback alone.",
        "none",
        "removed",
        without('    ports: ["127.0.0.1:${LIVE_PORT}:8090"]'),
        [PUBLISHED],
    ),
    Setting(
        named("services.live.networks.edge"),
        "The network that is published: without it the page is not on the host.",
        "a network of all services",
        "removed",
        in_place_of(
            '    ports: ["127.0.0.1:${LIVE_PORT}:8090"]\n    networks: [edge, app]\n',
            '    ports: ["127.0.0.1:${LIVE_PORT}:8090"]\n    networks: [app]\n',
        ),
        [PUBLISHED],
    ),
    Setting(
        named("services.live.networks.app"),
        "The network in which the replicas are found.",
        "a network of all services",
        "removed",
        in_place_of(
            '    ports: ["127.0.0.1:${LIVE_PORT}:8090"]\n    networks: [edge, app]\n',
            '    ports: ["127.0.0.1:${LIVE_PORT}:8090"]\n    networks: [edge]\n',
        ),
        [f"{PROOFS}test_replicas_are_found_by_their_name_and_forgotten"],
    ),
    Setting(
        named("services.live.environment.UPSTREAM_HOST"),
        "The name by which the replicas are found.",
        "none",
        "its own",
        in_place_of(
            "      NGINX_COUNTS: /run/counts/requests.log\n      UPSTREAM_HOST: app\n",
            "      NGINX_COUNTS: /run/counts/requests.log\n      UPSTREAM_HOST: live\n",
        ),
        [f"{PROOFS}test_replicas_are_found_by_their_name_and_forgotten"],
    ),
    Setting(
        named("services.live.volumes"),
        "Where it reads what nginx writes.",
        "none",
        "removed",
        without('    volumes: ["counts:/run/counts"]'),
        [f"{COUNTED}[compose]"],
    ),
    *health("live", "[CMD, python, -m, live.probe]"),
    Setting(
        [f"{FILE}: services.live.deploy.resources.limits.{limit}" for limit in ("cpus", "memory", "pids")],
        "What goes wrong in it takes no more than this from the others.",
        "no limit",
        "removed",
        without('    deploy:\n      resources:\n        limits: { cpus: "0.5", memory: 64m, pids: 128 }'),
        ["proofs/test_containers.py::test_a_container_has_limits[live]"],
    ),
    Setting(
        [f"{FILE}: volumes.counts.driver_opts.{option}" for option in ("type", "device", "o")],
        "The space for counts is in memory, and bounded: nginx serves on when it is full.",
        "a folder on the disk, root's, without a bound",
        "without a size: half of the host's memory",
        in_place_of('o: "size=4m,', 'o: "'),
        [FULL],
    ),
]
