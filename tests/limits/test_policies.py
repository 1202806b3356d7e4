"""Policies on their way to the core."""

from __future__ import annotations

from tests.gateway_app import settings

from flx_api._core import Admission
from flx_api.auth.keys import key_set
from flx_api.config import RateLimit
from flx_api.limits.policies import native


def test_the_core_takes_them() -> None:
    policies = native(
        [RateLimit("few", "ip", 2, "60s", 1, shadow=False), RateLimit("look", "subject", 1, "1m", shadow=True)]
    )
    assert policies == [("few", "ip", 2, 60_000, 1, False), ("look", "subject", 1, 60_000, 1, True)]
    admission = Admission(key_set(settings()), issuer="flx", audience="flx-api", policies=policies)
    answers = [admission.admit([], "10.0.0.1", False, 0.0, number) for number in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
