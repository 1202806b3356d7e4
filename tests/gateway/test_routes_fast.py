"""The universal endpoint in this process."""

from __future__ import annotations

import asyncio

from tests.gateway_app import running
from tests.gateway_process import bearer
from tests.small_daemon import planned

from flx_api.models.rate_limit import RateLimit
from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame


def test_arguments_and_results_pass_as_they_are() -> None:
    async def story() -> None:
        async with running() as gateway:
            odd = b'{"command":"system.echo","args":{ "a" : 1.50,"b":"\\u00e4" }}'
            headers = {**bearer(), "content-type": "application/json"}
            answer = await gateway.client.post("/v1/execute", headers=headers, content=odd)
            assert b'"result":{ "a" : 1.50,"b":"\\u00e4" }' in answer.content
            assert gateway.daemon.commands()[0].args == b'{ "a" : 1.50,"b":"\\u00e4" }'
            bare = await gateway.client.post("/v1/commands/system.echo", headers=bearer())
            assert bare.json()["result"] == {}

    asyncio.run(story())


def test_a_replay_is_told() -> None:
    async def story() -> None:
        async with running() as gateway:
            gateway.daemon.answers["pipeline.create"] = lambda _: ReplyFrame(result=b"{}", replayed=True)
            answer = await gateway.client.post("/pipeline.create", headers=bearer(), json={})
            assert answer.json()["meta"]["replayed"] is True

    asyncio.run(story())


def test_a_dry_run_is_answered_with_a_plan_whatever_was_asked() -> None:
    async def story() -> None:
        few = RateLimit("few", "subject", 2, "60s", commands=("pipeline.run",), cost=2)
        async with running(rate_limits=(few,)) as gateway:
            gateway.daemon.answers["pipeline.run"] = planned
            body = {"command": "pipeline.run", "args": {"id": "p"}, "dry_run": True}
            for _ in range(3):
                answer = await gateway.client.post("/v1/execute", headers=bearer(), json=body)
                reply = answer.json()
                assert (answer.status_code, reply["status"], reply["meta"]["dry_run"]) == (200, "ok", True)
                assert [limit["cost"] for limit in reply["result"]["limits"]] == [2]
            # Where the path names the command, its limits come first: the third time is too often.
            statuses = [
                (await gateway.client.post("/v1/pipelines/p/run?dry_run=true", headers=bearer())).status_code
                for _ in range(2)
            ]
            assert statuses == [200, 429]

    asyncio.run(story())


def test_an_unknown_command_gets_suggestions() -> None:
    async def story() -> None:
        async with running() as gateway:
            answer = await gateway.client.post("/v1/execute", headers=bearer(), json={"command": "pipeline.rum"})
            assert answer.status_code == 404
            assert "pipeline.run" in answer.json()["suggestions"]
            assert "pipeline.rum" not in answer.text

    asyncio.run(story())
