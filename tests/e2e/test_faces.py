"""One suite over all faces: ASGI on Granian, RSGI, the lane's own server, and ASGI on uvicorn answer alike.

Strategy: the same bytes go to every face and to the ASGI face on Granian; status, headers and body must be the same,
but for what a clock or a counter writes (the date, an id of our own making, a duration). What a server answers by
itself, and what RSGI cannot say at all, is written down in `DIFFERENT` and held as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import httpx
import msgspec
import pytest
import trustme
import websockets
from tests.e2e.test_gateway import BAD, BODY, EXECUTE, JSON, RAW, connect, drain, hear, say, until, until_async
from tests.gateway_process import GatewayProcess, bearer, running, token
from tests.small_daemon import SmallDaemon, serving, stop

from flx_api.errors import Conflict, NotFound
from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.e2e


class Face(NamedTuple):
    """One way in: a server, and the interface between it and us."""

    name: str
    interface: str
    server: Literal["granian", "uvicorn", "own"]

    @property
    def speaks_rsgi(self) -> bool:
        """Whether it has the limits of RSGI."""
        return self.interface == "rsgi"


ASGI = Face("asgi", "asgi", "granian")
FACES = [
    ASGI,
    Face("rsgi", "rsgi", "granian"),
    Face("lane", "lane", "own"),
    Face("asgi on uvicorn", "asgi", "uvicorn"),
]
faces = pytest.mark.parametrize("face", FACES, ids=[face.name for face in FACES])
others = pytest.mark.parametrize("face", FACES[1:], ids=[face.name for face in FACES[1:]])

ESCAPED = "RSGI decodes the path: an escaped plain character is that character"
OWN_ANSWER = "uvicorn's parser (h11) answers by itself"
CLOSED = "uvicorn closes the connection without an answer"
# Rows of the tables where a face cannot do as the others: face, row, why.
DIFFERENT: dict[tuple[str, str], str] = {
    ("rsgi", "A03 encoded letter"): ESCAPED,
    ("asgi on uvicorn", "H01 no host"): OWN_ANSWER,
    ("asgi on uvicorn", "H02 two hosts"): OWN_ANSWER,
    ("asgi on uvicorn", "H07 chunk size"): OWN_ANSWER,
    ("asgi on uvicorn", "cut body"): CLOSED,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Unix socket paths are limited to about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="flx") as name:
        yield Path(name)


@contextlib.asynccontextmanager
async def stack(folder: Path, *faces: Face, **settings: str) -> AsyncIterator[tuple[SmallDaemon, list[GatewayProcess]]]:
    """A daemon, and a gateway of its own behind each face."""
    daemon = SmallDaemon()
    async with serving(daemon, folder / "d.sock"), contextlib.AsyncExitStack() as rest:
        started = [
            running(folder / "d.sock", folder, {**settings, "interface": face.interface}, server=face.server)
            for face in faces
        ]
        yield daemon, [await rest.enter_async_context(one) for one in started]


class Answer(NamedTuple):
    """A response, without what differs from one to the next."""

    status: int
    headers: list[tuple[str, str]]
    body: str


_VOLATILE = re.compile(r'(;t=)\d+|("duration_us":)\d+|("exp":)\d+|("(?:id|request_id)":")[0-9a-f]{12}-[0-9a-f]+')


async def ask(gateway: GatewayProcess, request: bytes, *, half_close: bool = False) -> Answer:
    """Send bytes as they are and read until the other side closes; the answer, chunks put together."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(request.replace(b"TOKEN", token().encode()))
        await writer.drain()
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(10):
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            except asyncio.IncompleteReadError:
                return Answer(0, [], "closed without an answer")
            status, *lines = head.strip().split("\r\n")
            headers = sorted((name.lower(), value) for name, value in (line.split(": ", 1) for line in lines))
            known = dict(headers)
            is_head = request.startswith(b"HEAD ")
            if "content-length" in known and not is_head:
                body = await reader.readexactly(int(known["content-length"]))
            elif known.get("transfer-encoding") == "chunked" and not is_head:
                body = await _chunks(reader)
            else:
                body = b""
    finally:
        writer.close()
    # Answers with a duration in them are not of one length.
    volatile = {"date", "transfer-encoding", *(("content-length",) if b"duration_us" in body else ())}
    kept = [
        (name, _VOLATILE.sub(r"\1\2\3\4", value))
        for name, value in headers
        if name not in volatile and not (name == "x-request-id" and "-" in value)
    ]
    return Answer(int(status.split()[1]), kept, _VOLATILE.sub(r"\1\2\3\4", body.decode()))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    return b"".join(parts)


