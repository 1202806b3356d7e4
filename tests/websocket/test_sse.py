"""The stream of events without a server: what it answers, and how it ends. Over sockets: tests/contracts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import msgspec
from tests.gateway_app import Running, running, scope
from tests.gateway_process import bearer, token

from flx_api._core import Admitted
from flx_api.websocket import connection_manager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from flx_api.gateway.exchange import Message


class Listener:
    """A client that listens, by the server's side of its request."""

    def __init__(self) -> None:
        self.start: Message = {}
        self.text = ""
        self.is_over = False
        self.takes = asyncio.Event()
        self.takes.set()
        self.gone = asyncio.Event()
        self._news = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.takes.wait()
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.text += message["body"].decode()
            self.is_over = not message.get("more_body", False)
        self._news.set()

    async def until(self, text: str) -> None:
        """Wait until this was told."""
        async with asyncio.timeout(10):
            while text not in self.text:
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def listening(
    gateway: Running, query: str = "topics=app.x", method: str = "GET", headers: dict[str, str] | None = None
) -> AsyncIterator[tuple[Listener, asyncio.Task[None]]]:
    listener = Listener()
    request = scope(method, "/v1/events", bearer() if headers is None else headers, query)
    task = asyncio.create_task(gateway.app(request, listener.receive, listener.send))
    try:
        yield listener, task
    finally:
        listener.gone.set()
        listener.takes.set()
        await asyncio.wait_for(task, 10)


def run(story: Any, **settings: Any) -> None:
    async def told() -> None:
        async with running(**settings) as gateway:
            await story(gateway)

    asyncio.run(told())


def test_a_stream_begins_with_where_it_is_and_goes_on_with_what_happens() -> None:
    async def story(gateway: Running) -> None:
        headers = bearer() | {"origin": "https://a.example"}
        async with listening(gateway, "topics=app.x,app.y", headers=headers) as (listener, _):
            await listener.until('"event":"app.y","pos"')
            assert listener.start["status"] == 200
            head = dict(listener.start["headers"])
            assert head[b"content-type"] == b"text/event-stream"
            assert head[b"cache-control"] == b"no-store"
            assert head[b"access-control-allow-origin"] == b"https://a.example"
            assert listener.text.startswith("retry: ")
            await gateway.daemon.publish("app.y", {"n": 1})
            await listener.until('"data":{"n":1}')
            assert gateway.parts.hub.stats()["connections"] == 1
            assert not listener.is_over
        assert gateway.parts.hub.stats()["connections"] == 0

    run(story, cors_origins=("https://a.example",))


def test_its_head_alone_and_what_is_refused() -> None:
    async def story(gateway: Running) -> None:
        async with listening(gateway, method="HEAD") as (listener, task):
            await task
            assert (listener.start["status"], listener.text, listener.is_over) == (200, "", True)
        for query, headers, status, code in [
            ("", bearer(), 422, "validation_failed"),
            ("topics=", bearer(), 422, "validation_failed"),
            ("topics=app.x&other=1", bearer(), 422, "validation_failed"),
            ("topics=app.x,", bearer(), 400, "invalid_request"),
            ("topics=app.x", bearer() | {"last-event-id": "?"}, 400, "invalid_request"),
            ("topics=app.x", bearer() | {"last-event-id": "\xe9"}, 400, "invalid_request"),
            ("topics=app.x", {}, 401, "missing_token"),
            ("topics=app.x&ticket=x", {}, 401, "invalid_token"),
            ("topics=app.x&ticket=x", {"authorization": "Bearer x"}, 401, "invalid_token"),
        ]:
            async with listening(gateway, query, headers=headers) as (listener, task):
                await task
                assert (listener.start["status"], msgspec.json.decode(listener.text)["code"]) == (status, code), query
        assert gateway.parts.hub.stats()["connections"] == 0

    run(story)


