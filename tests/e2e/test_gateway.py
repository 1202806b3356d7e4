"""The gateway as it is shipped: a real Granian process, a real Unix socket, and a daemon that does what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
import websockets
from tests.gateway_process import GatewayProcess, basic, bearer, children_of, running, token
from tests.positions import encode
from tests.small_daemon import SmallDaemon, serving, stop

from flx_api.errors import Conflict, NotFound
from flx_api.events.position import Position
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, ReplyFrame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

pytestmark = pytest.mark.e2e
JSON = {"content-type": "application/json"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Unix socket paths are limited to about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="flx") as name:
        yield Path(name)


@contextlib.asynccontextmanager
async def stack(folder: Path, **settings: str) -> AsyncIterator[tuple[SmallDaemon, GatewayProcess, httpx.AsyncClient]]:
    daemon = SmallDaemon()
    async with (
        serving(daemon, folder / "d.sock"),
        running(folder / "d.sock", folder, settings) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=10) as client,
    ):
        yield daemon, gateway, client


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """A response that is a whole problem document of this status and code."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), (
        response.text
    )
    document: dict[str, Any] = response.json()
    assert document["code"] == code, document
    assert document["status"] == status
    assert document["request_id"] == response.headers["x-request-id"]
    assert {"type", "title", "detail", "retryable"} <= set(document)
    return document


# --- bad inputs, row by row ------------------------------------------------------------------------------------------

EXECUTE = "/v1/execute"
BODY = b'{"command":"system.echo","args":{}}'

