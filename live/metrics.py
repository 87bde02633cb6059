"""The metrics that the live service has of its own, beside those of the replicas: docs/metrics.md lists them."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """One row of docs/metrics.md. `labels` are in their order."""

    kind: Literal["counter", "gauge", "histogram"]
    family: str
    help: str
    labels: tuple[str, ...] = ()


# The first seven of nginx have the names of nginx-prometheus-exporter.
METRICS = (
    Metric("counter", "nginx_connections_accepted", "Client connections that nginx has accepted."),
    Metric("counter", "nginx_connections_handled", "Those it has kept: fewer where its table was full."),
    Metric("gauge", "nginx_connections_active", "Client connections that are open."),
    Metric("gauge", "nginx_connections_reading", "Connections whose request's header is not whole yet."),
    Metric("gauge", "nginx_connections_writing", "Connections with a request that has no whole answer yet."),
    Metric("gauge", "nginx_connections_waiting", "Idle client connections that are kept open."),
    Metric("counter", "nginx_http_requests_total", "Requests that have begun, health checks too."),
    Metric("gauge", "nginx_up", "1 while nginx answers."),
    Metric(
        "counter",
        "nginx_http_responses_total",
        "Answers, by who caused them (docs/live.md).",
        ("status", "cause", "replica", "worker"),
    ),
    Metric(
        "counter",
        "nginx_upstream_tries_total",
        "Requests that were given to a worker, by what came of it.",
        ("replica", "worker", "result"),
    ),
    Metric(
        "histogram",
        "nginx_request_duration_seconds",
        "Seconds from a request's first byte to its answer's last, of those for an answer of the app; no streams.",
    ),
    Metric(
        "counter",
        "nginx_requests_over_objective_total",
        "Of these, the requests that took longer than SLO_P50_MS, SLO_P95_MS, SLO_P99_MS.",
        ("percentile",),
    ),
    Metric("counter", "nginx_log_lines_lost_total", "Requests that are missing above: the space for the log was full."),
    Metric(
        "gauge",
        "tls_certificate_not_after_timestamp_seconds",
        "Until when the certificate is valid that nginx shows; 0: it shows none. Not there with TLS=off.",
    ),
    Metric("gauge", "live_replica_up", "1 while the replica's observer answers.", ("replica",)),
    Metric("gauge", "stack_setting", "Rows of .env that the alerts go by.", ("row",)),
    Metric("gauge", "live_watchers", "Live pages that are open."),
)
KNOWN = {metric.family: metric for metric in METRICS}
