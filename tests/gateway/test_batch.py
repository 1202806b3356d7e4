"""Batches in this process: each operation decided about and answered by itself, all of them carried together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.gateway_app import running, scope
from tests.gateway_process import bearer
from tests.small_daemon import planned, stop

from flx_api.errors import Conflict, FlxError, ValidationFailed
from flx_api.gateway import batch
from flx_api.models.rate_limit import RateLimit
from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import httpx
    from tests.gateway_app import Running

    from flx_api.gateway.exchange import Message
    from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame

URL = "/v1/batch"
LINES = {"accept": "application/x-ndjson"}


def run(story: Callable[[Running], Awaitable[None]], **settings: Any) -> None:
    async def told() -> None:
        async with asyncio.timeout(30), running(**settings) as gateway:
            await story(gateway)

    asyncio.run(told())


def echo(number: int, **options: Any) -> dict[str, Any]:
    return {"command": "system.echo", "args": {"n": number}, **options}


async def post(gateway: Running, *operations: dict[str, Any], roles: tuple[str, ...] = ("admin",), **more: Any) -> Any:
    """The answer of a batch that was carried out."""
    answer = await gateway.client.post(URL, headers=bearer(roles=roles), json={"operations": operations, **more})
    assert (200, "application/json") == (answer.status_code, answer.headers["content-type"]), answer.text
    return answer.json()


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in answer.content.splitlines()]


def codes(reply: dict[str, Any]) -> list[str]:
    """How each operation went: its error's code, or its status."""
    return [result.get("error", {}).get("code") or result["status"] for result in reply["results"]]


def test_results_come_in_the_order_of_the_operations_and_frames_as_one_group() -> None:
    async def story(gateway: Running) -> None:
        gateway.daemon.batch_sizes.clear()
        reply = await post(gateway, *(echo(number) for number in range(100)))
        assert list(range(100)) == [result["result"]["n"] for result in reply["results"]]
        assert list(range(100)) == [result["index"] for result in reply["results"]]
        assert {"operations": 100, "ok": 100, "accepted": 0, "error": 0, "not_attempted": 0} == reply["totals"]
        assert 100 in gateway.daemon.batch_sizes
        first, request_id = reply["results"][0], reply["meta"]["request_id"]
        assert (f"{request_id}.0", "system.echo", "ok") == (first["id"], first["command"], first["status"])
        assert request_id == first["meta"]["request_id"]
        assert {request_id} == {frame.request_id for frame in gateway.daemon.commands()}
        assert 100 == gateway.parts.metrics.operations["system.echo", "ok"]

    run(story, load_shedding="off")


def test_a_batch_of_the_largest_size_leaves_room_for_others() -> None:
    async def story(gateway: Running) -> None:
        held: list[CommandFrame] = []

        def hold(frame: CommandFrame) -> ReplyFrame | None:
            held.append(frame)
            return None if len(held) <= 128 else ReplyFrame(result=frame.args)

        gateway.daemon.answers["plugin.list"] = hold
        operations = [{"command": "plugin.list", "deadline_ms": 600} for _ in range(1000)]
        whole = asyncio.create_task(post(gateway, *operations))
        while len(held) < 128:  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        assert 200 == (await gateway.client.get("/v1/pipelines", headers=bearer())).status_code
        assert 128 == len(held)
        reply = await whole
        assert {"deadline_exceeded": 128, "ok": 872} == {code: codes(reply).count(code) for code in set(codes(reply))}
        assert 0 == gateway.parts.upstream.in_flight
        assert (128, 240) == (gateway.parts.upstream._grouped._value, gateway.parts.upstream._credits._value)

    run(story, load_shedding="off")


