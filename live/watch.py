"""What is going on, put together from all sources: for the page four times a second, for /metrics when asked."""

from __future__ import annotations

import json
import threading
import time

from live.certificate import Certificate
from live.counts import CAUSES, RESULTS, Counts
from live.exposition import Families
from live.settings import Settings
from live.sources import STATUS, Nginx, Replicas

TICK = 0.25
# While nobody watches, the log alone is read: what was read takes no room.
IDLE_TICK = 1.0
# What the alerts compare with, so that their rules are the same whatever .env has (prometheus/rules.yml).
RULED = ("SLO_P50_MS", "SLO_P95_MS", "SLO_P99_MS", "SLO_ERROR_SHARE", "LONGEST_BLOCK_SECONDS", "APP_REPLICAS")
# Pages that may be open at a time.
WATCHERS = 32


class Watch:
    """Looks as often as somebody watches."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.nginx = Nginx(*settings.nginx_status)
        self.certificate = Certificate(*settings.nginx_tls) if settings.nginx_tls else None
        self.counts = Counts(settings.counts, settings.objectives)
        self._wanted = threading.Event()
        self.replicas = Replicas(settings.app_host, settings.observer_port, self._wanted)
        self.watchers = 0
        self._tick = 0
        self._said_lost = 0
        self._snapshot = b"{}"
        self._changed = threading.Condition()
        self._looking = threading.Lock()

    def run(self) -> None:
        """Look on, for ever."""
        found = shown = 0.0
        while True:
            begun = time.monotonic()
            with self._changed:
                if not self.watchers:
                    self._wanted.clear()
                    self._changed.wait(IDLE_TICK)
            watched = self._wanted.is_set()
            if watched and begun - found > 1:
                # In a thread of its own: a resolver may take its time.
                threading.Thread(target=self.replicas.find, daemon=True).start()
                found = begun
            self.look(always=watched)
            if watched:
                # After a look that took its time the next one is early.
                time.sleep(max(0.0, shown + TICK - time.monotonic()))
                self._publish()
                shown = time.monotonic()
                time.sleep(max(0.02, TICK - (shown - begun)))

    def look(self, always: bool = True) -> None:
        """Ask nginx, and read its log; not `always`: only where there is something to read."""
        with self._looking:
            now = time.monotonic()
            if not always and not self.counts.waiting():
                return  # nobody watches, and nothing was asked of nginx
            self.nginx.ask()
            counters = self.nginx.counters
            while self.counts.read(now, counters["requests"] if counters else None) > 1000:
                pass
        if self.counts.lost > self._said_lost:
            print(f"the space for nginx's counts was full: {self.counts.lost - self._said_lost} lines were lost, "
                  "no request was", flush=True)  # fmt: skip
            self._said_lost = self.counts.lost

    # --- the page -------------------------------------------------------------------------------------------

    def join(self) -> bool:
        """One watcher more; False where there are as many as may be."""
        with self._changed:
            if self.watchers >= WATCHERS:
                return False
            self.watchers += 1
            self._wanted.set()
            self._changed.notify_all()
            return True

    def leave(self) -> None:
        """One watcher less."""
        with self._changed:
            self.watchers -= 1

    def next(self, tick: int) -> tuple[int, bytes]:
        """The first snapshot after `tick`, with its own tick; waits for it. A slow watcher misses some."""
        with self._changed:
            self._changed.wait_for(lambda: self._tick > tick, timeout=5)
            return self._tick, self._snapshot

    def _publish(self) -> None:
        now = time.monotonic()
        counts = self.counts
        with counts.lock:
            answers: dict[str, int] = {}
            for (status, cause, _), count in counts.responses.items():
                key = f"app {status // 100}xx" if cause == "app" else cause
                answers[key] = answers.get(key, 0) + count
            groups = dict(counts.groups)
            history = list(counts.history)
        snapshot = {
            "now": round(now, 3),
            "nginx": self.nginx.counters,
            "answers": answers,
            "groups": groups,
            "percentiles": counts.percentiles(),
            "last": history[-1] if history else None,
            "lost": counts.lost,
            "replicas": [
                {"number": replica.number, "age": round(now - replica.answered, 2), **(replica.state or {})}
                for replica in self.replicas.found
            ],
        }
        with self._changed:
            self._tick += 1
            self._snapshot = json.dumps(snapshot, separators=(",", ":")).encode()
            self._changed.notify_all()

    def history(self) -> bytes:
        """The last seconds, for a page that has just been opened."""
        with self.counts.lock:
            return json.dumps(list(self.counts.history), separators=(",", ":")).encode()

    # --- /metrics -------------------------------------------------------------------------------------------

    def exposition(self) -> str:
        """nginx's metrics and those of every replica that answers; it takes at most about a second."""
        finder = threading.Thread(target=self.replicas.find, daemon=True)
        finder.start()
        asker = threading.Thread(target=self.certificate.ask, daemon=True) if self.certificate else None
        if asker:
            asker.start()
        self.look()
        finder.join(0.3)
        answers = self.replicas.metrics()
        if asker:
            asker.join(0.3)
        families = Families()
        if counters := self.nginx.counters:
            for key in STATUS:
                name = "nginx_http_requests_total" if key == "requests" else f"nginx_connections_{key}"
                families.add(name, [({}, counters[key])])
        families.add("nginx_up", [({}, float(counters is not None))])
        if self.certificate and self.certificate.end is not None:
            families.add("tls_certificate_not_after_timestamp_seconds", [({}, self.certificate.end)])
        self._counts_to(families)
        families.add("stack_setting", [({"row": row}, float(self.settings.rows[row])) for row in RULED])
        families.add("live_replica_up", [({"replica": address}, float(said is not None))
                                         for address, said in answers.items()])  # fmt: skip
        families.add("live_watchers", [({}, self.watchers)])
        for address, said in answers.items():
            families.merge(said or "", address)
        return families.text()

    def _counts_to(self, families: Families) -> None:
        counts = self.counts
        with counts.lock:
            responses, tries = counts.responses.copy(), counts.tries.copy()
            buckets, total, lost = list(counts.buckets), counts.sum, counts.lost
        for cause in CAUSES:  # from 0 on: increase() does not see the first of a series
            if not any(each == cause for _, each, _ in responses):
                responses[_STATUS_OF.get(cause, 200), cause, ""] = 0
        for address in {address for address, _ in tries}:
            for result in RESULTS:
                tries.setdefault((address, result), 0)
        families.add(
            "nginx_http_responses_total",
            [({"status": f"{status:03}", "cause": cause} | self._worker(address), count)
             for (status, cause, address), count in sorted(responses.items())],
        )  # fmt: skip
        families.add(
            "nginx_upstream_tries_total",
            [(self._worker(address) | {"result": result}, count)
             for (address, result), count in sorted(tries.items())],
        )  # fmt: skip
        families.add_histogram("nginx_request_duration_seconds", counts.bounds, buckets, total)
        families.add(
            "nginx_requests_over_objective_total",
            [({"percentile": share}, sum(buckets[counts.bounds.index(objective) + 1 :]))
             for share, objective in zip(("50", "95", "99"), self.settings.objectives, strict=True)],
        )  # fmt: skip
        families.add("nginx_log_lines_lost_total", [({}, lost)])

    def _worker(self, address: str) -> dict[str, str]:
        """The labels of the worker that listens at this address; of none where there is no address."""
        host, _, port = address.rpartition(":")
        slot = str(int(port) - self.settings.app_port) if port.isdigit() and not self.settings.shared else ""
        return {"replica": host, "worker": slot}


_STATUS_OF = {"full": 503, "client_limit": 429, "silent": 504, "lost": 502, "down": 503, "client_left": 499,
              "host": 421, "too_large": 413, "bad_request": 400}  # fmt: skip
