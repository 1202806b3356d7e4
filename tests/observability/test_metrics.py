"""Metrics in the text format."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from flx_api.observability.metrics import Histogram, Metrics


def test_everything_is_exposed() -> None:
    metrics = Metrics()
    metrics.request("/x/{id}", "GET", 200, 0.003)
    metrics.refusal("expired")
    metrics.closed(4408)
    metrics.gap("epoch")
    metrics.phases["admit"].observe(0.00001)
    metrics.connections, metrics.subscriptions, metrics.upstream_in_flight = 1, 2, 3
    samples = {
        (sample.name, tuple(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }
    assert samples["flx_http_requests_total", ("GET", "/x/{id}", "2xx")] == 1
    assert samples["flx_http_request_duration_seconds_count", ("/x/{id}",)] == 1
    assert samples["flx_http_phase_duration_seconds_sum", ("admit",)] == 0.00001
    assert samples["flx_refusals_total", ("expired",)] == 1
    assert samples["flx_ws_closed_total", ("4408",)] == 1
    assert samples["flx_event_gaps_total", ("epoch",)] == 1
    assert (samples["flx_ws_connections", ()], samples["flx_ws_subscriptions", ()]) == (1, 2)
    assert samples["flx_upstream_in_flight", ()] == 3


def test_a_value_on_a_bound_is_within_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert histogram.total == 6.0


def test_two_applications_do_not_share_anything() -> None:
    one, other = Metrics(), Metrics()
    one.refusal("x")
    assert other.refusals == {}
