"""Every metric of the gateway, declared once.

Strategy: requests, phases and refusals are counted in the native core, in the memory that the workers of a host share;
the rest is an increment on plain attributes. prometheus-client's own counters take a lock and several calls each;
`Metrics` is a collector that turns them into exposition when somebody asks.

Rules:
- A label is a route template, a command, a method, a status class, a code or a phase: never a path, a subject or an id.
- One `Metrics` per application, with its own registry: nothing at module level counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from flx_api._core import Counters, Hub, reasons
from flx_api.errors import CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from flx_api._core import SharedMemory

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Phase = Literal["receive", "admit", "authorise", "dispatch", "upstream", "respond", "record"]
PHASES: Final[tuple[Phase, ...]] = ("receive", "admit", "authorise", "dispatch", "upstream", "respond", "record")
_PHASE_INDEX: Final = {phase: index for index, phase in enumerate(PHASES)}
UNMATCHED: Final = "unmatched"
WEBSOCKET: Final = "/ws/{client_id}"
UNKNOWN_TICKET: Final = "unknown_ticket"


class PoolState(NamedTuple):
    """The connections to one daemon. `daemon`: its place in the configuration; the rest are counts.

    `ready` take commands, `parting` end what is under way, `away` are not there; `connected`, `failed` and `lost` are
    how often one was made, could not be made, or broke; `recycled` how often a stream was given up for a new one.
    `limit` is how many commands may be outstanding at its addresses, `open` how many of these its breaker leaves alone.
    """

    daemon: str
    ready: int
    parting: int
    away: int
    connected: int
    failed: int
    lost: int
    recycled: int
    limit: int = 0
    open: int = 0


class UpstreamState(NamedTuple):
    """The way to the daemons."""

    in_flight: int = 0
    sent_again: int = 0
    not_sent_again: int = 0
    foreign: int = 0
    refused: int = 0
    pools: Sequence[PoolState] = ()


class RealtimeState(NamedTuple):
    """What the hub of this process and the native listener have counted.

    `hub` is as `Hub.stats` has it, `ages` as `Hub.ages`, `deflated` and `rings` as of
    `RealtimeListener`.
    """

    hub: Mapping[str, int] = {}
    gaps: Mapping[str, int] = {}
    closed: Mapping[int, int] = {}
    ages: tuple[list[int], float] = ([], 0.0)
    deflated: tuple[int, int, int] = (0, 0, 0)
    rings: int = 0


class Metrics(Collector):
    """The numbers of one gateway process."""

    def __init__(
        self, routes: Sequence[str] = (), policies: Sequence[str] = (), shared: SharedMemory | None = None
    ) -> None:
        self.routes = (*routes, UNMATCHED, WEBSOCKET)
        self._policies = tuple(policies)
        # A refusal of the core has its reason's index here too.
        self._kinds = tuple(dict.fromkeys((*reasons(), *CODES, UNKNOWN_TICKET)))
        self._kind_of = {kind: index for index, kind in enumerate(self._kinds)}
        self.counters = Counters(
            routes=len(self.routes), refusals=len(self._kinds), policies=len(self._policies), shared=shared
        )
        # Asked when somebody wants to know.
        self.upstream: Callable[[], UpstreamState] = UpstreamState
        self.realtime: Callable[[], RealtimeState] = RealtimeState
        # By command and status of the operation.
        self.operations: dict[tuple[str, str], int] = {}
        self.connections_closed: dict[int, int] = {}
        self.events_received = 0
        self.reads_shared = 0
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def phase(self, phase: Phase, nanoseconds: int) -> None:
        """A phase is over."""
        self.counters.phase(_PHASE_INDEX[phase], nanoseconds)

    def refusal(self, kind: str) -> None:
        """A request or a connection was refused: a reason of the core or a code."""
        self.counters.refusal(self._kind_of[kind])

    @property
    def requests(self) -> dict[tuple[str, str, str], int]:
        """Requests by route template, method and class of the status."""
        return {
            (self.routes[route], method, f"{status}xx"): count
            for route, method, status, count in self.counters.requests()
        }

    @property
    def refusals(self) -> dict[str, int]:
        """Refusals by reason or code, where there are any."""
        return {kind: count for kind, count in zip(self._kinds, self.counters.refusals(), strict=True) if count}

    def operation(self, command: str, status: str, count: int = 1) -> None:
        """Operations of a batch have ended. `command`: its name, or `unmatched`; nothing a client made up."""
        key = command, status
        self.operations[key] = self.operations.get(key, 0) + count

    def closed(self, code: int) -> None:
        """A WebSocket of the ASGI face ended with this close code."""
        self.connections_closed[code] = self.connections_closed.get(code, 0) + 1

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
        of_requests, of_phases = Counters.bounds()
        durations = zip(self.routes, self.counters.durations(), strict=True)
        yield _histograms(
            "flx_http_request_duration_seconds", "From receive to record.", "route", durations, of_requests
        )
        phases = zip(PHASES, self.counters.phases(), strict=True)
        text = "Time spent in each phase; `receive` and `admit` are timed in one request of sixteen."
        yield _histograms("flx_http_phase_duration_seconds", text, "phase", phases, of_phases)
        operations = CounterMetricFamily(
            "flx_batch_operations", "Operations of batches, by command and status.", labels=("command", "status")
        )
        for of, count in self.operations.items():
            operations.add_metric(of, count)
        yield operations
        yield _counts(
            "flx_refusals",
            "Requests, operations of batches and connections refused, by reason.",
            "reason",
            self.refusals,
        )
        shadows = dict(zip(self._policies, self.counters.shadows(), strict=True))
        yield _counts("flx_shadow_refusals", "Requests a shadow policy would have refused.", "policy", shadows)
        yield from _of_upstream(self.upstream())
        yield CounterMetricFamily(
            "flx_upstream_shared",
            "Reads that were answered with what another one of the same principal had asked for.",
            value=self.reads_shared,
        )
        yield CounterMetricFamily("flx_events_received", "Events from the daemon.", value=self.events_received)
        yield from _of_realtime(self.realtime(), self.connections_closed)


def _of_realtime(state: RealtimeState, closed: Mapping[int, int]) -> Iterator[Metric]:
    for name, of, text in (
        ("flx_ws_connections", "connections", "Open realtime connections."),
        ("flx_ws_subscriptions", "subscriptions", "Subscriptions of all connections."),
        ("flx_ws_cohorts", "cohorts", "Groups of connections that are given the same frames."),
        ("flx_ws_behind", "behind", "Connections that have still something to get."),
        (
            "flx_ws_furthest_behind",
            "furthest",
            "Events of all topics since the place of the connection that is furthest behind.",
        ),
        ("flx_hub_topics", "topics", "Topics that have events or subscribers."),
        ("flx_hub_bytes", "bytes", "Bytes of the events that are remembered."),
    ):
        yield GaugeMetricFamily(name, text, value=state.hub.get(of, 0))
    yield GaugeMetricFamily(
        "flx_ws_window_seconds",
        "How long the events of a connection wait for others, at most: 0 while sending keeps up.",
        value=state.hub.get("window_ms", 0) / 1000,
    )
    codes = {str(code): closed.get(code, 0) + state.closed.get(code, 0) for code in (*closed, *state.closed)}
    yield _counts("flx_ws_closed", "Realtime connections ended, by close code.", "code", codes)
    for name, of, text in (
        ("flx_events_delivered", "delivered", "Events given to connections."),
        ("flx_ws_frames", "frames", "Frames given to connections."),
        ("flx_ws_bytes", "sent_bytes", "Bytes of frames given to connections."),
    ):
        yield CounterMetricFamily(name, text, value=state.hub.get(of, 0))
    yield _histogram(
        "flx_ws_lag_seconds",
        "How long the oldest event of a frame was at the gateway before the frame was given to a connection.",
        state.ages,
        Hub.age_bounds(),
    )
    made, before, after = state.deflated
    yield CounterMetricFamily(
        "flx_ws_deflated_frames", "Frames that were compressed, each once for all who got it.", value=made
    )
    yield _counts(
        "flx_ws_deflated_bytes",
        "Bytes of frames given to connections that got them compressed: before, and as they were sent.",
        "stage",
        {"before": before, "sent": after},
    )
    yield GaugeMetricFamily(
        "flx_ws_io_uring_threads", "Threads of the native listener that send by io_uring.", value=state.rings
    )
    asked = state.hub.get("asked", 0)
    resumes = {"memory": state.hub.get("resumes", 0) - asked, "daemon": asked}
    yield _counts("flx_ws_resumes", "Subscriptions from a position, by where its history came from.", "source", resumes)
    yield _counts("flx_event_gaps", "Gaps told to connections, by reason.", "reason", dict(state.gaps))


def _of_upstream(state: UpstreamState) -> Iterator[Metric]:
    yield GaugeMetricFamily("flx_upstream_in_flight", "Commands that wait for the daemon.", value=state.in_flight)
    yield CounterMetricFamily(
        "flx_upstream_sent_again", "Commands sent again, since their connection was lost.", value=state.sent_again
    )
    yield CounterMetricFamily(
        "flx_upstream_not_sent_again",
        "Commands not sent again, since too many others were.",
        value=state.not_sent_again,
    )
    yield CounterMetricFamily(
        "flx_upstream_shed", "Commands refused, since no daemon could take more.", value=state.refused
    )
    yield CounterMetricFamily(
        "flx_upstream_foreign_replies", "Replies on a stream where nobody had asked; dropped.", value=state.foreign
    )
    connections = GaugeMetricFamily(
        "flx_upstream_connections",
        "Connections to each daemon, by its place in FLX_GRPC_DAEMON_HOST: ready, parting or away.",
        labels=("daemon", "state"),
    )
    events = CounterMetricFamily(
        "flx_upstream_connection_events",
        "Connections made (connected), not made (failed) or broken (lost), and streams renewed (recycled).",
        labels=("daemon", "event"),
    )
    limits = GaugeMetricFamily(
        "flx_upstream_limit", "Commands that a worker lets be outstanding at each daemon.", labels=("daemon",)
    )
    breakers = GaugeMetricFamily(
        "flx_upstream_breakers_open", "Addresses of each daemon that are left alone for a while.", labels=("daemon",)
    )
    for pool in state.pools:
        limits.add_metric((pool.daemon,), pool.limit)
        breakers.add_metric((pool.daemon,), pool.open)
        for of in ("ready", "parting", "away"):
            connections.add_metric((pool.daemon, of), getattr(pool, of))
        for event in ("connected", "failed", "lost", "recycled"):
            events.add_metric((pool.daemon, event), getattr(pool, event))
    yield connections
    yield events
    yield limits
    yield breakers


def _counts(name: str, sentence: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, sentence, labels=(label,))
    for key, count in counts.items():
        family.add_metric((key,), count)
    return family


def _histogram(name: str, sentence: str, found: tuple[list[int], float], bounds: list[float]) -> HistogramMetricFamily:
    """One without labels. `found`: cumulative counts, the last of all of them, and the sum."""
    names, (counts, total) = [*map(str, bounds), "+Inf"], found
    return HistogramMetricFamily(
        name, sentence, buckets=list(zip(names, counts or [0] * len(names), strict=True)), sum_value=total
    )


def _histograms(
    name: str, sentence: str, label: str, histograms: Iterable[tuple[str, tuple[list[int], float]]], bounds: list[float]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, sentence, labels=(label,))
    names = [*map(str, bounds), "+Inf"]
    for key, (counts, total) in histograms:
        if counts[-1]:
            family.add_metric((key,), list(zip(names, counts, strict=True)), total)
    return family
