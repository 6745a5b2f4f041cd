"""Counters, gauges and histograms that cost a dictionary access each, read out in OpenTelemetry's data model.

The synchronous instruments of the OpenTelemetry SDK take 9 to 14 µs per call (measured, see docs/telemetry.md): they
copy and hash the attributes and take two locks each time. A job touches several of them, and a gateway does thousands
of jobs a second. So each series is aggregated here, in plain Python numbers, and turned into the SDK's data points
only when somebody reads. One thread writes; readers in other threads see each number whole, and at worst one
observation between a histogram's count and its sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family

Labels = tuple[str, ...]

#: Series of one instrument; further label values are counted together under ``OVERFLOW``. OpenTelemetry's own
#: default is 2000 as well.
SERIES_MAX = 2000
OVERFLOW = "other"


class CounterInstrument:
    """A sum that only grows; its name ends in ``_total``."""

    def __init__(self, name: str, description: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.description = description
        self.labels = tuple(labels)
        self._values: dict[Labels, float] = {}
        if not labels:
            # A counter without labels shows its zero from the start, so that a rate over it has a beginning.
            self._values[()] = 0

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Count; ``labels`` are the values, in the order of the names."""
        try:
            self._values[labels] += amount
        except KeyError:
            labels = _bounded(labels, self._values)
            self._values[labels] = self._values.get(labels, 0) + amount

    def values(self) -> dict[Labels, float]:
        """A copy of every series; copying a dictionary is one step of the interpreter, so no lock is needed."""
        return dict(self._values)

    def family(self) -> Family:
        """For a Prometheus page."""
        family = CounterMetricFamily(self.name, self.description, labels=self.labels)
        for labels, value in self.values().items():
            family.add_metric(labels, value)
        return family

    def metric(self, start_ns: int, now_ns: int) -> Metric:
        """For an OpenTelemetry exporter."""
        points = _number_points(self.labels, self.values(), start_ns, now_ns)
        data = Sum(points, aggregation_temporality=AggregationTemporality.CUMULATIVE, is_monotonic=True)
        return Metric(self.name, self.description, "", data)

    def samples(self) -> Iterable[tuple[str, Labels, float]]:
        """Every series as (name, label values, value)."""
        return [(self.name, labels, value) for labels, value in self.values().items()]


class GaugeInstrument:
    """The last value of something that goes up and down."""

    def __init__(self, name: str, description: str, labels: Sequence[str] = (), unit: str = "") -> None:
        self.name = name
        self.description = description
        self.labels = tuple(labels)
        self.unit = unit
        self._values: dict[Labels, float] = {}

    def set(self, labels: Labels, value: float) -> None:
        if labels not in self._values:
            labels = _bounded(labels, self._values)
        self._values[labels] = value

    def add(self, labels: Labels, amount: float) -> None:
        """Move it by an amount; a series begins at zero."""
        if labels not in self._values:
            labels = _bounded(labels, self._values)
        self._values[labels] = self._values.get(labels, 0) + amount

    def remove(self, labels: Labels) -> None:
        """End a series; what went into the overflow stays there."""
        self._values.pop(labels, None)

    def replace(self, values: Mapping[Labels, float]) -> None:
        """Take a whole new set of series: those not in it are gone (a class without jobs, for example)."""
        self._values = dict(list(values.items())[:SERIES_MAX])

    def values(self) -> dict[Labels, float]:
        return dict(self._values)

    def family(self) -> Family:
        """For a Prometheus page."""
        family = GaugeMetricFamily(self.name, self.description, labels=self.labels)
        for labels, value in self.values().items():
            family.add_metric(labels, value)
        return family

    def metric(self, start_ns: int, now_ns: int) -> Metric:
        """For an OpenTelemetry exporter."""
        points = _number_points(self.labels, self.values(), start_ns, now_ns)
        return Metric(self.name, self.description, self.unit, Gauge(points))

    def samples(self) -> Iterable[tuple[str, Labels, float]]:
        """Every series as (name, label values, value)."""
        return [(self.name, labels, value) for labels, value in self.values().items()]


