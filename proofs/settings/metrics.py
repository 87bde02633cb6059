"""The settings of Prometheus."""

from __future__ import annotations

from proofs.settings import Setting, Unproven
from proofs.settings.compose import FILE, in_place_of, named, without

PROOFS = "proofs/test_prometheus.py::"
BOUNDS = f"{PROOFS}test_prometheus_is_on_loopback_with_no_rights_and_bounds"
APART = f"{PROOFS}test_prometheus_cannot_name_a_client_for_it_does_not_reach_the_app"
KEPT = f"{PROOFS}test_without_the_row_nothing_of_it_runs_and_what_it_kept_stays"
STOOD_STILL = f"{PROOFS}test_the_health_check_notices_a_prometheus_that_stands_still"
MOUNTED = "    volumes:\n      - ./prometheus"
CHECK = '[CMD, wget, -q, -O, /dev/null, "http://127.0.0.1:9090/-/ready"]'

SETTINGS: list[Setting | Unproven] = [
    Setting(
        named("services.prometheus.<<"),
        "Takes from this service what no service needs (x-hardened).",
        "none of it",
        "removed",
        in_place_of("  prometheus:\n    <<: *hardened\n", "  prometheus:\n"),
        [BOUNDS],
    ),
    Setting(
        named("services.prometheus.profiles", "METRICS"),
        "With METRICS=off the stack has no Prometheus.",
        "none: it is always there",
        "removed",
        without("    profiles: [metrics-on]"),
        [KEPT],
    ),
    Setting(
        named("services.prometheus.command", "PROMETHEUS_KEEP_DAYS", "PROMETHEUS_KEEP_MB"),
        "What Prometheus keeps is bounded, in time and in size.",
        "15 days, whatever they take",
        "without the size",
        without("      - --storage.tsdb.retention.size=${PROMETHEUS_KEEP_MB}MB"),
        [BOUNDS],
    ),
    Setting(
        named("services.prometheus.ports", "PROMETHEUS_PORT"),
        "Prometheus, on the host's loopback alone.",
        "none",
        "on all addresses",
        in_place_of('"127.0.0.1:${PROMETHEUS_PORT}:9090"', '"${PROMETHEUS_PORT}:9090"'),
        [BOUNDS],
    ),
    Setting(
        named("services.prometheus.networks.edge"),
        "Where the live service is asked. In the app's network Prometheus could name any client.",
        "a network of all services",
        "the app's too",
        in_place_of(f"    networks: [edge]\n{MOUNTED}", f"    networks: [edge, app]\n{MOUNTED}"),
        [APART],
    ),
    Setting(
        [f"{FILE}: services.prometheus.volumes", f"{FILE}: volumes.prometheus"],
        "The configuration with its rules, and the place for what is kept, which outlives the container.",
        "the image's own configuration, and a volume that nobody finds again",
        "without the place",
        without("      - prometheus:/prometheus"),
        [BOUNDS],
    ),
    Setting(
        named("services.prometheus.healthcheck.<<"),
        "Takes the health check's times from x-health.",
        "an interval of 30 s, from the first one on",
        "removed",
        in_place_of(f"      <<: *health\n      test: {CHECK}\n", f"      test: {CHECK}\n"),
        [BOUNDS],
    ),
    Setting(
        named("services.prometheus.healthcheck.test"),
        "What tells that Prometheus answers: `make up` waits for it.",
        "none",
        "`true`, which is always well",
        in_place_of(f"      test: {CHECK}\n", '      test: [CMD, "true"]\n'),
        [STOOD_STILL],
    ),
    Setting(
        [f"{FILE}: services.prometheus.deploy.resources.limits.{limit}" for limit in ("cpus", "memory", "pids")],
        "What goes wrong in it takes no more than this from the others.",
        "no limit",
        "removed",
        without('    deploy:\n      resources:\n        limits: { cpus: "0.5", memory: 512m, pids: 128 }'),
        [BOUNDS],
    ),
]
