"""The log stream in this process; streams that last are in e2e/test_gateway.py."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
import structlog
from tests.gateway_app import running, scope
from tests.gateway_process import bearer, token
from tests.small_daemon import stop

from flx_api.errors import NotFound
from flx_api.gateway.logs import MAX_PER_SUBJECT, MAX_STREAMS
from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame

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


@pytest.mark.parametrize("end", ["expires", "is revoked", "was revoked meanwhile", "is not believed"])
def test_a_log_is_followed_for_as_long_as_the_token_is_good(end: str) -> None:
    async def story() -> None:
        async with running(when_stale="refuse") as gateway:
            await gateway.daemon.log("x", b"one")
            parts, begun = gateway.parts, asyncio.Event()
            sent: list[Message] = []

            async def receive() -> Message:
                await asyncio.Event().wait()
                return {"type": "http.disconnect"}

            async def send(message: Message) -> None:
                sent.append(message)
                if message.get("body"):
                    begun.set()

            def revoke(*_: object) -> ReplyFrame:
                parts.revoked.apply("subject", "anna", "default", int(time.time()) + 10)
                return ReplyFrame(result=b"{}")

            if end == "was revoked meanwhile":
                gateway.daemon.answers["execution.get"] = revoke
            headers = {"authorization": f"Bearer {token(ttl_s=2 if end == 'expires' else 60)}"}
            request = scope(path="/v1/executions/x/logs", headers=headers, query="follow=true")
            following = asyncio.create_task(gateway.app(request, receive, send))
            if end == "is revoked":
                await begun.wait()
                revoke()
                parts.standing.changed()
            elif end == "is not believed":
                await begun.wait()
                # The follower's own clock does not go that far in a test.
                parts.revocations.look(asyncio.get_running_loop().time() + 1000)
            async with asyncio.timeout(20):
                await following
            assert sent[0]["status"] == 200
            assert all(message.get("more_body", True) for message in sent)
            assert not parts.standing._readers

    asyncio.run(story())


def test_readers_of_logs_are_bounded() -> None:
    async def story() -> None:
        async with running() as gateway:
            await gateway.daemon.log("x", b"one")
            assert (await gateway.client.get("/v1/executions/x/logs", headers=bearer())).status_code == 200
            logs = gateway.parts.logs
            assert not logs._open
            for own, others, status in ((MAX_PER_SUBJECT, 0, 429), (0, MAX_STREAMS, 429), (1, MAX_STREAMS // 2, 200)):
                logs._open.clear()
                logs._open.update({("default", "anna"): own, ("default", "others"): others})
                answer = await gateway.client.get("/v1/executions/x/logs", headers=bearer())
                assert status == answer.status_code
                if status == 429:
                    assert ("rate_limited", "5") == (answer.json()["code"], answer.headers["retry-after"])

    asyncio.run(story())
