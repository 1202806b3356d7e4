"""Policies on their way to the core: windows, and what each class passes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.gateway_app import built, scope
from tests.gateway_process import bearer

from flx_api.config import load
from flx_api.errors import StartupError
from flx_api.limits.policies import RouteClass, windows
from flx_api.models.rate_limit import RateLimit, Window

ROUTES = [RouteClass("/v1/execute", late=True), RouteClass("/v1/commands/{name}"), RouteClass("/runs", "pipeline.run")]
NAMED = {"/v1/commands/{name}"}
COMMANDS = ["pipeline.run", "pipeline.list"]


def test_a_policy_is_one_native_policy_for_each_window() -> None:
    policy = RateLimit("few", "ip", windows=(Window(2, "1s"), Window(9, "1d")), costs={"*.run": 2})
    made = windows([policy, RateLimit("look", "tenant", 1, "1m", shadow=True)], ROUTES, NAMED, COMMANDS)
    assert [
        ("few", "ip", 2, 1000, 2, False),
        ("few-1d", "ip", 9, 86_400_000, 2, False),
        ("look", "tenant", 1, 60_000, 1, True),
    ] == made.policies


def test_classes_pass_what_concerns_them_and_late_commands_the_rest() -> None:
    made = windows(
        [
            RateLimit("all", "ip", 10, "1s"),
            RateLimit("runs", "subject", 10, "1s", commands=("pipeline.run",), cost=3),
            RateLimit("dear", "subject", 10, "1s", costs={"pipeline.*": 5}),
            RateLimit("route", "ip", 10, "1s", routes=("/runs",)),
        ],
        ROUTES,
        NAMED,
        COMMANDS,
    )
    assert [(0, 1)] == made.classes[0]
    assert [(0, 1), (2, 1)] == made.classes[1]
    assert [(0, 1), (1, 3), (2, 5), (3, 1)] == made.classes[2]
    at_once, later = made.commands["pipeline.run"]
    assert ([(0, 1), (1, 3), (2, 5)], [(1, 3), (2, 5)]) == (made.classes[at_once], made.classes[later])
    at_once, later = made.commands["pipeline.list"]
    assert ([(0, 1), (2, 5)], [(2, 5)]) == (made.classes[at_once], made.classes[later])


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"routes": ["/nowhere"]}, "[0].routes: no route"),
        ({"commands": ["pipeline.rum"]}, "[0].commands: no command"),
        ({"costs": {"x.*": 2}}, "[0].costs: no command"),
    ],
)
def test_what_does_not_exist_is_told_at_the_start(policy: dict[str, Any], words: str) -> None:
    with pytest.raises(StartupError, match="FLX_RATE_LIMITS") as caught:
        built(rate_limits=[{"name": "a", "by": "ip", "limit": 9, "window": "1s", **policy}])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"limit": 1}, "limit and window"),
        ({"window": "1s"}, "limit and window"),
        ({}, "limit and window"),
        ({"limit": 1, "window": "1s", "windows": [{"limit": 1, "window": "1s"}]}, "limit and window"),
        ({"limit": 1, "window": "1 s"}, "a duration is"),
        ({"limit": 1, "window": "1s", "cost": 2}, "cost"),
        ({"limit": 1, "window": "1s", "costs": {"*": 2}}, "cost"),
        ({"limit": 1, "window": "1s", "quota": 2}, "unknown field quota"),
        (
            {"windows": [{"limit": 1, "window": "1s"}, {"limit": 1, "window": "1s"}, {"limit": 1, "window": "1s"}]},
            "same",
        ),
    ],
)
def test_policies_that_say_too_little_or_too_much_are_refused(policy: dict[str, Any], words: str) -> None:
    with pytest.raises(StartupError, match="FLX_RATE_LIMITS") as caught:
        load({}, {"rate_limits": [{"name": "a", "by": "ip", **policy}]})
    assert words in str(caught.value)


def test_the_core_takes_them() -> None:
    parts = built(rate_limits=[{"name": "few", "by": "subject", "limit": 2, "window": "60s", "routes": ["/v1/auth/*"]}])
    request = scope(path="/v1/auth/whoami", headers=bearer())
    seen = [parts.admission.admit(request, now_ns=number) for number in range(3)]
    assert [False, False, True] == [isinstance(one, tuple) for one in seen]
    assert not isinstance(parts.admission.admit(scope(path="/v1/pipelines", headers=bearer()), now_ns=3), tuple)
