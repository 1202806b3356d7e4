"""Metrics in the text format."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from flx_api._core import Hub
from flx_api.observability.metrics import Metrics, RealtimeState, UpstreamState


def test_everything_is_exposed() -> None:
    metrics = Metrics(["/", "/x/{id}"], ["look"])
    metrics.counters.request(1, "GET", 200, 3_000_000)
    metrics.refusal("expired")
    metrics.operation("system.echo", "ok")
    metrics.closed(4408)
    metrics.phase("admit", 10_000)
    hub = {"connections": 1, "subscriptions": 2, "window_ms": 40, "resumes": 5, "asked": 2, "frames": 7}
    ages = [0, 3, *[4] * (len(Hub.age_bounds()) - 1)], 0.5
    metrics.realtime = lambda: RealtimeState(hub, {"epoch": 1}, {4408: 2, 1005: 1}, ages, (3, 900, 200), 2)
    metrics.upstream = lambda: UpstreamState(3)
    samples = {
        (sample.name, tuple(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }
    assert samples["flx_http_requests_total", ("GET", "/x/{id}", "2xx")] == 1
    assert samples["flx_http_request_duration_seconds_count", ("/x/{id}",)] == 1
    assert samples["flx_http_phase_duration_seconds_sum", ("admit",)] == 0.00001
    assert samples["flx_refusals_total", ("expired",)] == 1
    assert samples["flx_batch_operations_total", ("system.echo", "ok")] == 1
    assert (samples["flx_ws_closed_total", ("4408",)], samples["flx_ws_closed_total", ("1005",)]) == (3, 1)
    assert samples["flx_event_gaps_total", ("epoch",)] == 1
    assert (samples["flx_ws_connections", ()], samples["flx_ws_subscriptions", ()]) == (1, 2)
    assert (samples["flx_ws_window_seconds", ()], samples["flx_ws_frames_total", ()]) == (0.04, 7)
    assert (samples["flx_ws_lag_seconds_count", ()], samples["flx_ws_lag_seconds_sum", ()]) == (4, 0.5)
    assert [0, 3, 4] == [samples["flx_ws_lag_seconds_bucket", (bound,)] for bound in ("0.001", "0.002", "+Inf")]
    assert samples["flx_ws_deflated_frames_total", ()] == 3
    assert samples["flx_ws_deflated_bytes_total", ("before",)] == 900
    assert samples["flx_ws_deflated_bytes_total", ("sent",)] == 200
    assert samples["flx_ws_io_uring_threads", ()] == 2
    assert samples["flx_ws_resumes_total", ("memory",)] == 3
    assert samples["flx_ws_resumes_total", ("daemon",)] == 2
    assert samples["flx_upstream_in_flight", ()] == 3


def test_a_value_on_a_bound_is_within_it() -> None:
    metrics = Metrics(["/"])
    bounds, _ = metrics.counters.bounds()
    for nanoseconds in (99_999, 100_000, 100_001, 40_000_000_000):
        metrics.counters.request(0, "GET", 200, nanoseconds)
    counts, total = metrics.counters.durations()[0]
    assert (0.0001, 0.0005, 30.0) == (bounds[0], bounds[1], bounds[-1])
    assert (2, 3, 3, 4) == (counts[0], counts[1], counts[-2], counts[-1])
    assert 40.0003 == round(total, 6)


def test_how_late_frames_leave_is_counted_for_each_connection() -> None:
    hub = Hub("here")
    assert ([0] * (len(Hub.age_bounds()) + 1), 0.0) == hub.ages()
    for _ in range(2):
        conn = hub.connect("default", "ann", ["app"], "plain")
        assert conn is not None
        hub.subscribe(conn, ["app.x"], None, 0)
    hub.publish("default", "app.x", 1, b"1", 100)
    hub.publish("default", "app.x", 1, b"2", 140)
    assert 2 == len(hub.take(145, 10))
    counts, total = hub.ages()
    bounds = dict(zip([*Hub.age_bounds(), float("inf")], counts, strict=True))
    assert (0, 2, 2, 4, 4) == tuple(bounds[bound] for bound in (0.002, 0.005, 0.025, 0.05, float("inf")))
    assert 0.1 == total


def test_two_applications_do_not_share_anything() -> None:
    one, other = Metrics(), Metrics()
    one.refusal("expired")
    assert other.refusals == {}
