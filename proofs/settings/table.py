"""The parts of the table in one, in the order of the inventory."""

from __future__ import annotations

from proofs.settings import (
    Setting,
    Unproven,
    admission,
    app,
    balancers,
    cache,
    compose,
    http3,
    live,
    metrics,
    nginx,
    rows,
    servers,
    tls,
    upstream,
)

TABLE: list[Setting | Unproven] = [
    setting
    for part in (nginx, servers, balancers, tls, http3, upstream, cache, admission, app, compose, live, metrics, rows)
    for setting in part.SETTINGS
]


def faults(inventory: list[str]) -> list[str]:
    """What is wrong with the table, a line each: a setting that it lacks or has twice, one that is gone."""
    listed = [name for setting in TABLE for name in setting.names]
    found = [f"{name}: no proof names it; add it to proofs/settings/" for name in inventory if name not in listed]
    found += [f"{name}: in proofs/settings/, but gone from its file" for name in set(listed) - set(inventory)]
    found += [f"{name}: twice in proofs/settings/" for name in sorted(set(listed)) if listed.count(name) > 1]
    return found
