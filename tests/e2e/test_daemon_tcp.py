"""The real daemon on TCP: TLS both ways, whom it believes to be a gateway, and what any gRPC client gets (grpcio)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import uvloop
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpclib.reflection.v1.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from tests import daemon_process, gateway_process
from tests.certificates import Authority, tls
from tests.gateway_process import SECRET, bearer, token

from flx_api.config import load
from flx_api.errors import Unavailable
from flx_api.observability.metrics import Metrics
from flx_api.proto.flx.v1.daemon_pb2 import BatchFrame, CommandFrame, Principal, ReplyFrame
from flx_api.upstream import pool
from flx_api.upstream.channel import Upstream
from flx_api.upstream.endpoints import endpoints_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from tests.daemon_process import DaemonProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

ADMIN = Principal(subject="anna", tenant="default", roles=["admin"])


def play(story: Coroutine[Any, Any, None]) -> None:
    async def told() -> None:
        await story
        # A handshake that was given up is closed in the next turns.
        for _ in range(10):
            await asyncio.sleep(0)

    uvloop.run(told())


@contextlib.asynccontextmanager
async def gateway(daemon: DaemonProcess, given: dict[str, str], host: str = "localhost") -> AsyncIterator[Upstream]:
    """The upstream of a gateway with these settings."""
    environ = {f"FLX_{name.upper()}": value for name, value in given.items()}
    environ |= {"FLX_JWT_SECRET_KEY": SECRET, "FLX_GRPC_DAEMON_HOST": f"{host}:{daemon.port}"}
    upstream = Upstream(endpoints_of(load(environ), None), Metrics())
    upstream.start()
    try:
        yield upstream
    finally:
        await upstream.close()


async def whoever(upstream: Upstream) -> str:
    """Ask as an administrator; the code of the answer."""
    async with asyncio.timeout(10):
        await upstream.connected.wait()
    frame = CommandFrame(command="pipeline.list", principal=ADMIN)
    return (await upstream.call(frame, 5, read=True)).code


async def refusal(upstream: Upstream) -> str:
    """Why there is no connection, once that is known."""
    async with asyncio.timeout(10):
        while upstream.reason in {"not connected yet", pool.Pool.why_away}:  # noqa: ASYNC110 - a text is no event
            await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await upstream.call(CommandFrame(command="system.echo"), 5, read=True)
    return upstream.reason


def test_gateways_are_known_by_certificate_or_token_and_others_are_refused_with_a_reason(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    own = tls(ours.file, ours.sign("localhost", "127.0.0.1")) | {"grpc_gateway_names": "gateway.test"}
    shared = {"grpc_token_file": str(tmp_path / "daemon" / "token")}

    async def story() -> None:
        async with daemon_process.running(tmp_path / "daemon", own) as daemon:
            accepted = {
                "by certificate": tls(ours.file, ours.sign("gateway.test")),
                "by token": tls(ours.file, None) | shared,
            }
            for given in accepted.values():
                async with gateway(daemon, given) as upstream:
                    assert "" == await whoever(upstream)
            async with gateway(daemon, tls(ours.file, None) | shared, host="127.0.0.1") as upstream:
                assert "" == await whoever(upstream)
            refused = {
                "UNAUTHENTICATED": tls(ours.file, None),
                "not trusted here": tls(theirs.file, None) | shared,
                "does not accept our certificate": tls(ours.file, theirs.sign("gateway.test")),
            }
            for reason, given in refused.items():
                async with gateway(daemon, given) as upstream:
                    assert reason in await refusal(upstream)
            # A certificate of another name is a client's, not a gateway's.
            async with gateway(daemon, tls(ours.file, ours.sign("other.test"))) as upstream:
                assert "UNAUTHENTICATED" in await refusal(upstream)
            # Without TLS nothing is understood.
            async with gateway(daemon, shared) as upstream:
                assert "cannot be reached" in await refusal(upstream)

    play(story())


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    own = tls(None, authority.sign("daemon.elsewhere"))

    async def story() -> None:
        async with daemon_process.running(tmp_path / "daemon", own) as daemon:
            shared = {"grpc_token_file": str(tmp_path / "daemon" / "token")}
            async with gateway(daemon, tls(authority.file, None) | shared) as upstream:
                assert "its certificate is for another host" in await refusal(upstream)

    play(story())


def test_a_daemon_without_what_tls_needs_does_not_start(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no certificate")
    cases = {
        "FLX_GRPC_CERT_FILE: a daemon with TLS needs a certificate": {"grpc_tls": "true"},
        "FLX_GRPC_CERT_FILE: is no certificate in PEM": tls(None, (text, text)),
        "FLX_GRPC_LISTEN: is beyond this machine": {"grpc_listen": "0.0.0.0:50051"},
        "FLX_GRPC_LISTEN: the daemon cannot listen": {"grpc_listen": "192.0.2.1:50051", "grpc_insecure": "true"},
    }

    async def story() -> None:
        for number, (line, given) in enumerate(cases.items()):
            daemon = daemon_process.DaemonProcess(tmp_path / str(number), given)
            assert not await daemon.start()
            assert 2 == await daemon.process.wait()
            said = daemon.log.read_text()
            assert line in said
            assert "Traceback" not in said

    play(story())


def test_a_gateway_serves_with_two_daemons_by_certificate_while_they_come_and_go(tmp_path: Path) -> None:
    """The whole way, HTTP to daemon: /ready says who is there, and a daemon that stops is not noticed by clients."""
    authority = Authority(tmp_path / "ca")
    own = tls(authority.file, authority.sign("localhost"))

    async def story() -> None:
        async with (
            daemon_process.running(tmp_path / "one", own) as first,
            daemon_process.running(tmp_path / "two", own) as second,
        ):
            given = tls(authority.file, authority.sign("gateway.test"))
            given |= {"grpc_daemon_host": f"localhost:{first.port},localhost:{second.port}", "grpc_connections": "2"}
            async with (
                gateway_process.running(tmp_path / "no.sock", tmp_path / "data", given) as served,
                httpx.AsyncClient(base_url=served.url, headers=bearer()) as client,
            ):
                assert "2 of 2" in await note(client, "2 of 2")
                over = asyncio.Event()

                async def call() -> int:
                    count = 0
                    while not over.is_set():
                        answer = await client.post("/v1/commands/system.echo", json={"count": count})
                        assert 200 == answer.status_code, answer.text
                        assert count == answer.json()["result"]["count"]
                        count += 1
                    return count

                callers = [asyncio.create_task(call()) for _ in range(4)]
                assert 0 == await first.end()
                assert "1 of 2 daemons are connected (1: " in await note(client, "1 of 2")
                assert await first.start()
                await note(client, "2 of 2")
                assert 0 == await second.end()
                await note(client, "1 of 2")
                over.set()
                assert min(await asyncio.gather(*callers)) > 0

    async def note(client: httpx.AsyncClient, beginning: str) -> str:
        async with asyncio.timeout(20):
            while True:
                check = (await client.get("/ready")).json()["checks"]["daemon"]
                if check.get("note", "").startswith(beginning):
                    return str(check["note"])
                await asyncio.sleep(0.02)

    play(story())


async def execute(channel: grpc.aio.Channel, frame: CommandFrame, **more: Any) -> ReplyFrame:
    method = channel.unary_unary(
        "/flx.v1.Daemon/Execute",
        request_serializer=CommandFrame.SerializeToString,
        response_deserializer=ReplyFrame.FromString,
    )
    reply: ReplyFrame = await method(frame, **more)
    return reply


async def batches(channel: grpc.aio.Channel, mine: tuple[tuple[str, str], ...]) -> None:
    echo = CommandFrame(command="system.echo", args=b'{"a":1}')
    method = channel.unary_stream(
        "/flx.v1.Daemon/ExecuteBatch",
        request_serializer=BatchFrame.SerializeToString,
        response_deserializer=ReplyFrame.FromString,
    )
    forged = CommandFrame(command="user.add", principal=ADMIN)
    batch = BatchFrame(frames=[echo, forged, echo], ordered=True, fail_fast=True)
    found = [(reply.seq, reply.code) async for reply in method(batch, metadata=mine)]
    assert [(1, ""), (2, "forbidden"), (3, "not_attempted")] == found
    numbered = [CommandFrame(command="system.echo", args=b'{"n":%d}' % number) for number in range(1, 501)]
    many = {reply.seq: reply.result async for reply in method(BatchFrame(frames=numbered), metadata=mine)}
    assert {number: b'{"n":%d}' % number for number in range(1, 501)} == many
    for wrong, metadata, status in (
        (BatchFrame(), mine, grpc.StatusCode.INVALID_ARGUMENT),
        (batch, None, grpc.StatusCode.UNAUTHENTICATED),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [reply async for reply in method(wrong, metadata=metadata)]
        assert status == refused.value.code()


def test_a_stock_client_with_a_token_of_its_own_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    own = tls(authority.file, authority.sign("localhost"))
    echo = CommandFrame(command="system.echo", args=b'{"a":1}')

    async def story() -> None:
        async with daemon_process.running(tmp_path / "daemon", own) as daemon:
            credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
            limits = [("grpc.max_send_message_length", -1)]
            async with grpc.aio.secure_channel(f"localhost:{daemon.port}", credentials, options=limits) as channel:
                mine = (("authorization", f"Bearer {token(roles=('viewer',))}"),)
                assert b'{"a":1}' == (await execute(channel, echo, metadata=mine)).result
                # What a frame says about its sender is not believed.
                forged = CommandFrame(command="user.add", principal=ADMIN)
                assert "forbidden" == (await execute(channel, forged, metadata=mine)).code
                unknown = await execute(channel, CommandFrame(command="no.such"), metadata=mine)
                assert "unknown_command" == unknown.code == json.loads(unknown.problem)["code"]
                late = CommandFrame(command="system.echo", deadline_unix_ms=int(time.time() * 1000) - 1)
                assert "deadline_exceeded" == (await execute(channel, late, metadata=mine)).code
                largest = CommandFrame(command="system.echo", args=b'{"a":"' + b"x" * 3_000_000 + b'"}')
                assert 3_000_000 < len((await execute(channel, largest, metadata=mine)).result)
                await batches(channel, mine)
                await statuses(channel, mine)
                daemon.send(signal.SIGSTOP)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await execute(channel, echo, metadata=mine, timeout=0.2)
                assert grpc.StatusCode.DEADLINE_EXCEEDED == refused.value.code()
                daemon.send(signal.SIGCONT)
                assert b'{"a":1}' == (await execute(channel, echo, metadata=mine)).result
                await health_and_reflection(channel)

    async def statuses(channel: grpc.aio.Channel, mine: tuple[tuple[str, str], ...]) -> None:
        ended = (("authorization", f"Bearer {token(ttl_s=-1)}"),)
        huge = CommandFrame(command="system.echo", args=b'{"a":"' + b"x" * 5_000_000 + b'"}')
        cases = [
            (echo, None, grpc.StatusCode.UNAUTHENTICATED),
            (echo, ended, grpc.StatusCode.UNAUTHENTICATED),
            (echo, (("x-flx-gateway-token", "guess"),), grpc.StatusCode.UNAUTHENTICATED),
            (huge, mine, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ]
        for frame, metadata, status in cases:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await execute(channel, frame, metadata=metadata)
            assert status == refused.value.code()

    async def health_and_reflection(channel: grpc.aio.Channel) -> None:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        assert HealthCheckResponse.SERVING == (await check(HealthCheckRequest(service="flx.v1.Daemon"))).status
        reflect = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
        asked = [
            ServerReflectionRequest(list_services=""),
            ServerReflectionRequest(file_containing_symbol="flx.v1.Daemon"),
        ]
        listed, found = [answer async for answer in reflect(iter(asked))]
        assert "flx.v1.Daemon" in {service.name for service in listed.list_services_response.service}
        assert b"CommandFrame" in found.file_descriptor_response.file_descriptor_proto[0]

    play(story())
