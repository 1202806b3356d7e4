"""What a job says about its failed attempts."""

from __future__ import annotations

from typing import Any

import pytest

from flx_api.daemon.project.annotations import retry_of
from flx_api.daemon.project.parse import declare
from flx_api.models.pipeline import RetryPolicy


@pytest.mark.parametrize(
    ("said", "policy"),
    [
        (None, RetryPolicy()),
        ([], RetryPolicy()),
        ("flx", RetryPolicy()),
        ({}, RetryPolicy()),
        ({"other": {"retries": 99}}, RetryPolicy()),
        ({"flx": {"retries": 2}}, RetryPolicy(2)),
        ({"flx": {"retries": 1, "retry_backoff_s": 0, "retry_on": ["timed_out"]}}, RetryPolicy(1, 0, ("timed_out",))),
    ],
)
def test_what_is_said_well(said: Any, policy: RetryPolicy) -> None:
    assert retry_of(said) == (policy, None)


@pytest.mark.parametrize(
    ("own", "place"),
    [
        ({"retries": 11}, "annotations.flx.retries: expected"),
        ({"retries": "2"}, "annotations.flx.retries: expected"),
        ({"retry_on": ["cancelled"]}, "annotations.flx.retry_on[0]: invalid"),
        ({"retry": 1}, "annotations.flx: object contains unknown field"),
        ([], "annotations.flx: expected"),
        (1, "annotations.flx: expected"),
    ],
)
def test_what_is_not_is_the_jobs_own_problem(own: Any, place: str) -> None:
    jobs = [{"name": "j", "tasks": ["a b"], "annotations": {"flx": own}}, {"name": "k", "tasks": ["a b"]}]
    wrong, right = declare({"jobs": jobs}).jobs
    assert wrong.problem is not None
    assert wrong.problem.startswith(place)
    assert (wrong.retry, right.problem) == (RetryPolicy(), None)