def request(method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> bytes:
    """The bytes of a request."""
    lines = {"host": "gateway", "x-request-id": "r1", **(headers or {})}
    if body is not None:
        lines["content-length"] = str(len(body))
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode("latin-1") + (body or b"")


def chunked(method: str, path: str, headers: dict[str, str], *chunks: bytes) -> bytes:
    """The bytes of a request whose body has no length."""
    head = request(method, path, {**headers, "transfer-encoding": "chunked"})
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


ORIGIN = {"origin": "https://app.example.com"}
PREFLIGHT = {**ORIGIN, "access-control-request-method": "POST"}
BATCH = "/v1/batch"
LINES = {"accept": "application/x-ndjson"}
OPERATIONS = (
    b'{"mode":"ordered","operations":[{"command":"system.echo","args":{"a":1}},{"command":"no.such"},'
    b'{"command":"pipeline.run","args":{"id":"p"},"idempotency_key":"k"},{"command":"pipeline.delete"}]}'
)
GOOD: list[tuple[str, bytes]] = [
    ("probe", request("GET", "/health")),
    ("page", request("GET", "/")),
    ("document", request("GET", "/openapi.json")),
    ("asset", request("GET", "/docs/start.js")),
    ("own request id", request("GET", "/health", {"x-request-id": "not acceptable!"})),
    ("head of a probe", request("HEAD", "/health")),
    ("head of a resource", request("HEAD", "/v1/pipelines", bearer())),
    ("options", request("OPTIONS", "/v1/pipelines")),
    ("options with a command", request("OPTIONS", EXECUTE, JSON, b'{"command":"auth.logout"}')),
    ("preflight", request("OPTIONS", EXECUTE, PREFLIGHT)),
    ("preflight of another", request("OPTIONS", EXECUTE, {**PREFLIGHT, "origin": "https://evil.example"})),
    ("origin", request("GET", "/v1/pipelines", {**bearer(), **ORIGIN})),
    ("resource", request("GET", "/v1/pipelines?limit=7&tag=a%20b", bearer())),
    ("escaped value", request("GET", "/v1/pipelines/p%20q/executions", bearer())),
    ("escaped letters", request("GET", "/v1/pipelines/%C3%A4", bearer())),
    ("made", request("POST", "/v1/pipelines", {**bearer(), **JSON}, b'{"name":"p"}')),
    ("command", request("POST", EXECUTE, {**bearer(), **JSON}, b'{"command":"system.echo","args":{"a":1}}')),
    ("accepted", request("POST", "/pipeline.run", {**bearer(), **JSON, "idempotency-key": "k"}, b'{"id":"p"}')),
    ("batch", request("POST", BATCH, {**bearer(), **JSON}, OPERATIONS)),
    ("batch by lines", request("POST", BATCH, {**bearer(), **JSON, **LINES, **ORIGIN}, OPERATIONS)),
    ("batch by chunks", chunked("POST", BATCH, {**bearer(), **JSON}, OPERATIONS[:7], OPERATIONS[7:])),
    ("no batch", request("POST", BATCH, {**bearer(), **JSON, **LINES}, b'{"operations":[{"command":7}]}')),
    ("by chunks", chunked("POST", EXECUTE, {**bearer(), **JSON}, BODY[:5], BODY[5:])),
    ("no body", request("POST", "/system.echo", bearer())),
    ("problem of the daemon", request("GET", "/v1/executions/x/wait", bearer())),
    ("conflict", request("DELETE", "/v1/pipelines/p", bearer())),
    ("log", request("GET", "/v1/executions/l/logs", bearer())),
    ("log as text", request("GET", "/v1/executions/l/logs?from=2", {**bearer(), "accept": "text/plain"})),
    ("head of a log", request("HEAD", "/v1/executions/l/logs", bearer())),
    ("nonsense in a key", request("POST", "/system.echo", {**bearer(), **JSON, "idempotency-key": "k\xe9"}, b"{}")),
    ("nonsense in a token", request("GET", "/v1/pipelines", {"authorization": "Bearer \xe9"})),
    ("nonsense in a host", request("GET", "/health", {"host": "\xe9"})),
    ("nonsense that nobody reads", request("GET", "/health", {"cookie": "\xe9"})),
    ("cut body", request("POST", EXECUTE, {**bearer(), **JSON, "content-length": "40"}) + BODY[:20]),
]  # fmt: skip
HALF_CLOSED = {"cut body"}


def answers(daemon: SmallDaemon) -> None:
    """What the daemon says."""
    daemon.answers["pipeline.create"] = lambda _: ReplyFrame(result=b'{"id":"p","revision":3}')
    daemon.answers["pipeline.run"] = lambda _: ReplyFrame(result=b'{"id":"x1"}', accepted_id="x1")
    daemon.answers["pipeline.delete"] = lambda _: Conflict(code="managed_by_project")
    daemon.answers["execution.wait"] = lambda _: NotFound()


@others
def test_answers_are_the_same(folder: Path, face: Face) -> None:
    """Every row of every table, byte for byte against the ASGI face."""

    async def story() -> None:
        settings = {"body_limit": "65536", "cors_origins": "https://app.example.com"}
        async with stack(folder, ASGI, face, **settings) as (daemon, gateways):
            answers(daemon)
            await daemon.log("l", b"one", b"two", b"three")
            rows = list(GOOD)
            rows += [(name, request(method, path, headers, body)) for name, method, path, headers, body, *_ in BAD]
            rows += [(name, raw.replace(b"\r\n\r\n", b"\r\nX-Request-ID: r1\r\n\r\n", 1)) for name, raw, *_ in RAW]
            wrong = []
            for name, row in rows:
                if (face.name, name) in DIFFERENT:
                    continue
                expected, found = [await ask(one, row, half_close=name in HALF_CLOSED) for one in gateways]
                if expected != found:
                    wrong.append(f"{name}: {face.name} says {found}, and not {expected}")
            assert [] == wrong

    asyncio.run(story())


@faces
def test_what_is_different_is_known(folder: Path, face: Face) -> None:
    """The rows that are left out above do what their reason says, and no harm."""

    async def story() -> None:
        tables = {name: request(method, path, headers, body) for name, method, path, headers, body, *_ in BAD}
        tables |= {name: raw for name, raw, *_ in RAW}
        tables |= dict(GOOD)
        async with stack(folder, face) as (daemon, [gateway]):
            for (name, row), why in DIFFERENT.items():
                if name != face.name:
                    continue
                found = await ask(gateway, tables[row], half_close=row in HALF_CLOSED)
                if why == ESCAPED:
                    assert (200, ["pipeline.list"]) == (found.status, [frame.command for frame in daemon.commands()])
                else:
                    assert (400 if why == OWN_ANSWER else 0) == found.status
                    assert [] == daemon.commands()

    asyncio.run(story())


@faces
def test_limits_hold(folder: Path, face: Face) -> None:
    """429 for one subject and not for another, told alike, and all of it counted."""

    async def story() -> None:
        limits = '[{"name":"few","by":"subject","limit":3,"window":"60s"}]'
        async with stack(folder, face, rate_limits=limits) as (_, [gateway]):
            row = request("GET", "/v1/pipelines", bearer("anna"))
            found = [await ask(gateway, row) for _ in range(4)]
            assert [200, 200, 200, 429] == [answer.status for answer in found]
            told = dict(found[3].headers)
            assert ('"few";q=3;w=60', "application/problem+json") == (told["ratelimit-policy"], told["content-type"])
            assert 1 <= int(told["retry-after"]) <= 61
            assert 200 == (await ask(gateway, request("GET", "/v1/pipelines", bearer("bert")))).status
            metrics = (await ask(gateway, request("GET", "/metrics"))).body
            assert 'flx_refusals_total{reason="rate_limited"} 1.0' in metrics
            assert 'flx_http_requests_total{method="GET",route="/v1/pipelines",status="2xx"} 4.0' in metrics
            assert 'flx_http_requests_total{method="GET",route="/v1/pipelines",status="4xx"} 1.0' in metrics

    asyncio.run(story())


@faces
def test_one_connection_serves_many_requests(folder: Path, face: Face) -> None:
    """Keep-alive, with answers in the order of the requests, over whatever way each of them takes."""

    async def story() -> None:
        async with stack(folder, face) as (_, [gateway]), httpx.AsyncClient(base_url=gateway.url) as client:
            for number in range(50):
                echo = {"command": "system.echo", "args": {"n": number}}
                answer = await client.post(EXECUTE, headers=bearer(), json=echo)
                assert {"n": number} == answer.json()["result"]
                assert 401 == (await client.get("/v1/pipelines")).status_code
                assert 200 == (await client.get("/health")).status_code
                assert 404 == (await client.get("/nothing/here")).status_code

    asyncio.run(story())


@faces
def test_a_log_is_followed_to_its_end(folder: Path, face: Face) -> None:
    """Lines arrive as they are written; a lost daemon cuts the stream, and so does a drain: the run goes on."""

    async def story() -> None:
        async with contextlib.AsyncExitStack() as rest:
            daemon = SmallDaemon()
            server = await rest.enter_async_context(serving(daemon, folder / "d.sock"))
            settings = {"interface": face.interface}
            gateway = await rest.enter_async_context(running(folder / "d.sock", folder, settings, server=face.server))
            client = await rest.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=10))
            headers = {**bearer(), "accept": "text/plain"}
            async with client.stream("GET", "/v1/executions/x/logs?follow=true", headers=headers) as stream:
                lines = stream.aiter_lines()
                for line in ("one", "two"):
                    await daemon.log("x", line.encode())
                    assert line == await anext(lines)
                await daemon.finish("x")
                assert [] == [line async for line in lines]
            async with client.stream("GET", "/v1/executions/y/logs?follow=true", headers=headers) as stream:
                lines = stream.aiter_lines()
                await daemon.log("y", b"one")
                assert "one" == await anext(lines)
                await stop(server)
                with pytest.raises(httpx.RemoteProtocolError):
                    await anext(lines)
            async with serving(daemon, folder / "d.sock"):
                await gateway.ready()
                async with client.stream("GET", "/v1/executions/z/logs?follow=true", headers=headers) as stream:
                    tell_to_drain(gateway, face)
                    with pytest.raises(httpx.RemoteProtocolError):
                        await anext(stream.aiter_lines())

    asyncio.run(story())