def test_there_are_only_so_many_and_none_while_it_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_manager, "MAX_PER_SUBJECT", 1)

    async def story(gateway: Running) -> None:
        async with listening(gateway) as (first, _):
            await first.until("subscribed")
            async with listening(gateway) as (second, task):
                await task
                assert second.start["status"] == 429
            drain = asyncio.create_task(gateway.parts.manager.drain(0.01))
            await first.until('"type":"closed","code":1012')
            await drain
        assert first.is_over
        async with listening(gateway) as (late, task):
            await task
            assert late.start["status"] == 503

    run(story)


def test_a_token_that_ends_is_told_and_who_takes_nothing_is_cut() -> None:
    async def story(gateway: Running) -> None:
        manager = gateway.parts.manager
        headers = {"authorization": f"Bearer {token(ttl_s=1000)}"}
        async with listening(gateway, headers=headers) as (listener, task):
            await listener.until("subscribed")
            now_s, wall_s = manager._clock(), manager._wall()
            manager.look_after(now_s + 30, wall_s)
            await listener.until(": heartbeat\n\n")
            manager.look_after(now_s + 31, wall_s + 1001)
            await task
            assert listener.text.endswith(
                'event: closed\ndata: {"type":"closed","code":4401,"reason":"the token has ended"}\n\n'
            )
            assert listener.is_over
        async with listening(gateway) as (listener, task):
            await listener.until("subscribed")
            listener.takes.clear()
            await gateway.daemon.publish("app.x", 1)
            async with asyncio.timeout(10):
                while all(one.sending_since_s is None for one in manager._connections):  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0)
            manager.look_after(manager._clock() + 11, manager._wall())
            await task
            assert not listener.is_over

    run(story)


def test_a_token_that_is_revoked_while_a_body_is_awaited_opens_no_stream() -> None:
    class Slow(Listener):
        def __init__(self) -> None:
            super().__init__()
            self.asked, self.body = asyncio.Event(), asyncio.Event()

        async def receive(self) -> Message:
            if self.asked.is_set():
                return await super().receive()
            self.asked.set()
            await self.body.wait()
            return {"type": "http.request", "body": b"{}", "more_body": False}

    async def story(gateway: Running) -> None:
        listener = Slow()
        headers = bearer() | {"content-type": "application/json", "content-length": "2"}
        request = scope("GET", "/v1/events", headers, "topics=app.x")
        task = asyncio.create_task(gateway.app(request, listener.receive, listener.send))
        await listener.asked.wait()
        gateway.parts.revoked.apply("subject", "anna", "default", int(time.time()) + 10)
        gateway.parts.standing.changed()
        while gateway.parts.standing._due is not None:  # noqa: ASYNC110 - a timer, not an event
            await asyncio.sleep(0)
        listener.body.set()
        await listener.until("}")
        listener.gone.set()
        await asyncio.wait_for(task, 10)
        assert (listener.start["status"], msgspec.json.decode(listener.text)["code"]) == (401, "invalid_token")

    run(story)


def test_a_token_that_is_revoked_between_admission_and_its_request_opens_no_stream() -> None:
    """On the lane these are two threads."""

    async def story(gateway: Running) -> None:
        listener = Listener()
        request = scope("GET", "/v1/events", bearer(), "topics=app.x")
        admitted = gateway.parts.admission.admit(request)
        assert isinstance(admitted, Admitted)
        gateway.parts.revoked.apply("subject", "anna", "default", int(time.time()) + 10)
        await gateway.parts.edge.serve(request, listener.receive, listener.send, admitted)
        assert (listener.start["status"], msgspec.json.decode(listener.text)["code"]) == (401, "invalid_token")

    run(story)


def test_a_ticket_stands_in_for_a_token() -> None:
    async def story(gateway: Running) -> None:
        ticket = (await gateway.client.post("/v1/ws-ticket", headers=bearer("bert"))).json()["ticket"]
        async with listening(gateway, f"topics=user.bert&ticket={ticket}", headers={}) as (listener, _):
            await listener.until("subscribed")
        async with listening(gateway, f"topics=user.bert&ticket={ticket}", headers={}) as (listener, task):
            await task
            assert listener.start["status"] == 401

    run(story)