# ruff: noqa: E501, ISC004 - a table is read along its rows
BAD: list[tuple[str, str, str, dict[str, str], bytes | None, int, str]] = [
    ("H10 nul", "GET", "/v1/%00", bearer(), None, 404, "not_found"),
    ("H10 not utf-8", "GET", "/v1/pipelines/%ff", bearer(), None, 404, "not_found"),
    ("H10 encoded dots", "GET", "/v1/%2e%2e%2fmetrics", bearer(), None, 404, "not_found"),
    ("H10 double slash", "GET", "//evil/", bearer(), None, 404, "not_found"),
    ("H10 path parameters", "GET", "/v1/;/..;/health", bearer(), None, 404, "not_found"),
    ("H10 encoded slash", "GET", "/v1/pipelines/a%2fb", bearer(), None, 404, "not_found"),
    ("H10 twice encoded", "GET", "/v1/pipelines/a%252fb", bearer(), None, 404, "not_found"),
    ("H10 unknown", "GET", "/v1/nothing", {}, None, 404, "not_found"),
    ("H13 wrong method", "DELETE", EXECUTE, {}, None, 405, "method_not_allowed"),
    ("H13 unknown method", "BREW", "/health", {}, None, 405, "method_not_allowed"),
    ("H14 too large by length", "POST", EXECUTE, {**bearer(), **JSON}, b" " * 70_000, 413, "payload_too_large"),
    ("H17 gzip", "POST", EXECUTE, {**bearer(), **JSON, "content-encoding": "gzip"}, BODY, 415, "unsupported_encoding"),
    ("J01 broken", "POST", EXECUTE, {**bearer(), **JSON}, b"{]", 400, "invalid_json"),
    ("J01 truncated", "POST", EXECUTE, {**bearer(), **JSON}, BODY[:-1], 400, "invalid_json"),
    ("J01 trailing", "POST", EXECUTE, {**bearer(), **JSON}, BODY + b"x", 400, "invalid_json"),
    ("J02 empty", "POST", EXECUTE, {**bearer(), **JSON}, b"", 400, "invalid_json"),
    ("J02 empty login", "POST", "/auth/login", {}, b"", 400, "invalid_json"),
    ("J03 NaN", "POST", "/system.echo", {**bearer(), **JSON}, b'{"a":NaN}', 400, "invalid_json"),
    ("J03 1e400", "POST", "/system.echo", {**bearer(), **JSON}, b'{"a":1e400}', 400, "invalid_json"),
    ("J05 deep", "POST", "/system.echo", {**bearer(), **JSON}, b'{"a":' + b"[" * 65 + b"]" * 65 + b"}", 400, "json_too_deep"),
    ("J05 very deep", "POST", "/system.echo", {**bearer(), **JSON}, b"[" * 30_000, 400, "json_too_deep"),
    ("J06 same key twice", "POST", "/system.echo", {**bearer(), **JSON}, b'{"a":1,"a":2}', 400, "invalid_json"),
    ("J08 no media type", "POST", EXECUTE, bearer(), BODY, 415, "unsupported_media_type"),
    ("J08 form", "POST", EXECUTE, {**bearer(), "content-type": "text/plain"}, BODY, 415, "unsupported_media_type"),
    ("J08 charset", "POST", EXECUTE, {**bearer(), "content-type": "application/json; charset=utf-16"}, BODY, 415,
     "unsupported_media_type"),
    ("J09 unknown field", "POST", EXECUTE, {**bearer(), **JSON}, b'{"command":"system.echo","is_admin":true}', 422,
     "validation_failed"),
    ("J09 id in the body", "PATCH", "/v1/pipelines/x", {**bearer(), **JSON}, b'{"id":"y"}', 422, "validation_failed"),
    ("J12 array", "POST", EXECUTE, {**bearer(), **JSON}, b"[]", 422, "validation_failed"),
    ("J12 array as arguments", "POST", "/system.echo", {**bearer(), **JSON}, b"[]", 422, "validation_failed"),
    ("J12 null for required", "POST", EXECUTE, {**bearer(), **JSON}, b'{"command":null}', 422, "validation_failed"),
    ("unknown parameter", "GET", "/v1/pipelines?wrong=1", bearer(), None, 422, "validation_failed"),
    ("parameter twice", "GET", "/v1/pipelines?limit=1&limit=2", bearer(), None, 422, "validation_failed"),
    ("limit", "GET", "/v1/pipelines?limit=0", bearer(), None, 422, "validation_failed"),
    ("unknown command", "POST", "/pipeline.rum", bearer(), None, 404, "unknown_command"),
    ("T01 no token", "GET", "/v1/pipelines", {}, None, 401, "missing_token"),
    ("T02 basic", "GET", "/v1/pipelines", {"authorization": basic()}, None, 401, "missing_token"),
    ("T02 nothing", "GET", "/v1/pipelines", {"authorization": "Bearer"}, None, 401, "invalid_token"),
    ("T02 two words", "GET", "/v1/pipelines", {"authorization": "Bearer x y"}, None, 401, "invalid_token"),
    ("T15 two parts", "GET", "/v1/pipelines", {"authorization": "Bearer a.b"}, None, 401, "invalid_token"),
    ("C01 expired", "GET", "/v1/pipelines", {"authorization": f"Bearer {token(ttl_s=-1)}"}, None, 401, "invalid_token"),
    ("A03 viewer", "POST", "/v1/pipelines", {**bearer(roles=("viewer",)), **JSON}, b'{"name":"x"}', 403, "forbidden"),
    ("A03 no role", "GET", "/v1/pipelines", bearer(roles=()), None, 403, "forbidden"),
    ("A03 spelling", "GET", "/V1/Pipelines", bearer(), None, 404, "not_found"),
    ("A03 trailing slash", "GET", "/v1/pipelines/", bearer(), None, 404, "not_found"),
    ("A03 encoded letter", "GET", "/v1/%70ipelines", bearer(), None, 404, "not_found"),
    ("A03 override", "POST", "/health", {"x-http-method-override": "GET"}, None, 405, "method_not_allowed"),
    ("A09 long key", "POST", EXECUTE, {**bearer(), **JSON, "idempotency-key": "k" * 10_000}, BODY, 400, "invalid_request"),
    ("A10 stale revision", "PATCH", "/v1/pipelines/x", {**bearer(), **JSON, "if-match": "W/old"}, b"{}", 412,
     "precondition_failed"),
    ("WebSocket path without upgrade", "POST", "/ws/me", bearer(), None, 404, "not_found"),
    ("docs: not a file", "GET", "/docs/secret.key", {}, None, 404, "not_found"),
    ("docs: climbing", "GET", "/docs/..%2f..%2fsecret", {}, None, 404, "not_found"),
]  # fmt: skip