@faces
def test_events_are_streamed_until_the_service_drains(folder: Path, face: Face) -> None:
    async def story() -> None:
        async with (
            stack(folder, face) as (daemon, [gateway]),
            httpx.AsyncClient(base_url=gateway.url, timeout=10) as client,
        ):

            async def nobody_listens() -> bool:
                return "flx_ws_connections 0.0" in (await client.get("/metrics")).text

            async with client.stream("GET", "/v1/events?topics=app.x", headers=bearer()) as stream:
                lines = stream.aiter_lines()
                while not (await anext(lines)).startswith('data: {"type":"subscribed"'):
                    pass
                await daemon.publish("app.x", {"n": 1})
                while not (await anext(lines)).endswith('"data":{"n":1}}'):
                    pass
                assert not await nobody_listens()
            await until_async(nobody_listens)
            async with client.stream("GET", "/v1/events?topics=app.x", headers=bearer()) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                tell_to_drain(gateway, face)
                last = [line async for line in lines if line.startswith("data: ")][-1]
                assert 1012 == msgspec.json.decode(last.removeprefix("data: "))["code"]

    asyncio.run(story())


@faces
def test_a_caller_that_leaves_is_noticed(folder: Path, face: Face) -> None:
    """Its command is no longer waited for."""

    async def story() -> None:
        async with stack(folder, face) as (daemon, [gateway]), httpx.AsyncClient(base_url=gateway.url) as client:
            daemon.answers["pipeline.run"] = lambda _: None

            async def nobody_waits() -> bool:
                return "flx_upstream_in_flight 0.0" in (await client.get("/metrics")).text

            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(request("POST", "/pipeline.run", {**bearer(), **JSON}, b'{"id":"p"}'))
            await until(lambda: any(frame.command == "pipeline.run" for frame in daemon.frames))
            assert not await nobody_waits()
            writer.close()
            await until_async(nobody_waits)

    asyncio.run(story())


