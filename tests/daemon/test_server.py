"""The gRPC service over an in-memory connection: calls, trust, limits, health, reflection."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from grpclib.client import UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpclib.reflection.v1.reflection_grpc import ServerReflectionStub
from grpclib.reflection.v1.reflection_pb2 import ServerReflectionRequest
from grpclib.testing import ChannelFor
from tests.daemon.daemon_parts import ADMIN, Parts, growing_log, parts, turn

from flx_api._core import Revocations
from flx_api.daemon.executions.log_file import LogFile
from flx_api.daemon.server import DaemonService, services_of
from flx_api.daemon.trust import SocketTrust, TokenTrust
from flx_api.errors import TokenRejected
from flx_api.models.topic_rules import TopicRule
from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
from flx_api.proto.flx.v1.daemon_pb2 import (
    CommandFrame,
    Event,
    LogRequest,
    Principal,
    ReplyFrame,
    RevocationsRequest,
    TellRequest,
    WatchRequest,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from grpclib.client import Channel

    from flx_api.daemon.trust import Trust

ECHO = CommandFrame(command="system.echo", args=b'{"a":1}', principal=ADMIN)


class Bytes:
    """A message that is whatever bytes a test wants to send."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802 - as a message of protobuf
        return self._data


@asynccontextmanager
async def served(folder: Path, trust: Trust | None = None) -> AsyncIterator[tuple[Parts, Channel]]:
    async with parts(folder) as daemon:
        service = DaemonService(daemon.services, daemon.dispatcher(), trust or SocketTrust())
        async with ChannelFor(services_of(service)[0]) as channel:
            yield daemon, channel


async def raw(channel: Channel, data: bytes) -> Any:
    method: Any = UnaryUnaryMethod(channel, "/flx.v1.Daemon/Execute", Bytes, ReplyFrame)
    return await method(Bytes(data))


GOOD = "header.claims.signature"


def verify(token: bytes, _now_s: float) -> tuple[dict[str, Any], str | None]:
    if token != GOOD.encode():
        reason = "malformed_token"
        raise TokenRejected(reason)
    return {"sub": "bob", "tenant": "default", "roles": ("viewer",), "exp": 2e9}, "k1"


TCP = TokenTrust(b"shared", verify, lambda: 1e9, Revocations())


