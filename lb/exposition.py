"""The text of a scrape, by prometheus-client, over what all workers have counted.

Apart from `metrics` because workers count and never show: they need not load the library.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample

from lb.metric_names import FAMILIES, Kind
from lb.metrics import BOUNDS, SUM, Labels, Reading, scaled

OPENMETRICS, PLAIN = "application/openmetrics-text", "text/plain"
_BOUND_TEXTS = (*map(str, BOUNDS), "+Inf")


def exposition(
    reading: Reading, extra: Iterable[Metric] = (), accept: str = ""
) -> tuple[bytes, str]:
    """
    Return the text for a scrape and its content type, as the `Accept` header asks.

    `extra` are the controller's own metrics; see `family`. One that also comes from the
    workers is joined to theirs, for a name may stand in the text only once.
    """
    wanted = _wanted_format(accept)
    encode, content_type = choose_encoder(wanted)
    joined = _Joined(reading, extra, openmetrics=wanted.startswith(OPENMETRICS))
    return encode(joined), content_type


def family(name: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Metric:
    """Return a counter or gauge of the table with these labels and values."""
    metric = _metric(name)
    metric.samples.extend(Sample(name, dict(labels), value) for labels, value in samples)
    return metric


def standard_metrics(version: str) -> Iterator[Metric]:
    """Yield `lb_build_info` and the `process_*` metrics of the process that calls."""
    build = {"version": version, "python": platform.python_version()}
    yield family("lb_build_info", [(build, 1)])
    yield from ProcessCollector(registry=CollectorRegistry()).collect()


class _Joined(Collector):
    def __init__(self, reading: Reading, extra: Iterable[Metric], *, openmetrics: bool) -> None:
        self._reading = reading
        self._extra = extra
        self._openmetrics = openmetrics

    def collect(self) -> Iterator[Metric]:
        # By type too: the library calls the counter lb_connections_total lb_connections, which
        # is the name of a gauge.
        metrics: dict[tuple[str, str], Metric] = {}
        for name in FAMILIES:
            series = self._reading.series(name)
            if series:
                metric = _from_series(name, series)
                metrics[metric.name, metric.type] = metric
        for metric in self._extra:
            known = metrics.get((metric.name, metric.type))
            if known is not None:
                known.samples.extend(metric.samples)
            elif metric.samples:
                metrics[metric.name, metric.type] = metric
        for (name, kind), metric in metrics.items():
            namesake = kind == Kind.COUNTER and (name, Kind.GAUGE.value) in metrics
            yield _untyped(metric) if namesake and self._openmetrics else metric


def _untyped(counter: Metric) -> Metric:
    """Return a counter under its full name: OpenMetrics has no two families of one name."""
    metric = Metric(f"{counter.name}_total", counter.documentation, "unknown")
    metric.samples.extend(counter.samples)
    return metric


def _metric(name: str) -> Metric:
    found = FAMILIES[name]
    return Metric(name.removesuffix("_total"), found.meaning, found.kind.value)


def _from_series(name: str, series: Mapping[Labels, list[int]]) -> Metric:
    metric = _metric(name)
    scale = FAMILIES[name].scale
    append = metric.samples.append
    for labels, values in series.items():
        carried = dict(labels)
        if len(values) == 1:
            append(Sample(name, carried, scaled(values[0], scale)))
            continue
        count = 0
        for bound, inside in zip(_BOUND_TEXTS, values, strict=False):
            count += inside
            append(Sample(name + "_bucket", {**carried, "le": bound}, count))
        append(Sample(name + "_count", carried, count))
        append(Sample(name + "_sum", carried, values[SUM] * scale))
    return metric


def _wanted_format(accept: str) -> str:
    """
    Return what to ask the library for.

    It knows no q values, and repeats the version that a scraper names without looking at it.
    """
    shares = {OPENMETRICS: 0.0, PLAIN: 0.0}
    for offer in accept.split(","):
        media, *parameters = (part.strip().lower() for part in offer.split(";"))
        if media in shares:
            share = next((p[2:] for p in parameters if p.startswith("q=")), "1")
            shares[media] = max(shares[media], _number(share))
    wants_openmetrics = shares[OPENMETRICS] > 0 and shares[OPENMETRICS] >= shares[PLAIN]
    return f"{OPENMETRICS}; version=1.0.0" if wants_openmetrics else PLAIN


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
