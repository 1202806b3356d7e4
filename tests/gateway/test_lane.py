"""The lane over real sockets, in this process. What it shares with the other faces: e2e/test_faces.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import websockets
from tests.gateway_app import running
from tests.gateway_process import bearer, token

from flx_api.errors import StartupError
from flx_api.gateway.lane import LaneFace
from flx_api.gateway.peer_socket import PeerSocket
from flx_api.gateway.routes_fast import Response
from flx_api.proto.flx.v1.daemon_pb2 import ReplyBatch, ReplyFrame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.gateway_app import Running

    from flx_api.gateway.exchange import Exchange

ORIGIN = "https://page.example"
JSON = {"content-type": "application/json"}


class Stage:
    """A running gateway with a lane, and what of its requests Python has heard."""

    def __init__(self, gateway: Running, face: LaneFace, port: int) -> None:
        self.parts = gateway.parts
        self.daemon = gateway.daemon
        self.face = face
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.heard = 0
        spawn = face._spawn

        def counted(work: Any) -> None:
            self.heard += 1
            spawn(work)

        face._spawn = counted  # type: ignore[method-assign]

    def serve(self, method: str, template: str, handler: Callable[[Exchange], Awaitable[Response | None]]) -> None:
        """Let a route be served otherwise."""
        route = next(route for route in self.parts.paths.by_index if route.template == template)
        route.serve[method] = handler

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so; of what native threads do no event tells."""
        async with asyncio.timeout(20):
            while not is_so():  # noqa: ASYNC110 - as said
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def stage(
    body_timeout_s: float = 25.0, patience_s: float = 60.0, **settings: Any
) -> AsyncIterator[tuple[Stage, httpx.AsyncClient]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with running(**settings) as gateway:
            parts = gateway.parts
            face = LaneFace(
                parts.settings,
                admission=parts.admission,
                edge=parts.edge,
                endpoint=parts.endpoint,
                rides=parts.rides,
                cors=parts.cors,
                body_timeout_s=body_timeout_s,
                patience_s=patience_s,
            )
            parts.__dict__["lane"] = face
            face.start(listening.fileno())
            at = Stage(gateway, face, listening.getsockname()[1])
            async with httpx.AsyncClient(base_url=at.url, timeout=20) as client:
                yield at, client


def test_refusals_and_kept_pages_are_no_affair_of_python() -> None:
    async def story() -> None:
        async with stage() as (at, client):
            refusals = [
                ("GET", "/v1/auth/whoami", {}, 401),
                ("GET", "/v1/auth/whoami", {"authorization": "Bearer a.b.c"}, 401),
                ("GET", "/nothing", {}, 404),
                ("DELETE", "/v1/execute", {}, 405),
                ("GET", "/health", {"host": "a b"}, 400),
            ]
            for method, path, headers, status in refusals:
                answer = await client.request(method, path, headers=headers)
                assert (status, "application/problem+json") == (answer.status_code, answer.headers["content-type"])
                assert answer.headers["x-request-id"] == answer.json()["request_id"]
            assert 0 == at.heard
            first, second = [await client.get("/v1/auth/whoami", headers=bearer()) for _ in range(2)]
            # Another second has another token, and nobody was given a page for that yet.
            same = {"authorization": f"Bearer {token(iat=1)}"}
            first, second = [await client.get("/v1/auth/whoami", headers=same) for _ in range(2)]
            heard = at.heard
            third = await client.get("/v1/auth/whoami", headers=same)
            assert (200, first.json()) == (third.status_code, third.json())
            assert set(second.headers) == set(third.headers)
            head = await client.head("/v1/auth/whoami", headers=same)
            assert (b"", third.headers["content-length"]) == (head.content, head.headers["content-length"])
            assert heard == at.heard

    asyncio.run(story())


@pytest.mark.parametrize(
    ("target", "host"), [("http://a/health", None), ("http://evil/health", "a"), ("http://a/health", "a")]
)
def test_a_target_with_a_host_is_for_a_proxy(target: str, host: str | None) -> None:
    async def story() -> None:
        async with stage(trusted_hosts=("a",)) as (at, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
            own = f"Host: {host}\r\n" if host else ""
            writer.write(f"GET {target} HTTP/1.1\r\n{own}Connection: close\r\n\r\n".encode())
            answer = await reader.read()
            assert (b"HTTP/1.1 400 Bad Request", True) == (answer.partition(b"\r\n")[0], b"invalid_host" in answer)
            writer.close()

    asyncio.run(story())


def test_a_client_whose_machine_is_gone_is_given_up_by_the_kernel() -> None:
    async def story() -> None:
        async with stage() as (at, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            ours = writer.get_extra_info("sockname")
            theirs = PeerSocket.find(("127.0.0.1", at.port), ours)
            assert theirs is not None
            assert 60_000 == theirs._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            theirs.close()
            writer.close()

    asyncio.run(story())


def test_limits_hold_and_say_what_is_left() -> None:
    async def story() -> None:
        limits = [{"name": "few", "by": "subject", "limit": 3, "window": "60s"}]
        async with stage(rate_limits=limits) as (_, client):
            same = {"authorization": f"Bearer {token(iat=1)}"}
            answers = [await client.get("/v1/auth/whoami", headers=same) for _ in range(4)]
            assert [200, 200, 200, 429] == [answer.status_code for answer in answers]
            assert [2, 1, 0, 0] == [int(answer.headers["ratelimit"].split("r=")[1][0]) for answer in answers]
            assert ('"few";q=3;w=60', "60") == (
                answers[3].headers["ratelimit-policy"],
                answers[3].headers["retry-after"],
            )

    asyncio.run(story())


def test_while_tokens_cannot_be_judged_nothing_is_kept_and_nothing_rides() -> None:
    async def story() -> None:
        async with stage() as (at, client):
            same = {"authorization": f"Bearer {token(iat=1)}"}
            for _ in range(2):
                assert 200 == (await client.get("/v1/auth/whoami", headers=same)).status_code
            at.parts.revocations.known = False
            at.parts.revocations.look(asyncio.get_running_loop().time())
            for method, path, body in (
                ("GET", "/v1/auth/whoami", b""),
                ("POST", "/v1/execute", b'{"command":"system.echo"}'),
            ):
                answer = await client.request(method, path, headers={**same, **JSON}, content=body)
                assert (503, "upstream_unavailable") == (answer.status_code, answer.json()["code"])
            assert [] == at.daemon.commands()

    asyncio.run(story())


def test_pages_of_other_origins_are_told_whether_they_may_ask() -> None:
    async def story() -> None:
        async with stage(cors_origins=(ORIGIN,)) as (_, client):
            same = {"authorization": f"Bearer {token(iat=1)}"}
            echo = b'{"command":"system.echo"}'
            asked: list[tuple[str, str, dict[str, str], bytes]] = [
                ("GET", "/v1/auth/whoami", same, b""),  # by Python
                ("GET", "/v1/auth/whoami", same, b""),  # kept
                ("GET", "/v1/auth/whoami", {}, b""),  # refused
                ("POST", "/v1/execute", {**same, **JSON}, echo),  # a ride
                ("POST", "/v1/execute", {**same, **JSON}, b"{"),  # the general way
            ]
            for method, path, headers, body in asked:
                for origin, allowed in ((ORIGIN, ORIGIN), ("https://other.example", None), ("null", None)):
                    answer = await client.request(method, path, headers={**headers, "origin": origin}, content=body)
                    told = answer.headers.get("access-control-allow-origin"), answer.headers["vary"]
                    assert (allowed, "Origin") == told
                assert "access-control-allow-origin" not in (await client.get("/health")).headers
        async with stage(cors_origins=("*",)) as (_, client):
            for origin, allowed in ((ORIGIN, "*"), ("null", None)):
                answer = await client.get("/nothing", headers={"origin": origin})
                assert allowed == answer.headers.get("access-control-allow-origin")

    asyncio.run(story())


def test_a_body_that_cannot_be_had_is_refused() -> None:
    async def story() -> None:
        headers = {**bearer(), **JSON}
        async with stage(body_limit=1024) as (at, client):

            async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
                for part in parts:
                    yield part

            large = await client.post("/v1/execute", headers=headers, content=chunks(b"x" * 800, b"x" * 800))
            assert (413, "payload_too_large") == (large.status_code, large.json()["code"])
            whole = await client.post("/v1/execute", headers=headers, content=chunks(b'{"command":"sys', b'tem.echo"}'))
            assert 200 == whole.status_code
        async with stage(body_timeout_s=0.05) as (at, _):
            for told in ({"content-length": "30"}, {"transfer-encoding": "chunked"}):
                reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
                lines = ["POST /v1/execute HTTP/1.1", "host: g", *(f"{k}: {v}" for k, v in (headers | told).items())]
                writer.write("\r\n".join([*lines, "", ""]).encode())
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 408 ")
                assert b"\r\nconnection: close\r\n" in answer
                writer.close()
                await writer.wait_closed()

    asyncio.run(story())


def test_a_stream_waits_for_its_reader_and_is_whole_or_cut() -> None:
    async def story() -> None:
        async with stage() as (at, client):
            sent = 0
            part = b"x" * 65_536

            async def stream(exchange: Exchange, count: int) -> None:
                nonlocal sent
                exchange.status = 200
                headers = at.parts.edge.headers(exchange, [], None)
                await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
                for _ in range(count):
                    await exchange.send({"type": "http.response.body", "body": part, "more_body": True})
                    sent += 1

            async def whole(exchange: Exchange) -> None:
                await stream(exchange, 400)
                await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})

            async def cut(exchange: Exchange) -> None:
                await stream(exchange, 3)

            at.serve("GET", "/health", whole)
            at.serve("GET", "/ready", cut)
            async with client.stream("GET", "/health") as answer:
                await at.until(lambda: sent > 8)
                before = -1
                # What nobody reads is not made: it comes to a halt long before its end.
                while before != sent:
                    before = sent
                    await asyncio.sleep(0.2)
                assert sent < 350
                assert 400 * len(part) == len(await answer.aread())
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/ready")

    asyncio.run(story())


def test_who_takes_nothing_of_a_stream_is_given_up() -> None:
    async def story() -> None:
        async with stage(patience_s=0.05) as (at, client):
            ended = asyncio.Event()

            async def endless(exchange: Exchange) -> None:
                exchange.status = 200
                await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
                async with asyncio.timeout(20):
                    watching = asyncio.ensure_future(exchange.receive())
                    while not watching.done():
                        part = {"type": "http.response.body", "body": b"x" * 65_536, "more_body": True}
                        await exchange.send(part)
                ended.set()

            at.serve("GET", "/health", endless)
            async with client.stream("GET", "/health"):
                async with asyncio.timeout(20):
                    await ended.wait()

    asyncio.run(story())


def test_who_leaves_is_noticed_by_all_who_wait_for_it() -> None:
    async def story() -> None:
        async with stage() as (at, client):
            ends: list[str] = []

            async def waits(exchange: Exchange) -> None:
                async with asyncio.timeout(20):
                    await exchange.receive()  # the body
                    messages = await asyncio.gather(exchange.receive(), exchange.receive())
                ends.extend(message["type"] for message in [*messages, await exchange.receive()])

            at.serve("GET", "/health", waits)
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/health", timeout=httpx.Timeout(20, read=0.2))
            await at.until(lambda: len(ends) == 3)
            assert {"http.disconnect"} == set(ends)
            await at.until(lambda: not at.face._tasks)
            assert ({}, {}) == (at.face._gone, at.face._rooms)

    asyncio.run(story())


def test_what_nobody_answers_ends_its_connection() -> None:
    async def story() -> None:
        async with stage() as (at, client):

            async def nothing(_: Exchange) -> None:
                return

            at.serve("GET", "/health", nothing)
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/health")

    asyncio.run(story())


def test_a_websocket_takes_no_more_than_is_read() -> None:
    async def story() -> None:
        async with stage() as (at, _):
            url = f"ws://127.0.0.1:{at.port}/ws/me"
            async with websockets.connect(url, additional_headers=bearer()) as client:
                assert "connected" == json.loads(await client.recv())["type"]
                await client.send(b'{"type":"ping"}')
                assert "pong" == json.loads(await client.recv())["type"]
            await at.until(lambda: not at.face._tasks)
            assert {} == at.face._sockets

            async def broken(*_: Any) -> None:
                raise ValueError

            at.parts.endpoint.websocket = broken  # type: ignore[method-assign, assignment]
            with pytest.raises(websockets.InvalidMessage):
                await websockets.connect(url, additional_headers=bearer())

    asyncio.run(story())


def test_it_ends_with_what_is_under_way() -> None:
    async def story() -> None:
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def slow(_: Exchange) -> Response:
            begun.set()
            await may_end.wait()
            return Response(200, [], b"done")

        async with stage() as (at, client):
            at.serve("GET", "/health", slow)
            asking = asyncio.create_task(client.get("/health"))
            await begun.wait()
            closing = asyncio.create_task(at.face.close())
            may_end.set()
            assert b"done" == (await asking).content
            await closing
            with pytest.raises(httpx.TransportError):
                await client.get("/health", timeout=0.5)

    asyncio.run(story())


def test_what_is_no_socket_is_not_served() -> None:
    async def story() -> None:
        async with stage() as (at, _):
            with pytest.raises(StartupError, match=r"^FLX_INTERFACE: the lane cannot be served: "):
                LaneFace(
                    at.parts.settings,
                    admission=at.parts.admission,
                    edge=at.parts.edge,
                    endpoint=at.parts.endpoint,
                    rides=at.parts.rides,
                    cors=at.parts.cors,
                ).start(987_654)

    asyncio.run(story())


def test_a_head_has_no_body_over_http2_either() -> None:
    async def story() -> None:
        async with stage() as (at, _), httpx.AsyncClient(base_url=at.url, http1=False, http2=True) as client:
            same = {"authorization": f"Bearer {token(iat=1)}"}
            for headers, status in (({}, 401), (same, 200), (same, 200)):
                whole = await client.get("/v1/auth/whoami", headers=headers)
                head = await client.head("/v1/auth/whoami", headers=headers)
                assert ("HTTP/2", status, b"") == (head.http_version, head.status_code, head.content)
                assert whole.headers["content-length"] == head.headers["content-length"]

    asyncio.run(story())


def test_a_slow_command_leaves_nothing_behind() -> None:
    async def story() -> None:
        async with stage() as (at, client):
            at.daemon.answers["system.echo"] = lambda _: None
            body = b'{"command":"system.echo"}'
            asking = asyncio.create_task(client.post("/v1/execute", headers={**bearer(), **JSON}, content=body))
            await at.until(lambda: bool(at.face._gone))
            (frame,), upstream = at.daemon.commands(), at.parts.upstream
            reply = ReplyBatch(frames=[ReplyFrame(seq=frame.seq, result=b"[0]")]).SerializeToString()
            upstream.received(upstream._ready[0], reply)
            assert (200, 0) == ((await asking).status_code, at.heard)
            await at.until(lambda: not at.face._tasks)
            assert ({}, {}) == (at.face._gone, at.parts.rides._watches)

    asyncio.run(story())


def test_what_fails_in_a_turn_takes_nothing_else_along() -> None:
    async def story() -> None:
        async with stage() as (at, client):
            depart, fails = at.parts.rides.depart, [True]

            def once() -> None:
                depart()
                if fails.pop() if fails else False:
                    raise ValueError

            at.parts.rides.depart = once  # type: ignore[method-assign]
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            assert [200, 200] == [(await client.get("/health")).status_code for _ in range(2)]
            assert [] == fails

    asyncio.run(story())