def test_what_sheds_load_makes_a_batch_wait_and_not_fail() -> None:
    async def story(gateway: Running) -> None:
        reply = await post(gateway, *(echo(number) for number in range(1000)))
        assert 1000 == reply["totals"]["ok"]
        held: list[CommandFrame] = []
        gateway.daemon.answers["plugin.list"] = held.append
        operations = [{"command": "plugin.list", "deadline_ms": 600} for _ in range(300)]
        whole = asyncio.create_task(post(gateway, *operations))
        while not held:  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        # There is room beside it, and its own operations are not refused either.
        assert 200 == (await gateway.client.get("/v1/pipelines", headers=bearer())).status_code
        assert {"deadline_exceeded"} == set(codes(await whole)[:20])

    run(story)


def test_each_operation_is_decided_about_by_itself() -> None:
    async def story(gateway: Running) -> None:
        gateway.daemon.answers["pipeline.get"] = lambda _: ValidationFailed.field("args.id", "is required")
        gateway.daemon.answers["execution.get"] = lambda _: Conflict(code="already_running", retry_after_s=2.5)
        gateway.daemon.answers["pipeline.run"] = lambda _: ReplyFrame(result=b'{"id":"x1"}', accepted_id="x1")
        gateway.daemon.answers["pipeline.list"] = lambda _: ReplyFrame(result=b"[1]", replayed=True)
        reply = await post(
            gateway,
            echo(0),
            {"command": "pipeline.rum"},
            {"command": "token.revoke"},
            {"command": "pipeline.get"},
            {"command": "execution.get"},
            {"command": "pipeline.run", "args": {"id": "p"}, "idempotency_key": "k", "wait_ms": 7},
            {"command": "pipeline.list", "environment": "prod"},
            roles=("operator",),
        )
        expected = ["ok", "unknown_command", "forbidden", "validation_failed", "already_running", "accepted", "ok"]
        assert expected == codes(reply)
        assert {"operations": 7, "ok": 2, "accepted": 1, "error": 4, "not_attempted": 0} == reply["totals"]
        _, unknown, _, invalid, conflict, accepted, replayed = reply["results"]
        assert "pipeline.run" in unknown["error"]["suggestions"]
        assert ("", False) == (unknown["command"], "pipeline.rum" in str(reply))
        assert [{"field": "args.id", "reason": "is required"}] == invalid["error"]["errors"]
        assert (409, True, 3) == tuple(conflict["error"][name] for name in ("status", "retryable", "retry_after"))
        assert "result" not in conflict
        assert ("x1", {"id": "x1"}) == (accepted["id"], accepted["result"])
        assert "error" not in accepted
        assert (True, [1]) == (replayed["meta"]["replayed"], replayed["result"])
        sent = {frame.command: frame for frame in gateway.daemon.commands()}
        assert {"system.echo", "pipeline.get", "execution.get", "pipeline.run", "pipeline.list"} == set(sent)
        of = sent["pipeline.run"]
        assert ("k", 7, False, "operator") == (of.idempotency_key, of.wait_ms, of.dry_run, of.principal.roles[0])
        assert "prod" == sent["pipeline.list"].environment
        assert 1 == gateway.parts.metrics.refusals["unknown_command"]
        assert 1 == gateway.parts.metrics.operations["unmatched", "error"]

    run(story)


def test_each_operation_pays_what_its_command_costs() -> None:
    async def story(gateway: Running) -> None:
        reply = await post(gateway, echo(1), {"command": "plugin.list"}, echo(2), echo(3), {"command": "plugin.list"})
        assert ["ok", "ok", "ok", "rate_limited", "ok"] == codes(reply)
        refused = reply["results"][3]["error"]
        assert ("The policy few allows 2 in 60 s", True) == (refused["detail"], refused["retry_after"] > 0)
        alone = await gateway.client.post("/v1/execute", headers=bearer(), json=echo(4))
        assert 429 == alone.status_code
        reply = await post(gateway, echo(5), {"command": "plugin.list"}, mode="ordered", fail_fast=True)
        assert ["rate_limited", "not_attempted"] == codes(reply)

    run(story, rate_limits=[{"name": "few", "by": "subject", "limit": 2, "window": "60s", "commands": ["system.*"]}])


