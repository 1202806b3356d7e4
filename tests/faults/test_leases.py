"""4 workers of 3 gateways on one real Redis: bounds, use of the limit and round trips, also with kills in mid-run.

Each test runs 12 processes for some seconds. The bounds are those of docs/decisions/0005. FLX_LEASE_WINDOW_S=60 runs
them with windows of a minute.
"""

from __future__ import annotations

import os

import pytest
from tests.faults.lease_load import Plan, main

WINDOW_S = float(os.environ.get("FLX_LEASE_WINDOW_S", "5"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 6 * WINDOW_S)]


def plan(mode: str, load: str, **more: object) -> Plan:
    """A plan of at least 200,000 requests."""
    shape = {"overload": (400, 10), "mixed": (400, 160)}[load]
    return Plan(mode=mode, load=load, window_s=WINDOW_S, limit=shape[0], keys=shape[1], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("load", ["overload", "mixed"])
def test_strict_holds_exactly(load: str) -> None:
    told = main(plan("strict", load))
    assert told["asked"] >= 200_000
    assert told["over"] <= 0, told
    if not told["away"]:
        assert told["use"] >= 0.97, told
        assert told["requests_per_call"] >= {"overload": 200, "mixed": 20}[load], told


@pytest.mark.parametrize("load", ["overload", "mixed"])
def test_fast_holds_within_its_debts(load: str) -> None:
    told = main(plan("fast", load))
    assert told["asked"] >= 200_000
    assert 0 == told["waits"]
    assert told["over"] <= told["bound"], told
    if not told["away"]:
        assert told["use"] >= 0.97, told
        assert told["requests_per_call"] >= {"overload": 200, "mixed": 20}[load], told


@pytest.mark.parametrize("durable", [True, False], ids=["data-kept", "data-lost"])
@pytest.mark.parametrize("mode", ["strict", "fast"])
def test_kills_in_mid_run_keep_the_bound(mode: str, durable: bool) -> None:
    """Redis dies and comes back; with its data kept, nodes die as well (what they spent is then in Redis or leased)."""
    faults = [(1.2, "kill-redis"), (1.5, "start-redis")]
    if durable:
        faults += [(0.8, "kill-node"), (2.0, "kill-node")]
    planned = Plan(mode=mode, window_s=WINDOW_S, limit=400, keys=6, windows=4, durable=durable, faults=faults)
    told = main(planned)
    assert told["over"] <= planned.bound(away=True)
    assert told["over_later"] <= planned.bound(away=False) or told["away"] > planned.nodes
    assert told["admitted"] > planned.keys * planned.limit