class _Distribution:
    """One series of a histogram."""

    __slots__ = ("counts", "highest", "lowest", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0
        self.lowest = float("inf")
        self.highest = float("-inf")


class HistogramInstrument:
    """A distribution over fixed buckets, in seconds; its name ends in ``_seconds``.

    Args:
        bounds: upper bounds of the buckets, inclusive, rising; one more bucket takes what is above the last.
    """

    unit = "s"

    def __init__(
        self, name: str, description: str, bounds: Sequence[float], labels: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.description = description
        self.bounds = tuple(bounds)
        self.labels = tuple(labels)
        self._series: dict[Labels, _Distribution] = {}

    def observe(self, labels: Labels, value: float) -> None:
        """Take in one value; ``labels`` are the values, in the order of the names."""
        series = self._series.get(labels)
        if series is None:
            labels = _bounded(labels, self._series)
            series = self._series.setdefault(labels, _Distribution(len(self.bounds) + 1))
        series.counts[bisect_left(self.bounds, value)] += 1
        series.total += value
        if value < series.lowest:
            series.lowest = value
        if value > series.highest:
            series.highest = value

    def family(self) -> Family:
        """For a Prometheus page: buckets are cumulative there."""
        family = HistogramMetricFamily(self.name, self.description, labels=self.labels)
        for labels, series in dict(self._series).items():
            counts, running, buckets = list(series.counts), 0, []
            for bound, count in zip((*map(str, self.bounds), "+Inf"), counts, strict=True):
                running += count
                buckets.append((bound, float(running)))
            family.add_metric(labels, buckets, series.total)
        return family

    def metric(self, start_ns: int, now_ns: int) -> Metric:
        """For an OpenTelemetry exporter."""
        points = []
        for labels, series in dict(self._series).items():
            counts = list(series.counts)
            point = HistogramDataPoint(
                attributes=_attributes(self.labels, labels),
                start_time_unix_nano=start_ns,
                time_unix_nano=now_ns,
                count=sum(counts),
                sum=series.total,
                bucket_counts=counts,
                explicit_bounds=self.bounds,
                min=series.lowest,
                max=series.highest,
            )
            points.append(point)
        data = Histogram(points, aggregation_temporality=AggregationTemporality.CUMULATIVE)
        return Metric(self.name, self.description, self.unit, data)

    def samples(self) -> Iterable[tuple[str, Labels, float]]:
        """Count and sum of every series as (name, label values, value)."""
        found: list[tuple[str, Labels, float]] = []
        for labels, series in dict(self._series).items():
            found.append((f"{self.name}_count", labels, sum(series.counts)))
            found.append((f"{self.name}_sum", labels, series.total))
        return found


Instrument = CounterInstrument | GaugeInstrument | HistogramInstrument


class InstrumentSet:
    """All instruments of one gateway; a collector in the sense of ``prometheus_client``.

    Args:
        resource: whom an OpenTelemetry backend is told the numbers come from.
        scope: name of the instrumentation.
        wall_ns: wall clock, nanoseconds since the epoch.
    """

    def __init__(self, resource: Resource, scope: str, wall_ns: Callable[[], int]) -> None:
        self._resource = resource
        self._scope = InstrumentationScope(scope)
        self._wall_ns = wall_ns
        self._start_ns = wall_ns()
        self._instruments: list[Instrument] = []

    def counter(self, name: str, description: str, labels: Sequence[str] = ()) -> CounterInstrument:
        instrument = CounterInstrument(name, description, labels)
        self._instruments.append(instrument)
        return instrument

    def gauge(
        self, name: str, description: str, labels: Sequence[str] = (), unit: str = ""
    ) -> GaugeInstrument:
        instrument = GaugeInstrument(name, description, labels, unit)
        self._instruments.append(instrument)
        return instrument

    def histogram(
        self, name: str, description: str, bounds: Sequence[float], labels: Sequence[str] = ()
    ) -> HistogramInstrument:
        instrument = HistogramInstrument(name, description, bounds, labels)
        self._instruments.append(instrument)
        return instrument

    def collect(self) -> Iterable[Family]:
        """Called by ``prometheus_client`` for each page."""
        return [instrument.family() for instrument in self._instruments]

    def metrics_data(self) -> MetricsData:
        """Everything, as an OpenTelemetry exporter takes it; instruments without a series are left out."""
        now_ns = self._wall_ns()
        metrics = [instrument.metric(self._start_ns, now_ns) for instrument in self._instruments]
        found = [metric for metric in metrics if metric.data.data_points]
        return MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(self._scope, found, "")], "")])

    def snapshot(self) -> dict[str, float]:
        """Every series by its text form, for example ``jobs_total{service="x",status="completed"}``."""
        found = {}
        for instrument in self._instruments:
            for name, labels, value in instrument.samples():
                pairs = ",".join(
                    f'{key}="{text}"' for key, text in zip(instrument.labels, labels, strict=True)
                )
                found[f"{name}{{{pairs}}}" if pairs else name] = value
        return found


def _bounded(labels: Labels, series: Mapping[Labels, object]) -> Labels:
    """The labels of a new series, or those of the overflow once there are too many."""
    return labels if not labels or len(series) < SERIES_MAX else (OVERFLOW,) * len(labels)


def _attributes(names: Labels, values: Labels) -> dict[str, str]:
    return {name: value for name, value in zip(names, values, strict=True) if value}


def _number_points(
    names: Labels, values: Mapping[Labels, float], start_ns: int, now_ns: int
) -> list[NumberDataPoint]:
    return [
        NumberDataPoint(_attributes(names, labels), start_ns, now_ns, value)
        for labels, value in values.items()
    ]
