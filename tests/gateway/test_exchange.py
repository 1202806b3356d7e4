"""What is known about a request."""

from __future__ import annotations

from time import monotonic_ns

from tests.gateway_app import Wire, built, exchange, scope

from flx_api.observability.metrics import PHASES


def test_it_knows_what_admission_knows() -> None:
    seen = exchange(Wire(), scope("POST", "/auth/login", {"origin": "o", "x-request-id": "Abc.1_2-3"}))
    assert (seen.method, seen.client, seen.request_id) == ("POST", "127.0.0.1", "Abc.1_2-3")
    assert (seen.headers[b"origin"], seen.principal, seen.route.template) == (b"o", None, "/auth/login")


def test_values_bear_the_names_of_their_template() -> None:
    assert {"file": "a b.css"} == exchange(Wire(), scope(path="/docs/a%20b.css")).values


def test_phases_add_up() -> None:
    parts = built()
    seen = exchange(Wire(), scope(), parts)
    seen.passed("dispatch")
    seen.passed("upstream")
    phases = {name: spent for name, spent in zip(PHASES, parts.metrics.counters.phases(), strict=True) if spent[0][-1]}
    assert ["receive", "admit", "dispatch", "upstream"] == list(phases)
    told = sum(total for _, total in phases.values())
    assert 0 < told <= seen.duration_us / 1e6 + 1e-6


def test_admission_begins_where_a_request_was_received() -> None:
    parts = built()
    parts.admission.admit(scope(), now_ns=monotonic_ns() - 10**9)
    received, admitted = (total for _, total in parts.metrics.counters.phases()[:2])
    assert received >= 1
    assert admitted < 0.5


def test_the_last_phase_ends_with_the_request() -> None:
    parts = built()
    seen = exchange(Wire(), scope(), parts)
    seen.passed("upstream")
    for responded_since_ns, told in ((None, 0), (seen.mark_ns, 1), (seen.mark_ns, 2)):
        seen.admitted.over(200, responded_since_ns)
        counts, total = parts.metrics.counters.phases()[PHASES.index("respond")]
        assert counts[-1] == told
        assert (total > 0) == (told > 0)
    assert sum(parts.metrics.requests.values()) == 3