@pytest.mark.parametrize("whole", [True, False])
def test_a_dry_run_gives_a_plan_of_each_operation(*, whole: bool) -> None:
    async def story(gateway: Running) -> None:
        for name in ("plugin.list", "pipeline.run", "token.revoke"):
            gateway.daemon.answers[name] = planned
        options: dict[str, Any] = {} if whole else {"dry_run": True}
        names = ["plugin.list", "pipeline.run", "token.revoke", "system.echo", "pipeline.rum"]
        asked = [{"command": name, **options} for name in names]
        more = {"dry_run": True} if whole else {}
        reply = await post(gateway, *asked, roles=("operator",), fail_fast=False, **more)
        # The echo of a small daemon is no plan.
        assert ["ok", "ok", "ok", "internal", "unknown_command"] == codes(reply)
        assert {"operations": 5, "ok": 3, "accepted": 0, "error": 2, "not_attempted": 0} == reply["totals"]
        assert all(frame.dry_run for frame in gateway.daemon.commands())
        listed, started, revoked, *_ = (result.get("result") for result in reply["results"])
        assert all(result["meta"]["dry_run"] for result in reply["results"][:3])
        assert ("ok", []) == (listed["outcome"], listed["limits"])
        few = {"policy": "few", "by": "subject", "cost": 2, "limit": 2, "window_ms": 60_000, "shadow": False}
        assert [few] == started["limits"]
        assert (False, "refused") == (revoked["permission"]["allowed"], revoked["outcome"])
        # What a dry run costs is not what the command costs.
        again = await post(gateway, *asked[:3], roles=("operator",), **more)
        assert ["ok", "ok", "ok"] == codes(again)

    few = RateLimit("few", "subject", 2, "60s", commands=("pipeline.run",), cost=2)
    run(story, rate_limits=(few,))


def test_an_ordered_batch_goes_one_by_one() -> None:
    async def story(gateway: Running) -> None:
        gateway.daemon.batch_sizes.clear()
        gateway.daemon.answers["pipeline.get"] = lambda _: Conflict()
        operations = [echo(0), {"command": "pipeline.get"}, {"command": "no.such"}, echo(1)]
        reply = await post(gateway, *operations, mode="ordered")
        assert ["ok", "conflict", "unknown_command", "ok"] == codes(reply)
        assert 1 == max(gateway.daemon.batch_sizes)
        assert ["system.echo", "pipeline.get", "system.echo"] == [one.command for one in gateway.daemon.commands()]

    run(story)


