"""From a command to its reply."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.gateway_app import Wire, built, exchange, running, scope
from tests.gateway_process import bearer

from flx_api._core import Principal
from flx_api.commands import COMMANDS
from flx_api.commands.permissions import decide
from flx_api.errors import Conflict, ErrorBody, FlxError, Forbidden, Internal
from flx_api.gateway.dispatch import Dispatcher
from flx_api.gateway.intake import ClientGone
from flx_api.models.connection import ConnectionPage
from flx_api.models.envelope import MADE_KEY, CommandOptions
from flx_api.models.plan import Plan
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, ReplyFrame

PLAN = ReplyFrame(
    result=msgspec.json.encode(
        Plan(command="pipeline.run", outcome="refused", permission=decide(COMMANDS["pipeline.run"], ("viewer",)))
    )
)


class Answering:
    """An upstream that gives one answer, or none for ever."""

    def __init__(self, reply: ReplyFrame | None) -> None:
        self.reply = reply
        self.calls: list[tuple[CommandFrame, float, bool]] = []

    async def call(self, frame: CommandFrame, deadline_s: float, *, read: bool) -> ReplyFrame:
        self.calls.append((frame, deadline_s, read))
        if self.reply is None:
            await asyncio.Event().wait()
        assert self.reply is not None
        return self.reply


def run(
    upstream: Any,
    command: str,
    args: bytes = b"{}",
    roles: tuple[str, ...] = ("admin",),
    own: Any = None,
    **options: Any,
) -> ReplyFrame:
    async def story() -> ReplyFrame:
        parts = built()
        seen = exchange(Wire(), scope(headers={"traceparent": "t", "x-request-id": "r"}), parts)
        seen.principal = Principal(subject="anna", tenant="t1", roles=roles)
        return await Dispatcher(upstream, 30_000, parts.dispatcher.costs, parts.metrics, own=own).run(
            seen, COMMANDS[command], args, CommandOptions(**options)
        )

    return asyncio.run(story())


def test_a_frame_says_who_what_and_until_when() -> None:
    upstream = Answering(ReplyFrame(result=b"1"))
    run(upstream, "pipeline.run", b'{"id":"p"}', idempotency_key="k", environment="prod", wait_ms=7)
    frame, deadline_s, read = upstream.calls[0]
    assert (frame.principal.subject, frame.principal.tenant, list(frame.principal.roles)) == ("anna", "t1", ["admin"])
    assert (frame.args, frame.idempotency_key, frame.environment, frame.wait_ms) == (b'{"id":"p"}', "k", "prod", 7)
    assert (frame.dry_run, frame.traceparent, frame.request_id) == (False, "t", "r")
    assert (deadline_s, read) == (30.0, False)


def test_a_command_has_the_time_of_the_setting_and_one_that_waits_has_more() -> None:
    upstream = Answering(ReplyFrame(result=b"1"))

    async def story() -> None:
        parts = built()
        dispatcher = Dispatcher(upstream, 1_000, parts.dispatcher.costs, parts.metrics)  # type: ignore[arg-type]
        for command, args, options in (
            ("system.echo", b"{}", CommandOptions()),
            ("system.echo", b"{}", CommandOptions(deadline_ms=70)),
            ("pipeline.run", b"{}", CommandOptions(wait_ms=2_000)),
            ("execution.wait", b'{"timeout_ms":3000}', CommandOptions()),
        ):
            seen = exchange(Wire(), scope(), parts)
            seen.principal = Principal(subject="anna", roles=("admin",))
            await dispatcher.run(seen, COMMANDS[command], args, options)

    asyncio.run(story())
    assert [1.0, 0.07, 7.0, 8.0] == [deadline_s for _, deadline_s, _ in upstream.calls]


def test_what_changes_something_travels_with_a_key_of_its_own() -> None:
    upstream = Answering(ReplyFrame(result=b"1"))
    for command in ("pipeline.run", "pipeline.run", "pipeline.delete", "pipeline.list", "auth.login"):
        run(upstream, command)
    upstream.reply = PLAN
    run(upstream, "pipeline.run", dry_run=True)
    keys = [frame.idempotency_key for frame, *_ in upstream.calls]
    assert all(key.startswith(MADE_KEY) and len(key) <= 255 for key in keys[:3])
    assert len(set(keys[:3])) == 3
    assert keys[3:] == ["", "", ""]


@pytest.mark.parametrize(
    ("command", "args", "options", "deadline_s"),
    [
        ("system.echo", b"{}", {"deadline_ms": 50}, 0.05),
        ("execution.wait", b'{"id":"x","timeout_ms":60000}', {}, 65.0),
        ("execution.wait", b"not even", {}, 30.0),
        ("pipeline.run", b"{}", {"wait_ms": 60_000}, 65.0),
    ],
)
def test_the_deadline_allows_for_waiting(command: str, args: bytes, options: dict[str, Any], deadline_s: float) -> None:
    upstream = Answering(ReplyFrame())
    run(upstream, command, args, **options)
    assert upstream.calls[0][1] == deadline_s


def test_what_is_not_permitted_does_not_travel() -> None:
    upstream = Answering(ReplyFrame())
    with pytest.raises(Forbidden):
        run(upstream, "pipeline.run", roles=("viewer",))
    assert upstream.calls == []


def test_a_dry_run_travels_whoever_asks_and_is_a_read() -> None:
    upstream = Answering(PLAN)
    reply = run(upstream, "pipeline.run", roles=("viewer",), dry_run=True)
    frame, _, read = upstream.calls[0]
    assert (frame.dry_run, read) == (True, True)
    told = msgspec.json.decode(reply.result, type=Plan)
    assert (told.outcome, [limit.policy for limit in told.limits]) == ("refused", ["per-client", "per-subject"])
    with pytest.raises(Internal):
        run(Answering(ReplyFrame(result=b"{}")), "pipeline.run", dry_run=True)


@pytest.mark.parametrize(
    ("roles", "args", "outcome", "codes"),
    [
        (("admin",), b"{}", "ok", []),
        (("viewer",), b"{}", "refused", ["forbidden"]),
        (("admin",), b'{"limit": 0}', "refused", ["validation_failed"]),
        (("viewer",), b'{"limit": 0}', "refused", ["forbidden"]),
    ],
)
def test_what_a_gateway_answers_by_itself_it_plans_by_itself(
    roles: tuple[str, ...], args: bytes, outcome: str, codes: list[str]
) -> None:
    upstream, asked = Answering(None), []

    async def listed(principal: Principal | None, found: Any) -> msgspec.Struct:
        asked.append((principal, found))
        return ConnectionPage((), None, whole=True, silent=())

    reply = run(upstream, "connection.list", args, roles, own={"connection.list": listed}, dry_run=True)
    told = msgspec.json.decode(reply.result, type=Plan)
    assert (outcome, codes) == (told.outcome, [error.code for error in told.errors])
    assert (roles == ("admin",), ["per-client", "per-subject"]) == (
        told.permission.allowed,
        [limit.policy for limit in told.limits],
    )
    assert upstream.calls == []
    assert len(asked) == (outcome == "ok")


def test_the_daemons_errors_are_raised() -> None:
    body = msgspec.json.encode(ErrorBody("already_running", "It runs"))
    with pytest.raises(Conflict, match="It runs"):
        run(Answering(ReplyFrame(code="already_running", problem=body)), "system.echo")
    with pytest.raises(FlxError):
        run(Answering(ReplyFrame(code="not_found")), "system.echo")


def test_a_client_that_leaves_is_noticed() -> None:
    with pytest.raises(ClientGone):
        run(Answering(None), "system.echo")


@pytest.mark.parametrize(
    ("command", "options", "sent"),
    [
        ("pipeline.list", {}, 5),
        # Plans, what waits by nature and what changes something are for each by itself.
        ("pipeline.list", {"dry_run": True}, 24),
        ("execution.wait", {}, 24),
        ("system.echo", {}, 24),
        ("pipeline.run", {}, 24),
    ],
)
def test_reads_that_are_the_same_share_commands(command: str, options: dict[str, Any], sent: int) -> None:
    async def story() -> None:
        async with asyncio.timeout(30), running() as gateway:
            gateway.daemon.answers[command] = lambda _frame: ReplyFrame(result=PLAN.result)
            body = {"command": command, "args": {"id": "e"}, **options}
            who = bearer()
            posts = (gateway.client.post("/v1/execute", headers=who, json=body) for _ in range(24))
            answers = await asyncio.gather(*posts)
            assert {200} == {answer.status_code for answer in answers}
            assert 24 == len({answer.json()["meta"]["request_id"] for answer in answers})
            assert sent == len(gateway.daemon.commands())
            told = gateway.parts.metrics.exposition().decode()
            assert f"flx_upstream_shared_total {float(19 if sent == 5 else 0)}" in told

    asyncio.run(story())


def test_nobody_shares_with_another_principal_and_a_batch_with_nobody() -> None:
    async def story() -> None:
        async with asyncio.timeout(30), running() as gateway:
            body = {"command": "pipeline.list", "args": {}}
            people = [bearer(subject=f"client-{number}") for number in range(12)]
            posts = [gateway.client.post("/v1/execute", headers=who, json=body) for who in people]
            batch = {"operations": [body] * 12}
            await asyncio.gather(*posts, gateway.client.post("/v1/batch", headers=people[0], json=batch))
            assert 24 == len(gateway.daemon.commands())

    asyncio.run(story())
