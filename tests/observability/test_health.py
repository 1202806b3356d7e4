"""Readiness is the conjunction of its checks."""

from __future__ import annotations

from flx_api.observability.health import Health


def test_one_reason_is_enough() -> None:
    health = Health()
    assert health.readiness().status == "ready"
    reasons = {"daemon": "", "events": "has no position yet"}
    health.register("daemon", lambda: reasons["daemon"])
    health.register("events", lambda: reasons["events"])
    readiness = health.readiness()
    assert (readiness.status, readiness.reasons) == ("not_ready", ("events: has no position yet",))
    assert readiness.checks["daemon"].ok
    reasons["events"] = ""
    assert health.readiness().status == "ready"