def test_execute_answers_ok_and_puts_errors_in_the_reply(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (_, channel):
            stub = DaemonStub(channel)
            assert (await stub.Execute(ECHO)).result == b'{"a":1}'
            assert (await stub.Execute(CommandFrame(command="nope", principal=ADMIN))).code == "unknown_command"

    asyncio.run(story())


def test_a_message_beyond_the_limit_is_refused_and_the_connection_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (_, channel):
            stub = DaemonStub(channel)
            for _ in range(3):
                with pytest.raises((GRPCError, StreamTerminatedError)) as refused:
                    await raw(channel, b"\0" * (5 * 1024 * 1024))
                if isinstance(refused.value, GRPCError):
                    assert refused.value.status is Status.RESOURCE_EXHAUSTED
                # What was refused gave its flow control window back.
                big = CommandFrame(command="system.echo", args=b'{"a":"' + b"x" * 3_000_000 + b'"}', principal=ADMIN)
                assert len((await stub.Execute(big)).result) > 3_000_000

    asyncio.run(story())


def test_bytes_that_are_no_message_are_invalid(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (_, channel):
            with pytest.raises(GRPCError) as refused:
                await raw(channel, b"\xff\xff\xff")
            assert refused.value.status is Status.INVALID_ARGUMENT
            # A field of a newer version is no fault.
            assert (await raw(channel, ECHO.SerializeToString() + b"\xfa\x07\x01x")).result == b'{"a":1}'

    asyncio.run(story())


def test_revocations_are_given_to_gateways_only_with_the_number_they_hold_at(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path, TCP) as (daemon, channel):
            stub = DaemonStub(channel)
            gateway = {"x-flx-gateway-token": "shared"}
            (only,) = await stub.Revocations(RevocationsRequest(), metadata=gateway)
            assert (list(only.revocations), only.epoch) == ([], daemon.journal.epoch)
            await daemon.result("token.revoke", {"jti": "a", "expires_at": 1_800_000_000})
            other = Principal(subject="eve", tenant="other", roles=["admin"])
            await daemon.result("token.revoke", {"subject": "b", "issued_before": 5}, principal=other)
            await daemon.result("token.revoke", {"key": "k"})
            batches = await stub.Revocations(RevocationsRequest(), metadata=gateway)
            assert {batch.journal_seq for batch in batches} == {3}
            found = [item for batch in batches for item in batch.revocations]
            assert [(item.kind, item.value, item.tenant) for item in found] == [
                ("jti", "a", "default"),
                ("subject", "b", "other"),
                ("key", "k", "default"),
            ]
            assert found[0].expires_at == 1_800_000_000
            assert not found[0].HasField("issued_before")
            assert found[1].issued_before == 5
            assert not found[2].HasField("expires_at")
            for metadata in ({}, {"authorization": f"Bearer {GOOD}"}):
                with pytest.raises(GRPCError) as refused:
                    await stub.Revocations(RevocationsRequest(), metadata=metadata)
                assert refused.value.status in {Status.UNAUTHENTICATED, Status.PERMISSION_DENIED}

    asyncio.run(story())


def test_only_gateways_tell_ephemeral_events_and_rules_keep_them_from_others(tmp_path: Path) -> None:
    rules = (TopicRule("app.few.*", subscribe=("chief",)),)

    async def story() -> None:
        async with parts(tmp_path) as daemon:
            settings = msgspec.structs.replace(daemon.services.settings, topics=rules)
            services = dataclasses.replace(daemon.services, settings=settings)
            service = DaemonService(services, daemon.dispatcher(), TCP)
            async with ChannelFor(services_of(service)[0]) as channel:
                stub = DaemonStub(channel)
                gateway, client = {"x-flx-gateway-token": "shared"}, {"authorization": f"Bearer {GOOD}"}
                own = "user.bob"
                topics = ("app.few.x", "presence_events", "app.many", "user.bert", own)
                told = TellRequest(events=[Event(tenant="default", topic=topic, data=b"1") for topic in topics])
                with pytest.raises(GRPCError) as refused:
                    await stub.Tell(told, metadata=client)
                assert refused.value.status is Status.PERMISSION_DENIED
                assert 0 == services.ephemeral.seq
                for metadata, expected in ((gateway, list(topics)), (client, ["app.many", own])):
                    async with stub.Watch.open(metadata=metadata) as stream:
                        await stream.send_message(WatchRequest(topics=["*"], ephemeral=True), end=True)
                        await stream.recv_message()
                        await stub.Tell(told, metadata=gateway)
                        batch = await stream.recv_message()
                        assert batch is not None
                        assert expected == [event.topic for event in batch.ephemeral]
                        await stream.cancel()

    asyncio.run(story())


def test_over_tcp_the_frame_is_believed_only_with_the_shared_token(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path, TCP) as (daemon, channel):
            stub = DaemonStub(channel)
            add = CommandFrame(command="user.add", principal=ADMIN)
            add.args = b'{"username":"bob","password":"correct horse","roles":["viewer"]}'
            assert (await stub.Execute(add, metadata={"x-flx-gateway-token": "shared"})).code == ""
            assert (await stub.Execute(add, metadata={"authorization": f"Bearer {GOOD}"})).code == "forbidden"
            assert (await stub.Execute(ECHO, metadata={"authorization": f"Bearer {GOOD}"})).code == ""
            login = CommandFrame(command="auth.login", args=b'{"username":"bob","password":"correct horse"}')
            assert (await stub.Execute(login)).code == ""
            bad: list[dict[str, str]] = [{}, {"x-flx-gateway-token": "no"}, {"authorization": "Bearer no"}]
            for metadata in bad:
                with pytest.raises(GRPCError) as refused:
                    await stub.Execute(ECHO, metadata=metadata)
                assert refused.value.status is Status.UNAUTHENTICATED
                with pytest.raises(GRPCError) as refused:
                    await stub.Watch(WatchRequest(topics=["*"]), metadata=metadata)
                assert refused.value.status is Status.UNAUTHENTICATED
                with pytest.raises(GRPCError) as refused:
                    await stub.Channel([], metadata=metadata)
                assert refused.value.status is Status.UNAUTHENTICATED
            assert daemon.journal.seq == 0

    asyncio.run(story())


def test_logs_follow_to_the_end_and_belong_to_their_tenant(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (daemon, channel):
            log = daemon.fake.logs["e1"] = LogFile(tmp_path / "log", tenant="default")
            stub = DaemonStub(channel)
            with growing_log(tmp_path / "log", log) as write:
                write(b"one", b"two")
                async with stub.Logs.open() as stream:
                    request = LogRequest(execution_id="e1", from_line=2, follow=True, principal=ADMIN)
                    await stream.send_message(request, end=True)
                    first = await stream.recv_message()
                    assert first is not None
                    assert (first.first_line, list(first.lines)) == (2, [b"two"])
                    write(b"three")
                    second = await stream.recv_message()
                    assert second is not None
                    assert (second.first_line, list(second.lines)) == (3, [b"three"])
                    log.finish()
                    assert await stream.recv_message() is None
            (only,) = await stub.Logs(LogRequest(execution_id="e1", limit=2, principal=ADMIN))
            assert list(only.lines) == [b"one", b"two"]
            for execution, tenant, role, status in (
                ("e1", "other", "admin", Status.NOT_FOUND),
                ("e2", "default", "admin", Status.NOT_FOUND),
                ("e1", "default", "nothing", Status.PERMISSION_DENIED),
            ):
                named = Principal(subject="s", tenant=tenant, roles=[role])
                with pytest.raises(GRPCError) as refused:
                    await stub.Logs(LogRequest(execution_id=execution, principal=named))
                assert refused.value.status is status

    asyncio.run(story())


def test_watchers_end_with_the_journal(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (daemon, channel):
            watching = asyncio.ensure_future(DaemonStub(channel).Watch(WatchRequest(topics=["*"])))
            await turn(50)
            assert not watching.done()
            await daemon.journal.close()
            with pytest.raises(GRPCError) as ended:
                await watching
            assert ended.value.status is Status.UNAVAILABLE

    asyncio.run(story())


def test_health_and_reflection(tmp_path: Path) -> None:
    async def story() -> None:
        async with served(tmp_path) as (_, channel):
            health = HealthStub(channel)
            for name in ("", "flx.v1.Daemon"):
                answer = await health.Check(HealthCheckRequest(service=name))
                assert answer.status == HealthCheckResponse.SERVING
            async with ServerReflectionStub(channel).ServerReflectionInfo.open() as stream:
                await stream.send_message(ServerReflectionRequest(list_services=""))
                listed = await stream.recv_message()
                assert listed is not None
                assert "flx.v1.Daemon" in {service.name for service in listed.list_services_response.service}
                symbol = ServerReflectionRequest(file_containing_symbol="flx.v1.Daemon")
                await stream.send_message(symbol, end=True)
                found = await stream.recv_message()
                assert found is not None
                assert b"CommandFrame" in found.file_descriptor_response.file_descriptor_proto[0]

    asyncio.run(story())
