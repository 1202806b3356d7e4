"""The universal endpoint in this process."""

from __future__ import annotations

import asyncio

from tests.gateway_app import running
from tests.gateway_process import bearer

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


def test_an_unknown_command_gets_suggestions() -> None:
    async def story() -> None:
        async with running() as gateway:
            answer = await gateway.client.post("/v1/execute", headers=bearer(), json={"command": "pipeline.rum"})
            assert answer.status_code == 404
            assert "pipeline.run" in answer.json()["suggestions"]
            assert "pipeline.rum" not in answer.text

    asyncio.run(story())
