"""Every metric of the gateway, declared once.

Strategy: counting is a dict or list increment on plain attributes, since prometheus-client's own counters take a lock
and several calls each; `Metrics` is a collector that turns them into exposition when somebody asks.

Rules:
- A label is a route template, a method, a status class, a code or a phase: never a path, a subject or an id.
- One `Metrics` per application, with its own registry: nothing at module level counts.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Literal

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Phase = Literal["receive", "admit", "authorise", "dispatch", "upstream", "respond", "record"]
PHASES: Final[tuple[Phase, ...]] = ("receive", "admit", "authorise", "dispatch", "upstream", "respond", "record")

_REQUEST_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PHASE_BOUNDS: Final = (0.000002, 0.00001, 0.00005, 0.0002, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0)


class Histogram:
    """Counts by upper bound, and the sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts as prometheus-client takes them."""
        running = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            running += count
            rows.append(("+Inf" if bound == float("inf") else str(bound), running))
        return rows


class Metrics(Collector):
    """The numbers of one gateway process."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str], int] = {}
        self.durations: dict[str, Histogram] = {}
        self.phases: dict[Phase, Histogram] = {phase: Histogram(_PHASE_BOUNDS) for phase in PHASES}
        self.refusals: dict[str, int] = {}
        self.upstream_in_flight = 0
        self.connections = 0
        self.connections_closed: dict[int, int] = {}
        self.subscriptions = 0
        self.events_received = 0
        self.events_delivered = 0
        self.gaps: dict[str, int] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One HTTP request is over."""
        key = (route, method, f"{status // 100}xx")
        self.requests[key] = self.requests.get(key, 0) + 1
        histogram = self.durations.get(route)
        if histogram is None:
            histogram = self.durations[route] = Histogram(_REQUEST_BOUNDS)
        histogram.observe(seconds)

    def refusal(self, reason: str) -> None:
        """A request or a connection was refused."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1

    def closed(self, code: int) -> None:
        """A WebSocket ended with this close code."""
        self.connections_closed[code] = self.connections_closed.get(code, 0) + 1

    def gap(self, reason: str) -> None:
        """Events were skipped."""
        self.gaps[reason] = self.gaps.get(reason, 0) + 1

    def exposition(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client calls at exposition."""
        requests = CounterMetricFamily(
            "flx_http_requests", "HTTP requests by route template.", labels=("route", "method", "status")
        )
        for key, count in self.requests.items():
            requests.add_metric(key, count)
        yield requests
        yield _histograms("flx_http_request_duration_seconds", "From receive to record.", "route", self.durations)
        yield _histograms("flx_http_phase_duration_seconds", "Time spent in each phase.", "phase", self.phases)
        yield _counts("flx_refusals", "Requests and connections refused, by reason.", "reason", self.refusals)
        yield GaugeMetricFamily(
            "flx_upstream_in_flight", "Commands that wait for the daemon.", value=self.upstream_in_flight
        )
        yield GaugeMetricFamily("flx_ws_connections", "Open WebSocket connections.", value=self.connections)
        yield GaugeMetricFamily("flx_ws_subscriptions", "Subscriptions of all connections.", value=self.subscriptions)
        yield _counts(
            "flx_ws_closed",
            "WebSocket connections ended, by close code.",
            "code",
            {str(code): count for code, count in self.connections_closed.items()},
        )
        yield CounterMetricFamily("flx_events_received", "Events from the daemon.", value=self.events_received)
        yield CounterMetricFamily("flx_events_delivered", "Events given to connections.", value=self.events_delivered)
        yield _counts("flx_event_gaps", "Gaps told to connections, by reason.", "reason", self.gaps)


def _counts(name: str, sentence: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, sentence, labels=(label,))
    for key, count in counts.items():
        family.add_metric((key,), count)
    return family


def _histograms(
    name: str, sentence: str, label: str, histograms: dict[str, Histogram] | dict[Phase, Histogram]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, sentence, labels=(label,))
    for key, histogram in histograms.items():
        family.add_metric((key,), histogram.buckets(), histogram.total)
    return family