@faces
def test_a_batch_is_streamed_until_its_reader_leaves(folder: Path, face: Face) -> None:
    """A line arrives while other operations are under way; these are not waited for when nobody reads."""

    async def story() -> None:
        async with stack(folder, face) as (daemon, [gateway]), httpx.AsyncClient(base_url=gateway.url) as client:
            daemon.answers["pipeline.run"] = lambda _: None

            async def nobody_waits() -> bool:
                return "flx_upstream_in_flight 0.0" in (await client.get("/metrics")).text

            operations = [{"command": "pipeline.run", "args": {"id": "p"}}, {"command": "system.echo"}]
            headers, body = {**bearer(), **LINES}, {"operations": operations}
            async with client.stream("POST", BATCH, headers=headers, json=body) as stream:
                line = msgspec.json.decode(await anext(stream.aiter_lines()))
                assert (1, "ok") == (line["index"], line["status"])
                assert not await nobody_waits()
            await until_async(nobody_waits)

    asyncio.run(story())


@faces
def test_a_session_over_a_websocket(folder: Path, face: Face) -> None:
    """The plain protocol, tickets, and tokens as subprotocols."""

    async def story() -> None:
        async with stack(folder, face) as (daemon, [gateway]):
            async with connect(gateway) as socket:
                assert {"type": "connected", "message": "connected", "client_id": "me"} == await hear(socket)
                assert "pong" == (await say(socket, type="ping"))["type"]
                await socket.send(b'{"type":"hello"}')
                assert {"type": "echo", "data": {"type": "hello"}} == await hear(socket)
                assert "subscribed" == (await say(socket, type="subscribe", event="pipeline_events"))["type"]
                await daemon.publish("pipeline_events", {"n": "ä"})
                assert {"n": "ä"} == (await hear(socket))["data"]
            ticket = msgspec.json.decode((await ask(gateway, request("POST", "/v1/ws-ticket", bearer()))).body)[
                "ticket"
            ]
            async with connect(gateway, f"t?ticket={ticket}", additional_headers={}) as other:
                assert "t" == (await hear(other))["client_id"]
            offered = [websockets.Subprotocol("flx.plain"), websockets.Subprotocol(f"bearer.{token()}")]
            async with connect(gateway, "s", additional_headers={}, subprotocols=offered) as other:
                assert (None if face.speaks_rsgi else "flx.plain") == other.subprotocol
                assert "s" == (await hear(other))["client_id"]
            # The way to batches where no subprotocol can be told.
            async with connect(gateway, "q?protocol=flx.v1") as other:
                await hear(other)
                assert "subscribed" == (await say(other, type="subscribe", event="pipeline_events"))["type"]
                await daemon.publish("pipeline_events", {"n": 2})
                batch = await hear(other)
                assert ("pipeline_events", [{"n": 2}]) == (batch["t"], batch["d"])

    asyncio.run(story())


