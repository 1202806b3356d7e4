"""One connection from its opening to its end, against a daemon on a real socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.small_daemon import SmallDaemon, stop
from tests.upstream.test_channel import frame, run

from flx_api.errors import Unavailable
from flx_api.proto import http2
from flx_api.proto.flx.v1.daemon_pb2 import ReplyBatch, ReplyFrame, WatchRequest
from flx_api.upstream import connection

if TYPE_CHECKING:
    from pathlib import Path

    from grpclib.server import Server, Stream

    from flx_api.proto.flx.v1.daemon_pb2 import CommandBatch
    from flx_api.upstream.channel import Upstream


def part(server: Server) -> None:
    """Say farewell on all connections of a server, as a daemon does that stops."""
    for handler in server._handlers:
        for stream in handler._tasks:
            wire = stream.connection._connection
            assert isinstance(wire, http2.Connection)
            wire.part()
            stream.connection.flush()


def message(*frames: ReplyFrame) -> bytes:
    """What a daemon says at once."""
    whole: bytes = ReplyBatch(frames=frames).SerializeToString()
    return whole


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 - what is waited for is no event
            await asyncio.sleep(0.005)


class Late:
    """A daemon's Channel that answers `held` when the client has nothing more to say and `gate` is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = asyncio.Event()
        late = self

        async def serve(daemon: SmallDaemon, stream: Stream[CommandBatch, ReplyBatch]) -> None:
            held: list[int] = []
            async for batch in stream:
                held += [command.seq for command in batch.frames if command.command == "held"]
                others = [daemon._answer(command) for command in batch.frames]
                await stream.send_message(ReplyBatch(frames=[reply for reply in others if reply is not None]))
            await late.gate.wait()
            await stream.send_message(ReplyBatch(frames=[ReplyFrame(seq=seq, result=b"late") for seq in held]))

        monkeypatch.setattr(SmallDaemon, "Channel", serve)


def test_a_stream_is_given_up_for_a_new_one_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PROBE_EVERY_S", 0.01)
    monkeypatch.setattr(connection, "MAX_FRAMES", 5)
    late = Late(monkeypatch)

    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["held"] = lambda _: None
        (first,) = upstream._ready
        slow = asyncio.create_task(upstream.call(frame("held"), 20, read=False))
        async with asyncio.timeout(10):
            while upstream.state().pools[0].recycled < 3:
                assert b"{}" == (await upstream.call(frame(), 5, read=False)).result
        state = upstream.state().pools[0]
        assert (1, 0) == (state.ready, state.lost)
        assert first not in upstream._ready
        assert not slow.done()
        late.gate.set()
        assert b"late" == (await slow).result
        assert 0 == first.outstanding

    run(story)


def test_a_daemon_that_says_farewell_gets_nothing_new_and_gives_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FAREWELL_S", 0.2)
    late = Late(monkeypatch)

    async def story(daemon: SmallDaemon, upstream: Upstream, server: Server, _socket: Path) -> None:
        daemon.answers["held"] = lambda _: None
        stub = await upstream.stub()
        async with stub.Watch.open() as watch:
            await watch.send_message(WatchRequest(topics=["*"]), end=True)
            await watch.recv_message()
            write = asyncio.create_task(upstream.call(frame("held"), 20, read=False))
            await until(daemon.commands)
            (before,) = upstream._ready
            part(server)
            await until(lambda: before not in upstream._ready)
            # Events go on meanwhile.
            await daemon.publish("system_events", {})
            assert await watch.recv_message() is not None
            # The small daemon's server still accepts: so the next connection is there soon, and takes what is new.
            assert b"{}" == (await upstream.call(frame(), 5, read=False)).result
            assert before not in upstream._ready
            assert 1 == upstream.state().pools[0].parting
            late.gate.set()
            assert b"late" == (await write).result
            await watch.cancel()
        await until(lambda: upstream.state().pools[0].parting == 0)
        assert 0 == upstream.state().pools[0].lost

    run(story)


def test_numbers_that_run_out_are_a_farewell_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PROBE_EVERY_S", 0.01)
    monkeypatch.setattr(connection, "LAST_STREAM_ID", 3)
    monkeypatch.setattr(connection, "FAREWELL_S", 0.0)

    async def story(_daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        async with asyncio.timeout(10):
            while upstream.state().pools[0].connected < 3:
                assert b"{}" == (await upstream.call(frame(), 5, read=False)).result
        assert 0 == upstream.state().pools[0].lost

    run(story)


def test_a_message_beyond_the_limit_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon does not send one; whatever does is not listened to further."""

    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        monkeypatch.setattr("flx_api.proto.buffer.MAX_MESSAGE_BYTES", 100_000)
        daemon.answers["large"] = lambda _: ReplyFrame(result=b"x" * 100_001)
        with pytest.raises(Unavailable):
            await upstream.call(frame("large"), 5, read=False)
        await upstream.connected.wait()
        daemon.answers["large"] = lambda _: ReplyFrame(result=b"x" * 99_000)
        assert 99_000 == len((await upstream.call(frame("large"), 5, read=False)).result)
        assert 1 == upstream.state().pools[0].lost

    run(story)


def test_an_answer_on_another_stream_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams on one daemon, which answers on the wrong one."""
    monkeypatch.setattr(connection, "PROBE_EVERY_S", 60.0)

    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["held"] = lambda _: None
        call = asyncio.create_task(upstream.call(frame("held"), 5, read=False))
        await until(daemon.commands)
        (seq,) = (command.seq for command in daemon.commands())
        stranger = connection.Carrier(upstream._ready[0].connection)
        upstream.received(stranger, message(ReplyFrame(seq=seq, result=b"foreign")))
        assert not call.done()
        assert 1 == upstream.state().foreign
        upstream.received(upstream._ready[0], message(ReplyFrame(seq=seq, result=b"ours")))
        assert b"ours" == (await call).result

    run(story)


def test_the_end_of_a_stream_by_the_daemon_is_a_loss() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, server: Server, _socket: Path) -> None:
        daemon.answers["held"] = lambda _: None
        call = asyncio.create_task(upstream.call(frame("held"), 20, read=False))
        await until(daemon.commands)
        await stop(server)
        with pytest.raises(Unavailable):
            await call
        assert upstream.reason

    run(story)
