"""What a command would cost is what the core then charges."""

from __future__ import annotations

import re

import msgspec
import pytest
from tests.gateway_app import Wire, built, exchange, scope
from tests.gateway_process import bearer

from flx_api._core import Admitted
from flx_api.commands import COMMANDS
from flx_api.commands.permissions import decide
from flx_api.errors import Internal
from flx_api.gateway.costs import payer
from flx_api.models.plan import LimitCost, Plan
from flx_api.models.rate_limit import RateLimit
from flx_api.routes import table

POLICIES = (
    RateLimit("all", "ip", 100, "1m"),
    RateLimit("runs", "subject", 50, "1h", commands=("pipeline.run",), cost=3, shadow=True),
    RateLimit("dear", "tenant", 70, "1m", costs={"pipeline.*": 5}),
    RateLimit("batches", "ip", 9, "1m", routes=("/v1/batch",)),
    RateLimit("there", "ip", 9, "1m", routes=("/v1/pipelines/*/run",)),
)


@pytest.mark.parametrize(
    ("path", "of_many", "expected"),
    [
        ("/v1/execute", False, {"all": 1, "runs": 3, "dear": 5}),
        ("/v1/batch", True, {"runs": 3, "dear": 5}),
        ("/v1/batch", False, {"all": 1, "runs": 3, "dear": 5, "batches": 1}),
        ("/v1/commands/pipeline.run", False, {"all": 1, "runs": 3, "dear": 5}),
        ("/pipeline.run", False, {"all": 1, "runs": 3, "dear": 5}),
        ("/v1/pipelines/p/run", False, {"all": 1, "runs": 3, "dear": 5, "there": 1}),
    ],
)
def test_a_command_costs_what_its_way_costs(path: str, expected: dict[str, int], *, of_many: bool) -> None:
    parts = built(rate_limits=POLICIES)
    json = {"content-type": "application/json", "content-length": "2"}
    seen = exchange(Wire(), scope("POST", path, {**bearer(), **json}), parts)
    found = parts.dispatcher.costs.of(seen.admitted.route, "pipeline.run", of_many=of_many)
    assert {limit.policy: limit.cost for limit in found} == expected


@pytest.mark.parametrize(
    ("method", "template", "command"),
    [
        *((resource.method, resource.template, resource.command) for resource in table.RESOURCES),
        (table.LOGS.method, table.LOGS.template, "execution.logs"),
    ],
)
def test_a_policy_about_a_command_holds_where_it_is_asked_for_and_nowhere_else(
    method: str, template: str, command: str
) -> None:
    path = re.sub(r"\{\w+\}", "system.echo", template)
    same = {resource.method: resource.command for resource in table.RESOURCES if resource.template == template}
    others = [other for other, its in same.items() if its != command]
    parts = built(rate_limits=(RateLimit("one", "ip", 5, "1m", commands=(command,), cost=5),))

    def is_refused(method: str) -> bool:
        headers = {"content-type": "application/json", "content-length": "0"}
        return isinstance(parts.admission.admit(scope(method, path, {**bearer(), **headers})), tuple)

    seen = parts.admission.admit(scope(method, path, {**bearer(), "content-length": "0"}))
    assert isinstance(seen, Admitted)
    assert [limit.cost for limit in parts.dispatcher.costs.of(seen.route, command)] == [5]
    assert is_refused(method)
    assert not any(is_refused(other) for other in ("OPTIONS", *others))


def test_a_question_costs_what_questions_cost_but_a_try_what_tries_do() -> None:
    asked = {name: payer(command, dry_run=True) for name, command in COMMANDS.items()}
    assert asked.pop("auth.login") == "auth.login"
    assert set(asked.values()) == {"command.describe"}
    assert all(payer(command, dry_run=False) == name for name, command in COMMANDS.items())


def test_a_plan_gets_its_limits_and_nothing_else_is_a_plan() -> None:
    parts = built(rate_limits=POLICIES)
    route = exchange(Wire(), scope("POST", "/v1/execute", {**bearer(), "content-length": "0"}), parts).admitted.route
    plan = Plan(command="system.echo", outcome="ok", permission=decide(COMMANDS["system.echo"], ["viewer"]))
    told = msgspec.json.decode(parts.dispatcher.costs.told(msgspec.json.encode(plan), route, "system.echo"), type=Plan)
    assert told == msgspec.structs.replace(
        plan,
        limits=(
            LimitCost(policy="all", by="ip", cost=1, limit=100, window_ms=60_000, shadow=False),
            LimitCost(policy="dear", by="tenant", cost=1, limit=70, window_ms=60_000, shadow=False),
        ),
    )
    for other in (b"", b"{}", b"[1]", b'{"items":[]}'):
        with pytest.raises(Internal):
            parts.dispatcher.costs.told(other, route, "system.echo")
