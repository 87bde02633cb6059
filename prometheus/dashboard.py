"""`python -m prometheus.dashboard`: writes dashboard.json, which Grafana imports, and the table of docs/alerts.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.builders import common
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef

HERE = Path(__file__).parent
JSON = HERE / "dashboard.json"
ALERTS = HERE.parent / "docs/alerts.md"
BEGIN, END = "<!-- the alerts: python -m prometheus.dashboard -->\n", "<!-- end -->\n"
WHICH = "{{replica}} {{worker}}"
# Title, unit, and the queries with the name of each line; by row of the dashboard.
PANELS: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "What clients get": [
        ("Answers by cause", "reqps", {"sum by (cause) (rate(nginx_http_responses_total[1m]))": "{{cause}}"}),
        ("Answers by status", "reqps", {"sum by (status) (rate(nginx_http_responses_total[1m]))": "{{status}}"}),
        (
            "Time to an answer",
            "s",
            {
                f"histogram_quantile({p / 100}, sum by (le) (rate(nginx_request_duration_seconds_bucket[1m])))": f"p{p}"
                for p in (50, 95, 99)
            }
            | {'stack_setting{row=~"SLO_P.*_MS"} / 1000': "{{row}}"},
        ),
        (
            "Error and time budgets: how many times too fast (1: as fast as allowed)",
            "none",
            {"stack:errors:burn_rate5m": "errors", "stack:slow:burn_rate5m": "over SLO_P{{percentile}}_MS"},
        ),
        (
            "Time in the app by route, p99",
            "s",
            {
                "histogram_quantile(0.99, sum by (le, route) (rate(http_request_duration_seconds_bucket[1m])))": (
                    "{{route}}"
                )
            },
        ),
        (
            "Alerts that fire",
            "none",
            {'sum by (alertname) (ALERTS{alertstate="firing"}) or vector(0)': "{{alertname}}"},
        ),
    ],
    "nginx": [
        (
            "Connections of clients",
            "none",
            {f"nginx_connections_{state}": state for state in ("active", "reading", "writing", "waiting")},
        ),
        (
            "Connections a second",
            "cps",
            {f"rate(nginx_connections_{what}[1m])": what for what in ("accepted", "handled")},
        ),
        (
            "Requests given to workers, by what came of it",
            "reqps",
            {"sum by (result) (rate(nginx_upstream_tries_total[1m]))": "{{result}}"},
        ),
        ("Requests missing in these counts", "none", {"increase(nginx_log_lines_lost_total[1m])": "lost"}),
    ],
    "Workers": [
        (
            "Requests in flight",
            "none",
            {"http_requests_in_flight": WHICH, "max(http_requests_in_flight_limit)": "limit"},
        ),
        ("Accept queue, the longest of a minute", "none", {"app_worker_accept_queue_max": WHICH}),
        ("Event loop has not moved for", "s", {"app_worker_loop_silence_seconds": WHICH}),
        ("Calls that wait for a thread", "none", {"app_worker_threads_waiting": WHICH}),
        ("Connections", "none", {"app_worker_connections": WHICH}),
        ("CPUs", "none", {"rate(app_worker_cpu_seconds_total[1m])": WHICH}),
        ("Memory", "bytes", {"app_worker_memory_bytes": WHICH, "max(app_worker_memory_limit_bytes)": "limit"}),
        ("Descriptors", "none", {"app_worker_descriptors": WHICH}),
    ],
    "What happens": [
        ("Workers", "none", {"sum by (state) (app_workers)": "{{state}}", "sum(app_workers_wanted)": "wanted"}),
        ("Replicas that answer", "none", {"sum(live_replica_up)": "replicas", "nginx_up": "nginx"}),
        ("Workers that ended", "none", {"sum by (reason) (increase(app_worker_exits_total[1m]))": "{{reason}}"}),
        (
            "Reloads",
            "none",
            {
                "sum by (result) (increase(app_reloads_total[1m]))": "{{result}}",
                "app_generation": "generation {{replica}}",
            },
        ),
        (
            "Answers that were cut",
            "none",
            {
                "sum by (reason) (increase(http_requests_cut_total[1m]))": "{{reason}}",
                "sum(increase(app_drain_cut_requests_total[1m]))": "at the end of a drain",
            },
        ),
        (
            "Streams and WebSockets",
            "none",
            {"sum(http_streams_open)": "event streams", "sum(websocket_connections)": "WebSockets"},
        ),
    ],
}


def queries() -> list[str]:
    """Every query of the dashboard."""
    return [query for panels in PANELS.values() for _, _, lines in panels for query in lines]


def dashboard() -> str:
    """The dashboard as JSON; Grafana asks for the data source when it is imported."""
    source = DataSourceRef(type_val="prometheus", uid="${source}")
    board = dashboards.Dashboard("The stack").uid("stack").refresh("10s").time("now-1h", "now").editable()
    board.with_variable(dashboards.DatasourceVariable("source").label("Prometheus").type("prometheus"))
    for title, panels in PANELS.items():
        board.with_row(dashboards.Row(title))
        for name, unit, lines in panels:
            panel = Panel().title(name).unit(unit).datasource(source).span(12).height(7).min(0)
            panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
            panel.legend(common.VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM))
            for query, line in lines.items():
                target = Dataquery().expr(query).legend_format(line).datasource(source).range()
                panel.with_target(target.ref_id(chr(ord("A") + list(lines).index(query))))
            board.with_panel(panel)
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def rules() -> list[dict[str, Any]]:
    """The alerts of rules.yml, in their order."""
    groups = yaml.safe_load((HERE / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def table() -> str:
    """A row for each alert, made of its rule."""
    found: dict[str, list[dict[str, Any]]] = {}
    for rule in rules():
        found.setdefault(rule["alert"], []).append(rule)
    lines = ["| alert | severity | what happens | what to do |", "| --- | --- | --- | --- |"]
    for name, several in found.items():
        severities = ", ".join(dict.fromkeys(rule["labels"]["severity"] for rule in several))
        said = several[0]["annotations"]
        lines.append(f"| `{name}` | {severities} | {_plain(said['summary'])} | {_linked(said['action'])} |")
    return "\n".join(lines) + "\n"


def _plain(summary: str) -> str:
    """Without the template's braces: N for the value, the label's name for a label."""
    text = re.sub(r"\{\{ \$value[^}]*\}\}", "N", summary)
    return _linked(re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"*\1*", text)).replace("_P*percentile*_", "_P*N*_")


def _linked(text: str) -> str:
    return re.sub(r"docs/(\w[\w-]*\.md)", r"[\1](\1)", text)


def page() -> str:
    """docs/alerts.md with its table as the rules are now."""
    before, _, rest = ALERTS.read_text().partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    JSON.write_text(dashboard())
    ALERTS.write_text(page())