RAW: list[tuple[str, bytes, int, str]] = [
    ("H01 no host", b"GET /health HTTP/1.1\r\n\r\n", 400, "invalid_host"),
    ("H02 two hosts", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid_host"),
    ("H02 host is none", b"GET /health HTTP/1.1\r\nHost: a@b/c\r\n\r\n", 400, "invalid_host"),
    ("T02 two tokens", b"GET /v1/pipelines HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nAuthorization: Bearer a\r\n\r\n",
     400, "invalid_request"),
    ("H07 chunk size", b"POST /v1/execute HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
     b"Content-Type: application/json\r\nAuthorization: Bearer TOKEN\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n", 400, "invalid_request"),
    ("H14 too large by chunks", b"POST /v1/execute HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
     b"Content-Type: application/json\r\nAuthorization: Bearer TOKEN\r\n\r\n" + b"10000\r\n" + b" " * 65_536 + b"\r\n"
     + b"10000\r\n" + b" " * 65_536 + b"\r\n", 413, "payload_too_large"),
]  # fmt: skip


async def raw(gateway: GatewayProcess, request: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes as they are; status and document of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(request.replace(b"TOKEN", token().encode()))
        await writer.drain()
        async with asyncio.timeout(10):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            status, body = int(head.split()[1]), await reader.readexactly(length)
            # What the server refuses by itself never comes to us: its answer has no document.
            return status, msgspec.json.decode(body) if b"{" in body else {"code": body.decode()}
    finally:
        writer.close()


def test_bad_inputs_get_their_answers(folder: Path) -> None:
    async def story() -> None:
        async with stack(folder, body_limit="65536") as (daemon, gateway, client):
            wrong: list[str] = []
            for name, method, path, headers, content, status, code in BAD:
                request = httpx.Request(
                    method, httpx.URL(gateway.url).copy_with(raw_path=path.encode()), headers=headers, content=content
                )
                response = await client.send(request)
                try:
                    document = problem(response, status, code)
                    assert content is None or len(content) < 8 or content.decode() not in response.text
                    if status == 401:
                        given = code == "invalid_token"
                        expected = 'Bearer error="invalid_token"' if given else "Bearer"
                        assert response.headers["www-authenticate"] == expected
                    if status == 405:
                        assert "GET" in response.headers["allow"] or "POST" in response.headers["allow"]
                    assert document["retryable"] is False
                except (AssertionError, KeyError) as error:
                    wrong.append(f"{name}: {error}")
            for name, request_bytes, status, code in RAW:
                got, document = await raw(gateway, request_bytes)
                if (got, document["code"]) != (status, code):
                    wrong.append(f"{name}: {got} {document}")
            assert wrong == []
            assert daemon.commands() == []

    asyncio.run(story())


def test_a_command_travels_and_comes_back(folder: Path) -> None:
    async def story() -> None:
        async with stack(folder) as (daemon, _, client):
            daemon.answers["pipeline.run"] = lambda _: ReplyFrame(result=b'{"id":"x1"}', accepted_id="x1")
            headers = {**bearer("anna", ("operator",)), "x-request-id": "abc.1", "idempotency-key": "k1"}
            echo = await client.post(
                "/v1/execute", headers=headers, json={"command": "system.echo", "args": {"ä": [1]}}
            )
            assert (echo.status_code, echo.json()["result"], echo.json()["status"]) == (200, {"ä": [1]}, "ok")
            assert echo.headers["x-request-id"] == echo.json()["meta"]["request_id"] == "abc.1"
            assert echo.headers["ratelimit-policy"] == '"per-subject";q=3000;w=60'
            assert echo.headers["server"] == "flx"
            for url in ("/v1/commands/pipeline.run", "/pipeline.run"):
                run = await client.post(url, headers=headers, json={"id": "p"})
                assert (run.status_code, run.headers["location"]) == (202, "/v1/executions/x1")
                assert (run.json()["id"], run.json()["status"]) == ("x1", "accepted")
            first = daemon.commands()[0]
            assert (first.principal.subject, list(first.principal.roles)) == ("anna", ["operator"])
            assert (first.idempotency_key, first.request_id, first.client_address) == ("k1", "abc.1", "127.0.0.1")
            assert abs(first.deadline_unix_ms / 1000 - time.time() - 30) < 5

    asyncio.run(story())


def test_resources_are_commands(folder: Path) -> None:
    async def story() -> None:
        async with stack(folder) as (daemon, _, client):
            pipeline = b'{"id":"p","revision":3}'
            daemon.answers["pipeline.create"] = daemon.answers["pipeline.get"] = daemon.answers["pipeline.update"] = (
                lambda _: ReplyFrame(result=pipeline)
            )
            daemon.answers["execution.wait"] = lambda _: ReplyFrame(result=b'{"id":"x","status":"running"}')
            daemon.answers["execution.cancel"] = lambda _: ReplyFrame(result=b'{"id":"x","status":"cancelled"}')
            daemon.answers["execution.get"] = lambda _: NotFound()
            daemon.answers["pipeline.run"] = lambda _: Conflict(code="already_running")
            headers = bearer()
            of = await client.get("/v1/pipelines/p%20q/executions", headers=headers)
            assert (of.status_code, of.json()["pipeline"]) == (200, "p q")
            made = await client.post("/v1/pipelines", headers=headers, json={"name": "p"})
            assert (made.status_code, made.headers["location"], made.headers["etag"]) == (201, "/v1/pipelines/p", '"3"')
            same = await client.get("/v1/pipelines/p", headers={**headers, "if-none-match": '"3"'})
            assert (same.status_code, same.content) == (304, b"")
            await client.patch("/v1/pipelines/p", headers={**headers, "if-match": '"2"'}, json={"description": "d"})
            assert msgspec.json.decode(daemon.commands()[-1].args) == {"description": "d", "id": "p", "revision": 2}
            daemon.answers["pipeline.delete"] = lambda _: Conflict(code="precondition_failed")
            stale = await client.delete("/v1/pipelines/p", headers={**headers, "if-match": '"2"'})
            problem(stale, 412, "precondition_failed")
            await client.get("/v1/executions?limit=7&status=failed", headers=headers)
            assert msgspec.json.decode(daemon.commands()[-1].args)["limit"] == 7
            waiting = await client.get("/v1/executions/x/wait?timeout_ms=5", headers=headers)
            assert (waiting.status_code, waiting.headers["location"]) == (202, "/v1/executions/x")
            assert (await client.delete("/v1/executions/x", headers=headers)).status_code == 200
            problem(await client.get("/v1/executions/a%20b", headers=headers), 404, "not_found")
            assert msgspec.json.decode(daemon.commands()[-1].args) == {"id": "a b"}
            running_ = await client.post("/v1/pipelines/p/run", headers=headers)
            assert problem(running_, 409, "already_running")["retryable"] is True
            head = await client.head("/v1/pipelines/p", headers=headers)
            assert (head.status_code, head.content) == (200, b"")

    asyncio.run(story())


def test_logs_stream_until_the_run_is_over(folder: Path) -> None:
    async def story() -> None:
        async with stack(folder) as (daemon, gateway, client):
            await daemon.log("x", b"one", b"two")
            page = await client.get("/v1/executions/x/logs?from=2", headers=bearer())
            assert page.text == '{"line":2,"text":"two"}\n'
            assert page.headers["content-type"] == "application/x-ndjson"
            headers = {**bearer(), "accept": "text/plain"}
            async with client.stream("GET", "/v1/executions/x/logs?follow=true", headers=headers) as stream:
                lines = stream.aiter_lines()
                assert [await anext(lines), await anext(lines)] == ["one", "two"]
                await daemon.log("x", b"three")
                assert await anext(lines) == "three"
                await daemon.finish("x")
                assert [line async for line in lines] == []
            async with client.stream("GET", "/v1/executions/y/logs?follow=true", headers=headers) as stream:
                drain(gateway)
                with pytest.raises(httpx.RemoteProtocolError):
                    await anext(stream.aiter_lines())
            problem(await client.get("/v1/executions/x/logs?from=0", headers=bearer()), 422, "validation_failed")

    asyncio.run(story())


def test_limits_are_told_and_kept(folder: Path) -> None:
    async def story() -> None:
        limits = '[{"name":"few","by":"subject","limit":3,"window":"60s"}]'
        async with stack(folder, rate_limits=limits) as (_, _gateway, client):
            answers = [await client.get("/v1/pipelines", headers=bearer("anna")) for _ in range(4)]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
            assert answers[0].headers["ratelimit"].startswith('"few";r=2;t=')
            assert problem(answers[3], 429, "rate_limited")["retryable"] is True
            assert 1 <= int(answers[3].headers["retry-after"]) <= 60
            assert answers[3].headers["ratelimit-policy"] == '"few";q=3;w=60'
            assert (await client.get("/v1/pipelines", headers=bearer("bert"))).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert 'flx_refusals_total{reason="rate_limited"} 1.0' in metrics
            assert 'flx_http_requests_total{method="GET",route="/v1/pipelines",status="2xx"} 4.0' in metrics

    asyncio.run(story())


def test_origins_and_hosts_are_exact(folder: Path) -> None:
    async def story() -> None:
        settings = {"cors_origins": "https://app.example.com", "trusted_hosts": "127.0.0.1"}
        async with stack(folder, **settings) as (_, gateway, client):
            ask = {"access-control-request-method": "POST"}
            good = await client.options("/v1/execute", headers={"origin": "https://app.example.com", **ask})
            assert good.status_code == 204
            assert good.headers["access-control-allow-origin"] == "https://app.example.com"
            assert "POST" in good.headers["access-control-allow-methods"]
            for origin in ("https://app.example.com.evil", "null", "https://APP.example.com"):
                bad = await client.options("/v1/execute", headers={"origin": origin, **ask})
                assert "access-control-allow-origin" not in bad.headers
                assert bad.headers["vary"] == "Origin"
            problem(await client.get("/health", headers={"host": "elsewhere"}), 400, "invalid_host")
            for origin in ("https://evil.example", "null"):
                assert await refusal(gateway, "me", {**bearer(), "origin": origin}) == (403, "origin_not_allowed")

    asyncio.run(story())


def test_the_documentation_needs_no_other_site(folder: Path) -> None:
    async def story() -> None:
        async with stack(folder) as (_, _gateway, client):
            page = await client.get("/docs")
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert "script-src 'self'" in page.headers["content-security-policy"]
            assert "http://" not in page.text
            assert "https://" not in page.text
            for name, kind in (
                ("swagger-ui.css", "text/css"),
                ("swagger-ui-bundle.js", "text/javascript"),
                ("start.js", "text/javascript"),
            ):
                asset = await client.get(f"/docs/{name}")
                assert (asset.status_code, asset.headers["content-type"].split(";")[0]) == (200, kind)
            document = (await client.get("/openapi.json")).json()
            assert document["openapi"] == "3.1.0"

    asyncio.run(story())


def test_a_lost_daemon_is_said_and_found_again(folder: Path) -> None:
    async def story() -> None:
        daemon = SmallDaemon()
        async with (
            running(folder / "d.sock", folder, ready=False) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=10) as client,
        ):
            assert (await gateway.ready(503)).json()["checks"]["daemon"]["ok"] is False
            assert (await client.get("/health")).status_code == 200
            began = time.monotonic()
            problem(await client.get("/v1/pipelines", headers=bearer()), 503, "upstream_unavailable")
            assert time.monotonic() - began < 1
            async with serving(daemon, folder / "d.sock") as server:
                await gateway.ready()
                assert (await client.get("/v1/pipelines", headers=bearer())).status_code == 200
                daemon.answers["pipeline.run"] = lambda _: None
                pending = asyncio.create_task(client.post("/v1/pipelines/p/run", headers=bearer()))
                await until(lambda: any(frame.command == "pipeline.run" for frame in daemon.frames))
                await stop(server)
                problem(await pending, 503, "upstream_unavailable")
                await gateway.ready(503, within_s=5)
            async with serving(daemon, folder / "d.sock"):
                await gateway.ready()
                problem(
                    await client.post("/v1/pipelines/p/run?deadline_ms=50", headers=bearer()),
                    504,
                    "deadline_exceeded",
                )

    asyncio.run(story())


# --- realtime --------------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


def drain(gateway: GatewayProcess) -> None:
    """Send SIGUSR1 to the workers."""
    for child in children_of(gateway.process.pid):
        os.kill(child, signal.SIGUSR1)


def connect(gateway: GatewayProcess, client_id: str = "me", **options: Any) -> Any:
    options.setdefault("additional_headers", bearer())
    return websockets.connect(f"ws://127.0.0.1:{gateway.port}/ws/{client_id}", **options)


async def refusal(gateway: GatewayProcess, client_id: str, headers: dict[str, str]) -> tuple[int, str]:
    """Status and code of a connection that is not let in."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        await connect(gateway, client_id, additional_headers=headers)
    response = caught.value.response
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, msgspec.json.decode(bytes(response.body or b""))["code"]


async def say(socket: Any, **message: Any) -> dict[str, Any]:
    """Send a message; the answer."""
    await socket.send(msgspec.json.encode(message).decode())
    return await hear(socket)


async def hear(socket: Any) -> dict[str, Any]:
    async with asyncio.timeout(10):
        message: dict[str, Any] = msgspec.json.decode(await socket.recv())
        return message


def test_the_plain_protocol(folder: Path) -> None:
    async def story() -> None:
        async with stack(folder) as (daemon, gateway, client), connect(gateway) as socket:
            assert await hear(socket) == {"type": "connected", "message": "connected", "client_id": "me"}
            assert (await say(socket, type="ping"))["type"] == "pong"
            assert await say(socket, type="hello", a=1) == {"type": "echo", "data": {"type": "hello", "a": 1}}
            assert (await say(socket, type="subscribe"))["code"] == "invalid_request"
            assert (await say(socket, type="subscribe", event="nothing"))["code"] == "not_found"
            assert (await say(socket, type="subscribe", event="execution.*"))["event"] == "execution.*"
            assert (await say(socket, type="subscribe", event="pipeline_events"))["type"] == "subscribed"
            await daemon.publish("pipeline_events", {"n": 0}, tenant="other")
            await daemon.publish("execution.x.status", {"n": 1})
            await daemon.publish("pipeline_events", {"n": 2})
            await daemon.log("x", b"a line")
            events = [await hear(socket) for _ in range(3)]
            assert [(event["event"], event["data"]) for event in events] == [
                ("execution.x.status", {"n": 1}),
                ("pipeline_events", {"n": 2}),
                ("execution.x.log", "a line"),
            ]
            assert {"type", "seq", "prev", "epoch", "ts", "pos"} <= set(events[0])
            assert (await say(socket, type="unsubscribe", event="pipeline_events"))["type"] == "unsubscribed"
            ticket = (await client.post("/v1/ws-ticket", headers=bearer())).json()["ticket"]
            async with connect(gateway, f"t?ticket={ticket}", additional_headers={}) as other:
                assert (await hear(other))["client_id"] == "t"
            assert await refusal(gateway, f"t?ticket={ticket}", {}) == (401, "invalid_token")
            offered = [websockets.Subprotocol("flx.v1"), websockets.Subprotocol(f"bearer.{token()}")]
            async with connect(gateway, "s", additional_headers={}, subprotocols=offered) as other:
                assert other.subprotocol == "flx.v1"
                assert (await hear(other))["client_id"] == "s"

    asyncio.run(story())


def test_connections_are_refused_before_they_begin(folder: Path) -> None:
    async def story() -> None:
        async with stack(folder) as (_, gateway, _client), connect(gateway, "mine"):
            assert await refusal(gateway, "me", {}) == (401, "missing_token")
            assert await refusal(gateway, "me", {"authorization": "Bearer a.b.c"}) == (401, "invalid_token")
            assert await refusal(gateway, "mine", bearer("bert")) == (409, "client_id_taken")
            assert await refusal(gateway, "a%20b", bearer()) == (400, "invalid_request")
            assert await refusal(gateway, "a/b", bearer()) == (404, "not_found")
            async with connect(gateway, "mine") as again:
                assert (await hear(again))["type"] == "connected"

    asyncio.run(story())


def test_connections_end_for_a_reason(folder: Path) -> None:
    async def code_of(socket: Any) -> int:
        with pytest.raises(websockets.ConnectionClosed) as caught:  # noqa: PT012 - whatever comes before does not matter
            while True:
                await hear(socket)
        assert caught.value.rcvd is not None
        return int(caught.value.rcvd.code)

    async def story() -> None:
        async with stack(folder) as (_, gateway, _client):
            async with connect(gateway) as socket:
                await socket.send("x" * 65_537)
                assert await code_of(socket) == 1009
            async with connect(gateway) as socket:
                for _ in range(11):
                    await socket.send("not json")
                assert await code_of(socket) == 1008
            headers = {"authorization": f"Bearer {token(ttl_s=2)}"}
            async with connect(gateway, additional_headers=headers) as socket:
                assert await code_of(socket) == 4401
            async with connect(gateway) as socket:
                await hear(socket)
                drain(gateway)
                assert await code_of(socket) == 1012
            assert (await gateway.ready(503)).json()["reasons"] == ["drain: the service is stopping"]
            assert await refusal(gateway, "me", bearer()) == (503, "shutting_down")

    asyncio.run(story())


def test_a_reader_that_does_not_read_is_let_go(folder: Path) -> None:
    async def story() -> None:
        async with stack(folder) as (daemon, gateway, client):
            # It does not wait for an answer to its goodbye: the other side has left.
            slow = connect(gateway, "slow", max_queue=1, ping_interval=None, close_timeout=0.2)
            async with slow as socket, connect(gateway, "quick") as quick:
                for one in (socket, quick):
                    await hear(one)
                    await say(one, type="subscribe", event="pipeline_events")
                big = "x" * 200_000
                for number in range(60):
                    await daemon.publish("pipeline_events", {"n": number, "big": big})
                    assert (await hear(quick))["data"]["n"] == number

                async def gone() -> bool:
                    return 'flx_ws_closed_total{code="4408"} 1.0' in (await client.get("/metrics")).text

                await until_async(gone)

    asyncio.run(story())


async def until_async(condition: Callable[[], Awaitable[bool]], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.05)


def test_a_client_resumes_without_hole_or_duplicate(folder: Path) -> None:
    async def numbers(socket: Any, count: int) -> list[int]:
        return [int((await hear(socket))["data"]["n"]) for _ in range(count)]

    async def story() -> None:
        async with stack(folder) as (daemon, gateway, _client):
            async with connect(gateway) as socket:
                await hear(socket)
                await say(socket, type="subscribe", event="pipeline_events")
                for number in range(3):
                    await daemon.publish("pipeline_events", {"n": number})
                events = [await hear(socket) for _ in range(3)]
            for number in range(3, 6):
                await daemon.publish("pipeline_events", {"n": number})
            async with connect(gateway) as socket:  # from the gateway's memory
                await hear(socket)
                assert (await say(socket, type="subscribe", event="*", **{"from": events[0]["pos"]}))[
                    "type"
                ] == "subscribed"
                assert await numbers(socket, 5) == [1, 2, 3, 4, 5]
                await daemon.publish("pipeline_events", {"n": 6})
                assert await numbers(socket, 1) == [6]
            bad = "bm90IGEgcG9zaXRpb24"
            async with connect(gateway) as socket:
                await hear(socket)
                assert (await say(socket, type="subscribe", event="*", **{"from": bad}))["code"] == "invalid_request"
            # The memory of another gateway is empty, so the daemon has to tell.
            async with running(folder / "d.sock", folder) as other, connect(other) as socket:
                await hear(socket)
                await say(socket, type="subscribe", event="*", **{"from": events[0]["pos"]})
                assert await numbers(socket, 6) == [1, 2, 3, 4, 5, 6]
                await daemon.publish("pipeline_events", {"n": 7})
                assert await numbers(socket, 1) == [7]
            # A log that the new gateway never heard of: the rest comes from the daemon, what follows is live, once.
            await daemon.log("x", b"1", b"2")
            async with running(folder / "d.sock", folder) as third, connect(third) as socket:
                await hear(socket)
                seen = encode(Position("e1", 8, {"x": 1}))
                await say(socket, type="subscribe", event="execution.*", **{"from": seen})
                assert (await hear(socket))["seq"] == 2
                await daemon.log("x", b"3")
                assert (await hear(socket))["seq"] == 3

    asyncio.run(story())


def test_events_survive_a_restart_of_the_daemon(folder: Path) -> None:
    async def story() -> None:
        daemon = SmallDaemon()
        async with contextlib.AsyncExitStack() as rest:
            server = await rest.enter_async_context(serving(daemon, folder / "d.sock"))
            gateway = await rest.enter_async_context(running(folder / "d.sock", folder))
            socket = await rest.enter_async_context(connect(gateway))
            await hear(socket)
            await say(socket, type="subscribe", event="*")
            await daemon.publish("pipeline_events", {"n": 1})
            await daemon.log("x", b"1")
            assert [(await hear(socket))["seq"] for _ in range(2)] == [1, 1]
            await stop(server)
            await daemon.publish("pipeline_events", {"n": 2})
            await daemon.log("x", b"2")
            async with serving(daemon, folder / "d.sock") as again:
                assert {(event["event"], event["seq"]) for event in [await hear(socket) for _ in range(2)]} == {
                    ("pipeline_events", 2),
                    ("execution.x.log", 2),
                }
                await stop(again)
            daemon.epoch = "e2"
            async with serving(daemon, folder / "d.sock"):
                gap = await hear(socket)
                assert (gap["type"], gap["code"], gap["reason"], gap["epoch"]) == ("error", "gap", "epoch", "e2")
                await daemon.publish("pipeline_events", {"n": 3})
                assert (await hear(socket))["data"] == {"n": 3}

    asyncio.run(story())


def test_frames_of_one_moment_travel_together(folder: Path) -> None:
    async def story() -> None:
        async with stack(folder) as (daemon, _gateway, client):
            body = {"command": "system.echo", "args": {}}
            answers = await asyncio.gather(
                *(client.post("/v1/execute", headers=bearer(), json=body) for _ in range(100))
            )
            assert {answer.status_code for answer in answers} == {200}
            frames: list[CommandFrame] = daemon.commands()
            assert len({frame.seq for frame in frames}) == 100

    asyncio.run(story())
