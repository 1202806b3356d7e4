"""The log stream in this process; streams that last are in e2e/test_gateway.py."""

from __future__ import annotations

import asyncio

from tests.gateway_app import running
from tests.gateway_process import bearer

from flx_api.errors import NotFound
from flx_api.gateway.logs import MAX_STREAMS


def test_lines_come_as_objects_or_as_text() -> None:
    async def story() -> None:
        async with running() as gateway:
            await gateway.daemon.log("x", b"one", b"tw\xff", b"three")
            url = "/v1/executions/x/logs?from=2"
            answer = await gateway.client.get(url, headers=bearer(roles=("viewer",)))
            assert answer.text == '{"line":2,"text":"tw\ufffd"}\n{"line":3,"text":"three"}\n'
            text = await gateway.client.get(url, headers={**bearer(), "accept": "text/plain"})
            assert text.content == b"tw\xff\nthree\n"

    asyncio.run(story())


def test_who_may_not_see_the_execution_sees_no_line() -> None:
    async def story() -> None:
        async with running() as gateway:
            gateway.daemon.answers["execution.get"] = lambda _: NotFound()
            await gateway.daemon.log("x", b"one")
            assert (await gateway.client.get("/v1/executions/x/logs", headers=bearer())).status_code == 404
            assert (await gateway.client.get("/v1/executions/x/logs", headers=bearer(roles=()))).status_code == 403
            assert (await gateway.client.get("/v1/executions/x/logs?to=1", headers=bearer())).status_code == 422

    asyncio.run(story())


def test_readers_of_logs_are_bounded() -> None:
    async def story() -> None:
        async with running() as gateway:
            await gateway.daemon.log("x", b"one")
            assert (await gateway.client.get("/v1/executions/x/logs", headers=bearer())).status_code == 200
            assert gateway.parts.logs._open == 0
            gateway.parts.logs._open = MAX_STREAMS
            answer = await gateway.client.get("/v1/executions/x/logs", headers=bearer())
            assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
            assert answer.headers["retry-after"] == "5"

    asyncio.run(story())