async def refusal(gateway: GatewayProcess, client_id: str, headers: dict[str, str]) -> tuple[int, str]:
    """Status and code of a connection that is not let in; no code without a body."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        await connect(gateway, client_id, additional_headers=headers)
    response = caught.value.response
    code = msgspec.json.decode(response.body)["code"] if response.body else ""
    return response.status_code, code


@faces
def test_a_websocket_is_refused_before_it_begins(folder: Path, face: Face) -> None:
    """By status everywhere; by problem document but for RSGI."""

    async def story() -> None:
        async with stack(folder, face) as (_, [gateway]), connect(gateway, "mine"):
            for client_id, headers, status, code in (
                ("me", {}, 401, "missing_token"),
                ("me", {"authorization": "Bearer a.b.c"}, 401, "invalid_token"),
                ("me", {**bearer(), "origin": "https://evil.example"}, 403, "origin_not_allowed"),
                ("mine", bearer("bert"), 409, "client_id_taken"),
                ("a%20b", bearer(), 400, "invalid_request"),
                ("a/b", bearer(), 404, "not_found"),
            ):
                expected = status, "" if face.speaks_rsgi else code
                assert expected == await refusal(gateway, client_id, headers)

    asyncio.run(story())


@faces
def test_a_websocket_ends_for_a_reason(folder: Path, face: Face) -> None:
    """The code says why; RSGI sends a Close frame without one."""

    async def code_of(socket: Any) -> int:
        with pytest.raises(websockets.ConnectionClosed) as caught:  # noqa: PT012 - whatever comes before does not matter
            while True:
                await hear(socket)
        assert caught.value.rcvd is not None
        return int(caught.value.rcvd.code)

    async def story() -> None:
        def expected(code: int) -> int:
            return 1005 if face.speaks_rsgi else code

        async with stack(folder, face) as (_, [gateway]):
            async with connect(gateway) as socket:
                await socket.send("x" * 65_537)
                assert expected(1009) == await code_of(socket)
            async with connect(gateway, additional_headers={"authorization": f"Bearer {token(ttl_s=2)}"}) as socket:
                assert expected(4401) == await code_of(socket)
            async with connect(gateway) as socket:
                await hear(socket)
                tell_to_drain(gateway, face)
                assert expected(1012) == await code_of(socket)
            assert ["drain: the service is stopping"] == (await gateway.ready(503)).json()["reasons"]
            assert 503 == (await refusal(gateway, "me", bearer()))[0]

    asyncio.run(story())


def tell_to_drain(gateway: GatewayProcess, face: Face) -> None:
    """SIGUSR1 to the process that serves: with uvicorn there is only one."""
    if face.server == "uvicorn":
        gateway.process.send_signal(signal.SIGUSR1)
    else:
        drain(gateway)


@faces
def test_it_ends_when_told(folder: Path, face: Face) -> None:
    """SIGTERM: the lifespan is ended too, and the exit is clean."""

    async def story() -> None:
        async with stack(folder, face) as (_, [gateway]):
            assert 200 == (await ask(gateway, request("GET", "/health"))).status
            gateway.process.terminate()
            async with asyncio.timeout(10):
                await gateway.process.wait()
            # uvicorn ends by the signal that it was told to end by.
            assert gateway.process.returncode in {0, -signal.SIGTERM}

    asyncio.run(story())


@faces
def test_it_is_served_over_tls(folder: Path, face: Face) -> None:
    """HTTP and WebSocket with a certificate that is checked, and the header that belongs to it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    for blob in issued.cert_chain_pems:
        blob.write_to_path(certificate, append=True)
    issued.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    files = {"enable_ssl": "true", "ssl_cert_file": str(certificate), "ssl_key_file": str(key)}

    async def story() -> None:
        settings = {**files, "interface": face.interface}
        async with (
            serving(SmallDaemon(), folder / "d.sock"),
            running(folder / "d.sock", folder, settings, ready=False, server=face.server) as gateway,
            httpx.AsyncClient(base_url=f"https://127.0.0.1:{gateway.port}", verify=trusting) as client,
        ):

            async def ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await client.get("/ready")).status_code == 200
                return False

            await until_async(ready)
            answer = await client.get("/v1/pipelines", headers=bearer())
            assert (200, True) == (answer.status_code, "strict-transport-security" in answer.headers)
            url = f"wss://127.0.0.1:{gateway.port}/ws/me"
            async with websockets.connect(url, additional_headers=bearer(), ssl=trusting) as socket:
                assert "connected" == (await hear(socket))["type"]

    asyncio.run(story())
