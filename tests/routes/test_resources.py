"""Resources: arguments from everywhere, answers as promised; the whole way is in e2e/test_gateway.py."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.gateway_app import Running, running
from tests.gateway_process import bearer
from tests.small_daemon import planned

from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame


async def ask(gateway: Running, method: str, url: str, result: bytes, **options: object) -> tuple[int, dict[str, str]]:
    for command in ("pipeline.get", "pipeline.delete", "execution.cancel", "execution.wait", "execution.list"):
        gateway.daemon.answers[command] = lambda _: ReplyFrame(result=result)
    headers = {**bearer(), **options}
    answer = await gateway.client.request(method, url, headers=headers)  # type: ignore[arg-type]
    return answer.status_code, dict(answer.headers)


@pytest.mark.parametrize(
    ("method", "url", "result", "status"),
    [
        ("DELETE", "/v1/executions/x", b'{"id":"x","status":"cancelling"}', 202),
        ("DELETE", "/v1/executions/x", b'{"id":"x","status":"succeeded"}', 200),
        ("GET", "/v1/executions/x/wait", b'{"id":"x","status":"failed"}', 200),
        ("GET", "/v1/executions/x/wait", b'{"id":"x","status":"queued"}', 202),
        ("GET", "/v1/pipelines/x/executions?limit=5", b'{"items":[]}', 200),
        ("GET", "/v1/executions?limit=501", b"{}", 422),
        ("GET", "/v1/executions?limit=five", b"{}", 422),
        ("GET", "/v1/pipelines/x/executions?pipeline=y", b"{}", 422),
    ],
)
def test_answers(method: str, url: str, result: bytes, status: int) -> None:
    async def story() -> None:
        async with running() as gateway:
            got, headers = await ask(gateway, method, url, result)
            assert got == status
            if status == 202 and method == "GET":
                assert headers["location"] == "/v1/executions/x"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("method", "url", "command"),
    [
        ("POST", "/v1/pipelines", "pipeline.create"),
        ("POST", "/v1/pipelines/x/run", "pipeline.run"),
        ("DELETE", "/v1/pipelines/x", "pipeline.delete"),
        ("DELETE", "/v1/executions/x", "execution.cancel"),
        ("GET", "/v1/executions/x/wait", "execution.wait"),
        ("GET", "/v1/pipelines/x", "pipeline.get"),
    ],
)
def test_a_dry_run_is_answered_with_its_plan(method: str, url: str, command: str) -> None:
    async def story() -> None:
        async with running() as gateway:
            gateway.daemon.answers[command] = planned
            body = {"json": {"name": "x"}} if command == "pipeline.create" else {}
            answer = await gateway.client.request(method, f"{url}?dry_run=true", headers=bearer(), **body)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["command"]) == (200, command)
            assert [limit["cost"] for limit in answer.json()["limits"]] == [1, 1]
            assert not {"location", "etag"} & set(answer.headers)

    asyncio.run(story())


def test_a_revision_guards_changes() -> None:
    async def story() -> None:
        async with running() as gateway:
            pipeline = b'{"id":"p","revision":2}'
            assert (await ask(gateway, "GET", "/v1/pipelines/p", pipeline))[1]["etag"] == '"2"'
            for given, expected in (('"2"', 2), ("*", None), ("2", 412), (f'"{"1" * 5000}"', 412)):
                got, _ = await ask(gateway, "DELETE", "/v1/pipelines/p", pipeline, **{"if-match": given})
                assert got == (412 if expected == 412 else 200), given
                # One command, which the daemon judges with what it does: nothing can come in between.
                args = {"id": "p"} if expected is None else {"id": "p", "revision": expected}
                assert expected == 412 or msgspec.json.decode(gateway.daemon.commands()[-1].args) == args
            assert [sent.command for sent in gateway.daemon.commands()].count("pipeline.get") == 1
            both = await ask(gateway, "DELETE", "/v1/pipelines/p?revision=3", pipeline, **{"if-match": '"2"'})
            assert both[0] == 422
            await gateway.client.put("/v1/pipelines/p", headers={**bearer(), "if-match": '"7"'}, json={"tags": []})
            assert msgspec.json.decode(gateway.daemon.commands()[-1].args) == {"tags": [], "id": "p", "revision": 7}

    asyncio.run(story())