@pytest.mark.parametrize("bad", ["pipeline.get", "no.such", "token.revoke"])
@pytest.mark.parametrize("mode", ["ordered", "parallel"])
def test_after_the_first_failure_nothing_is_begun_when_asked_so(mode: str, bad: str) -> None:
    async def story(gateway: Running) -> None:
        gateway.daemon.answers["pipeline.get"] = lambda _: Conflict()
        many = [echo(number) for number in range(200)]
        reply = await post(gateway, echo(0), {"command": bad}, *many, roles=("viewer",), mode=mode, fail_fast=True)
        found = codes(reply)
        assert "ok" == found[0]
        assert found[1] not in {"ok", "not_attempted"}
        sent = len(gateway.daemon.commands())
        # Of a parallel batch the first group is on its way when the daemon's answer comes.
        begun = 128 if (mode, bad) == ("parallel", "pipeline.get") else 1 + (bad == "pipeline.get")
        assert begun == sent
        left = 202 - max(begun, 2)
        assert ["not_attempted"] * left == found[-left:]
        assert {"ok": found.count("ok"), "error": left + 1, "not_attempted": left} == {
            name: reply["totals"][name] for name in ("ok", "error", "not_attempted")
        }
        assert (424, True) == tuple(reply["results"][-1]["error"][name] for name in ("status", "retryable"))

    run(story, load_shedding="off")


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"", 400, "invalid_json", None),
        (b"{", 400, "invalid_json", None),
        (b'{"operations":[{"command":"a","command":"b"}]}', 400, "invalid_json", None),
        (b'{"operations":' + b"[" * 70 + b"]" * 70 + b"}", 400, "json_too_deep", None),
        (b"[]", 422, "validation_failed", ""),
        (b"{}", 422, "validation_failed", ""),
        (b'{"operations":[]}', 422, "validation_failed", "operations"),
        (b'{"operations":[%s]}' % b",".join([b'{"command":"a"}'] * 1001), 422, "validation_failed", "operations"),
        (b'{"operations":[{"command":"system.echo"}],"mode":"both"}', 422, "validation_failed", "mode"),
        (b'{"operations":[{"command":"system.echo"}],"atomic":true}', 422, "validation_failed", ""),
        (b'{"operations":[{"command":"system.echo"},{}]}', 422, "validation_failed", "operations[1]"),
        (b'{"operations":[{"command":"a"},{"command":7}]}', 422, "validation_failed", "operations[1].command"),
        (b'{"operations":[{"command":"system.echo","wait_ms":-1}]}', 422, "validation_failed", "operations[0].wait_ms"),
        (b'{"operations":[{"command":"system.echo"},{"command":"system.echo","args":[]}]}', 422, "validation_failed",
         "operations[1].args"),
        (b'{"operations":[{"command":"system.echo","args":null}]}', 422, "validation_failed", "operations[0].args"),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused_as_a_whole(body: bytes, status: int, code: str, field: str | None) -> None:
    async def story(gateway: Running) -> None:
        headers = {**bearer(), "content-type": "application/json"}
        answer = await gateway.client.post(URL, headers=headers, content=body)
        assert (status, code) == (answer.status_code, answer.json()["code"])
        assert "application/problem+json" == answer.headers["content-type"]
        assert ([] if field is None else [field]) == [one["field"] for one in answer.json().get("errors", [])]
        assert [] == gateway.daemon.commands()

    run(story)


def test_options_of_a_single_command_are_not_those_of_a_batch() -> None:
    async def story(gateway: Running) -> None:
        body = {"operations": [echo(1)]}
        asked = await gateway.client.post(f"{URL}?dry_run=true", headers=bearer(), json=body)
        assert 422 == asked.status_code
        keyed = await gateway.client.post(URL, headers={**bearer(), "idempotency-key": "k"}, json=body)
        assert (400, "invalid_request") == (keyed.status_code, keyed.json()["code"])
        assert [] == gateway.daemon.commands()

    run(story)


def test_lines_come_as_they_are_ready_and_end_with_the_totals() -> None:
    async def story(gateway: Running) -> None:
        gateway.daemon.answers["plugin.list"] = lambda _: None
        operations = [{"command": "plugin.list", "deadline_ms": 50}, {"command": "no.such"}, echo(2)]
        body = {"operations": operations}
        answer = await gateway.client.post(URL, headers={**bearer(), **LINES}, json=body)
        assert (200, "application/x-ndjson") == (answer.status_code, answer.headers["content-type"])
        assert "Accept" == answer.headers["vary"]
        *results, end = lines(answer)
        assert [1, 2, 0] == [result["index"] for result in results]
        assert ["unknown_command", "ok", "deadline_exceeded"] == codes({"results": results})
        assert {"totals", "meta"} == set(end)
        assert {"operations": 3, "ok": 1, "accepted": 0, "error": 2, "not_attempted": 0} == end["totals"]

    run(story)


def request(*operations: dict[str, Any], streamed: bool, mode: str = "parallel") -> tuple[dict[str, Any], bytes]:
    """The scope and the body of a request without a server."""
    body = msgspec.json.encode({"operations": operations, "mode": mode})
    headers = {**bearer(), **(LINES if streamed else {}), "content-type": "application/json"}
    return scope("POST", URL, {**headers, "content-length": str(len(body))}), body


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("mode", "begun"), [("ordered", 1), ("parallel", 2)])
def test_who_leaves_ends_the_whole_batch(mode: str, begun: int, *, streamed: bool) -> None:
    async def story(gateway: Running) -> None:
        gateway.daemon.answers["plugin.list"] = lambda _: None
        one = {"command": "plugin.list"}
        head, body = request(one, one, streamed=streamed, mode=mode)
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await gateway.app(head, receive, send)
        assert begun == len(gateway.daemon.commands())
        assert all(message.get("more_body", True) for message in sent)
        assert {(URL, "POST", "4xx"): 1} == gateway.parts.metrics.requests
        assert begun == len(gateway.parts.upstream._abandoned) + gateway.parts.upstream.express.abandoned

    run(story)


