"""The Prometheus text format (version 0.0.4): nginx's metrics written, those of the replicas put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from live.metrics import KNOWN

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Families:
    """Samples by metric family: in one exposition each family stands once, with its samples in one piece."""

    def __init__(self) -> None:
        self._heads: dict[str, list[str]] = {}
        self._samples: dict[str, list[str]] = {}

    def add(self, name: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        """A family of counters or gauges with its samples, each with its labels. `name` is one of live/metrics.py."""
        self._own(name)
        self._samples[name] += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]

    def add_histogram(self, name: str, bounds: Iterable[float], counts: Iterable[int], total: float) -> None:
        """A histogram without labels; `counts` has one more than `bounds`, for what is over the last."""
        self._own(name)
        so_far = 0
        for bound, count in zip([*map(_number, bounds), "+Inf"], counts, strict=True):
            so_far += count
            self._samples[name].append(f'{name}_bucket{{le="{bound}"}} {so_far}')
        self._samples[name] += [f"{name}_sum {_number(total)}", f"{name}_count {so_far}"]

    def merge(self, text: str, replica: str) -> None:
        """The exposition of a replica, each sample with the label `replica`."""
        family = ""
        label = f'replica="{_escaped(replica)}"'
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
                self._head(family, line)
            elif line and not line.startswith("#"):
                name, brace, rest = line.partition("{")
                if brace:
                    sample = f"{name}{{{label}{'' if rest.startswith('}') else ','}{rest}"
                else:
                    name, _, rest = line.partition(" ")
                    sample = f"{name}{{{label}}} {rest}"
                if not name.startswith(family):
                    family = name
                self._head(family)
                self._samples[family].append(sample)

    def _own(self, name: str) -> None:
        metric = KNOWN[name]
        self._head(name, f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}")

    def _head(self, family: str, *lines: str) -> None:
        head = self._heads.setdefault(family, [])
        self._samples.setdefault(family, [])
        for line in lines:
            if not any(line.split(" ", 2)[1] == known.split(" ", 2)[1] for known in head):
                head.append(line)

    def text(self) -> str:
        """The whole exposition."""
        return "".join(f"{line}\n" for name, head in self._heads.items() for line in head + self._samples[name])


def _labels(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
