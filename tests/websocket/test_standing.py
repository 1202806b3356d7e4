"""Open connections follow their tokens: revoked, offered anew, about to end; on both faces, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import websockets
from tests.gateway_app import Running, running
from tests.gateway_process import token
from tests.websocket.test_endpoint import Socket

from flx_api._core import Principal
from flx_api.websocket.connection import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

FACES = ("asgi", "native")


class Peer:
    """A client on one of the faces."""

    def __init__(self, of: Any) -> None:
        self._of = of

    async def hear(self) -> dict[str, Any]:
        """The next message; a Close as `{"type": "close", "code"}`."""
        if isinstance(self._of, Socket):
            found = await self._of.hear()
            return {"type": "close", "code": found["code"]} if found["type"] == "websocket.close" else found
        async with asyncio.timeout(10):
            try:
                text = await self._of.recv()
            except websockets.ConnectionClosed as closed:
                return {"type": "close", "code": closed.rcvd and closed.rcvd.code}
        found = msgspec.json.decode(text)
        return found if isinstance(found, dict) else {}

    async def say(self, **message: Any) -> dict[str, Any]:
        """Send a message; what comes next."""
        text = msgspec.json.encode(message).decode()
        if isinstance(self._of, Socket):
            self._of.say(text)
        else:
            await self._of.send(text)
        return await self.hear()

    async def is_open(self) -> bool:
        """Whether it is still answered."""
        return bool((await self.say(type="ping"))["type"] == "pong")


@contextlib.asynccontextmanager
async def connected(gateway: Running, face: str, text: str, client_id: str = "me") -> AsyncIterator[Peer]:
    """A connection that was let in, and what it said first is read."""
    headers = {"authorization": f"Bearer {text}"}
    if face == "asgi":
        of_server = Socket(gateway, f"/ws/{client_id}", headers)
        assert (await of_server.hear())["type"] == "websocket.accept"
        peer = Peer(of_server)
        assert (await peer.hear())["type"] == "connected"
        yield peer
        of_server.leave()
        await of_server.task
        return
    assert gateway.parts.native.listener is not None
    address = f"ws://127.0.0.1:{gateway.parts.native.listener.port}/ws/{client_id}"
    async with websockets.connect(address, additional_headers=headers) as socket:
        peer = Peer(socket)
        assert (await peer.hear())["type"] == "connected"
        yield peer


def run(story: Callable[[Running], Awaitable[None]], **settings: Any) -> None:
    async def told() -> None:
        async with running(realtime_port=0, **settings) as gateway:
            await story(gateway)

    asyncio.run(told())


async def revoke(gateway: Running, kind: str, value: str, issued_before: int | None = None, **more: Any) -> None:
    event = {"type": "revoked", "kind": kind, "value": value, "issued_before": issued_before, "expires_at": None}
    await gateway.daemon.publish("revocation_events", {**event, **more})


@pytest.mark.parametrize("face", FACES)
def test_what_is_revoked_is_closed_and_nothing_else(face: str) -> None:
    async def story(gateway: Running) -> None:
        now = int(time.time())
        cases: list[tuple[str, str, dict[str, Any]]] = [
            ("jti", "j1", {"jti": "j1"}),
            ("session", "s1", {"sid": "s1"}),
            ("subject", "bert", {"subject": "bert", "iat": now - 20}),
        ]
        other = token("eve", jti="other", sid="other")
        later = token("bert", jti="later", iat=now - 5)
        async with connected(gateway, face, other, "o") as stays, connected(gateway, face, later, "l") as newer:
            for kind, value, claims in cases:
                async with connected(gateway, face, token(**claims), f"c-{kind}") as hit:
                    assert await hit.is_open()
                    await revoke(gateway, kind, value, now - 10 if kind == "subject" else None)
                    assert await hit.hear() == {"type": "close", "code": 4401}
                assert await stays.is_open()
                assert await newer.is_open()
            await revoke(gateway, "subject", "bert")
            assert await newer.hear() == {"type": "close", "code": 4401}
            assert await stays.is_open()
        async with asyncio.timeout(10):
            while len(gateway.parts.standing.roster):  # noqa: ASYNC110 - a number, not an event
                await asyncio.sleep(0.01)

    run(story)


@pytest.mark.parametrize("face", FACES)
def test_a_ticket_lets_in_as_long_as_its_token(face: str) -> None:
    async def story(gateway: Running) -> None:
        headers = {"authorization": f"Bearer {token(jti='t1')}"}
        ticket = (await gateway.client.post("/v1/ws-ticket", headers=headers)).json()["ticket"]
        if face == "asgi":
            socket = Socket(gateway, f"/ws/me?ticket={ticket}", {})
            await socket.hear()
            peer = Peer(socket)
        else:
            assert gateway.parts.native.listener is not None
            port = gateway.parts.native.listener.port
            peer = Peer(await websockets.connect(f"ws://127.0.0.1:{port}/ws/me?ticket={ticket}"))
        assert (await peer.hear())["type"] == "connected"
        await revoke(gateway, "jti", "t1")
        assert await peer.hear() == {"type": "close", "code": 4401}

    run(story)


@pytest.mark.parametrize("face", FACES)
def test_a_snapshot_that_replaces_what_was_known_is_in_force_on_open_connections(face: str) -> None:
    async def story(gateway: Running) -> None:
        async with connected(gateway, face, token(jti="t1")) as hit:
            gateway.parts.revocations._target.replace_all([("jti", "t1", "default", None, None)])
            gateway.parts.revocations.changed()
            assert await hit.hear() == {"type": "close", "code": 4401}

    run(story)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("when_stale", ["refuse", "serve"])
def test_a_daemon_that_is_silent_too_long_ends_connections_when_that_is_asked_for(face: str, when_stale: str) -> None:
    async def story(gateway: Running) -> None:
        parts = gateway.parts
        async with connected(gateway, face, token()) as one:
            # The follower's own clock does not go that far in a test.
            parts.revocations.look(asyncio.get_running_loop().time() + 1000)
            assert parts.revocations.stale
            if when_stale == "serve":
                assert await one.is_open()
            else:
                assert await one.hear() == {"type": "close", "code": 1012}

    run(story, when_stale=when_stale)


@pytest.mark.parametrize("face", FACES)
def test_another_token_goes_on_where_the_first_would_have_ended(face: str) -> None:
    async def story(gateway: Running) -> None:
        async with connected(gateway, face, token(ttl_s=2.2, jti="first")) as one:
            await one.say(type="subscribe", event="system_events")
            answer = await one.say(type="refresh", token=token(ttl_s=60, jti="second"))
            assert answer["type"] == "refreshed"
            assert 57 <= answer["in_s"] <= 60
            # The first may end now in either way.
            await revoke(gateway, "jti", "first")
            await asyncio.sleep(2.5)
            await gateway.daemon.publish("system_events", {"n": 1})
            assert (await one.hear())["data"] == {"n": 1}
            await revoke(gateway, "jti", "second")
            assert await one.hear() == {"type": "close", "code": 4401}

    run(story)


@pytest.mark.parametrize("face", FACES)
def test_what_another_token_does_not_permit_is_told_and_heard_no_more(face: str) -> None:
    async def story(gateway: Running) -> None:
        async with connected(gateway, face, token("anna", ("admin",))) as one:
            await one.say(type="subscribe", event="system_events")
            lost = await one.say(type="refresh", token=token("anna", ("nothing",)))
            assert lost == {"type": "unsubscribed", "event": "system_events", "reason": "forbidden"}
            assert (await one.hear())["type"] == "refreshed"
            await gateway.daemon.publish("system_events", {"n": 1})
            assert (await one.say(type="subscribe", event="system_events"))["code"] == "forbidden"

    run(story)


@pytest.mark.parametrize("face", FACES)
def test_a_token_that_is_not_acceptable_changes_nothing(face: str) -> None:
    async def story(gateway: Running) -> None:
        await revoke(gateway, "jti", "gone")
        async with asyncio.timeout(10):
            while not len(gateway.parts.revoked):  # noqa: ASYNC110 - a number, not an event
                await asyncio.sleep(0.01)
        async with connected(gateway, face, token("anna")) as one:
            for offered, code in (
                (token("bert"), "forbidden"),
                (token("anna", tenant="other"), "forbidden"),
                (token("anna", ttl_s=-5), "invalid_token"),
                (token("anna", jti="gone"), "invalid_token"),
                ("no.to.ken", "invalid_token"),
                ("ä", "invalid_token"),
                ("", "invalid_token"),
            ):
                answer = await one.say(type="refresh", token=offered)
                assert (answer["type"], answer["code"], answer["of"]) == ("error", code, "refresh"), offered
                assert offered == "" or offered not in str(answer)
            assert (await one.say(type="refresh"))["code"] == "invalid_request"
            assert (await one.say(type="refresh", token=1))["code"] == "invalid_request"
            assert await one.is_open()
            for _ in range(2):
                await one.say(type="refresh", token="x")
            assert await one.hear() == {"type": "close", "code": 1008}

    run(story)


@pytest.mark.parametrize("face", FACES)
def test_a_client_is_told_before_its_token_ends(face: str) -> None:
    async def story(gateway: Running) -> None:
        async with connected(gateway, face, token(ttl_s=4)) as one:
            began = time.time()
            told = await one.hear()
            assert told["type"] == "expiring"
            assert 0 < told["in_s"] <= 3
            assert 0.5 < time.time() - began
            assert await one.hear() == {"type": "close", "code": 4401}

    run(story)


def test_who_is_furthest_behind_is_told_first() -> None:
    async def nowhere(_message: Any) -> None:
        """Whatever is given to it is never written."""

    async def story(gateway: Running) -> None:
        manager = gateway.parts.manager
        for number in range(3):
            principal = Principal(subject="anna", roles=("admin",), expires_at=int(time.time()) + 60)
            slow = Connection(f"slow-{number}", principal, nowhere, 0.0)
            manager.connect(slow)
            await manager.subscribe(slow, "bench.x")
            manager.publish("default", "bench.x", 1, b"0")
            manager.serve()
            manager.publish("default", "bench.x", 2, b"0")
            manager.serve()
        async with connected(gateway, "native", token()):
            answer = await gateway.client.post("/connection.slowest", headers={"authorization": f"Bearer {token()}"})
            items = answer.json()["result"]["items"]
            assert [item["connection"]["client_id"] for item in items] == ["slow-0", "slow-1", "slow-2"]
            assert [item["behind"] for item in items] == [5, 3, 1]
            less = await gateway.client.post(
                "/connection.slowest", json={"limit": 1}, headers={"authorization": f"Bearer {token()}"}
            )
            assert less.json()["result"]["items"] == items[:1]

    run(story)