def test_a_reader_that_breaks_off_is_one_that_left() -> None:
    async def story(gateway: Running) -> None:
        head, body = request(echo(1), echo(2), streamed=True, mode="ordered")

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message.get("body"):
                raise OSError

        await gateway.app(head, receive, send)
        assert 1 == len(gateway.daemon.commands())
        assert {(URL, "POST", "4xx"): 1} == gateway.parts.metrics.requests

    run(story)


def test_a_lost_daemon_is_told_for_each_operation() -> None:
    async def story(gateway: Running) -> None:
        gateway.daemon.answers["plugin.list"] = gateway.daemon.answers["pipeline.create"] = lambda _: None
        operations = [{"command": "plugin.list"}, {"command": "pipeline.create"}, echo(1)]
        whole = asyncio.create_task(post(gateway, *operations))
        while len(gateway.daemon.commands()) < 3:  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        await stop(gateway.server)
        assert ["upstream_unavailable", "upstream_unavailable", "ok"] == codes(await whole)
        before = asyncio.get_running_loop().time()
        reply = await post(gateway, *(echo(number) for number in range(1000)), mode="ordered")
        assert {"upstream_unavailable"} == set(codes(reply))
        assert {1} == {result["error"]["retry_after"] for result in reply["results"]}
        # One patience for all of them.
        assert asyncio.get_running_loop().time() - before < 5

    run(story)


def test_unknown_names_are_compared_only_so_often() -> None:
    async def story(gateway: Running) -> None:
        names = [f"pipeline.ru{number}" for number in range(999)]
        reply = await post(gateway, *({"command": name} for name in [*names, names[0]]))
        told = [bool(result["error"].get("suggestions")) for result in reply["results"]]
        assert [True] * batch.SUGGESTED + [False] * (999 - batch.SUGGESTED) + [True] == told

    run(story)


def test_results_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "HELD_BYTES", 1000)

    async def story(gateway: Running) -> None:
        gateway.daemon.answers["plugin.list"] = lambda _: ReplyFrame(result=b'"%s"' % (b"x" * 400))
        operations = [{"command": "plugin.list"} for _ in range(5)]
        reply = await post(gateway, *operations, mode="ordered")
        assert ["ok", "ok", "ok", "not_attempted", "not_attempted"] == codes(reply)
        assert "x-ndjson" in reply["results"][4]["error"]["detail"]
        body = {"operations": operations, "mode": "ordered"}
        answer = await gateway.client.post(URL, headers={**bearer(), **LINES}, json=body)
        assert 5 == lines(answer)[-1]["totals"]["ok"]

    run(story)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (b"", False),
        (b"*/*", False),
        (b"application/x-ndjson", True),
        (b"text/html, Application/X-NDJSON;q=0.9", True),
        (b"application/x-ndjson2", False),
    ],
)
def test_lines_are_for_those_who_ask_for_them(accept: bytes, *, expected: bool) -> None:
    assert expected is batch._wants_lines(accept)


def test_a_daemons_error_without_words_is_still_a_whole_problem() -> None:
    async def story(gateway: Running) -> None:
        gateway.daemon.answers["plugin.list"] = lambda _: FlxError(code="storage_unavailable")
        reply = await post(gateway, {"command": "plugin.list"})
        error = reply["results"][0]["error"]
        assert (503, 1) == (error["status"], error["retry_after"])
        assert {"type", "title", "detail", "request_id"} <= set(error)

    run(story)
