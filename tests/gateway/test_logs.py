"""The log stream in this process; streams that last are in e2e/test_gateway.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from tests.gateway_app import running, scope
from tests.gateway_process import bearer
from tests.small_daemon import stop

from flx_api.errors import NotFound
from flx_api.gateway.logs import MAX_STREAMS

if TYPE_CHECKING:
    from flx_api.gateway.exchange import Message


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


def test_a_stream_that_breaks_has_no_end_and_leaves_no_trace() -> None:
    async def story() -> None:
        async with running() as gateway:
            await gateway.daemon.log("x", b"one")
            gone, begun = asyncio.Event(), asyncio.Event()
            sent: list[Message] = []

            async def receive() -> Message:
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: Message) -> None:
                sent.append(message)
                if message.get("body"):
                    begun.set()

            headers = {name.lower(): value for name, value in bearer().items()}
            request = scope(path="/v1/executions/x/logs", headers=headers, query="follow=true")
            following = asyncio.create_task(gateway.app(request, receive, send))
            await begun.wait()
            with structlog.testing.capture_logs() as logged:
                await stop(gateway.server)
                await following
            assert [line["event"] for line in logged if line["log_level"] == "error"] == []
            assert "edge.stream_cut" in [line["event"] for line in logged]
            assert all(message.get("more_body", True) for message in sent)
            assert gateway.parts.metrics.requests["/v1/executions/{id}/logs", "GET", "2xx"] == 1

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
