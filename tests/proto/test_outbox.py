"""What leaves on a stream, over a real connection: at once when it may, in order when it has to wait."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.exceptions import StreamTerminatedError
from tests.small_daemon import SmallDaemon, serving

from flx_api.proto import outbox as module
from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
from flx_api.proto.flx.v1.daemon_pb2 import CommandBatch, CommandFrame
from flx_api.proto.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Story = Callable[[SmallDaemon, Any, Channel], Awaitable[None]]


def pack(frames: list[CommandFrame]) -> list[tuple[CommandBatch, int]]:
    return [(CommandBatch(frames=frames), len(frames))]


def frame(seq: int, size: int = 2) -> CommandFrame:
    return CommandFrame(seq=seq, command="system.echo", args=b"x" * size)


def run(story: Story) -> None:
    async def told(socket: Path) -> None:
        daemon = SmallDaemon()
        async with serving(daemon, socket):
            channel = Channel(path=str(socket), config=Configuration(http2_connection_window_size=65_535))
            try:
                async with DaemonStub(channel).Channel.open() as stream:
                    await stream.send_request()
                    await story(daemon, stream, channel)
                    if stream._stream.closable:
                        await stream.cancel()
            finally:
                channel.close()

    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        uvloop.run(told(Path(folder) / "d.sock"))


async def replies(stream: Any, count: int) -> list[int]:
    seqs: list[int] = []
    while len(seqs) < count:
        seqs += [reply.seq for reply in (await stream.recv_message()).frames]
    return seqs


def test_what_comes_within_a_tick_leaves_as_one_message_without_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(daemon: SmallDaemon, stream: Any, _channel: Channel) -> None:
        left: list[int] = []
        outbox = Outbox(stream, pack, left.append)
        for seq in (1, 2, 3):
            outbox.put(frame(seq))
        assert [] == left
        await asyncio.sleep(0)
        outbox.put(frame(4))
        await asyncio.sleep(0)
        assert [3, 1] == left
        assert [1, 2, 3, 4] == await replies(stream, 4)
        assert sum(daemon.batch_sizes) == 4
        assert len(daemon.batch_sizes) == 2

    run(story)


def test_what_has_to_wait_keeps_its_order() -> None:
    """Messages larger than a frame and a window, with small ones put in behind them while they wait."""

    async def story(_daemon: SmallDaemon, stream: Any, _channel: Channel) -> None:
        left: list[int] = []
        outbox = Outbox(stream, pack, left.append)
        writer = asyncio.create_task(outbox.write())
        seq = 0
        for size in (2, 100_000, 2, 200_000, 2, 2, 20_000, 2):
            seq += 1
            outbox.put(frame(seq, size))
            await asyncio.sleep(0)
        assert list(range(1, seq + 1)) == await replies(stream, seq)
        assert seq == sum(left)
        # Nothing waits any more: the short way again.
        outbox.put(frame(99))
        await asyncio.sleep(0)
        assert seq + 1 == sum(left)
        assert [99] == await replies(stream, 1)
        writer.cancel()

    run(story)


def test_a_stream_that_has_ended_fails_the_writer() -> None:
    async def story(_daemon: SmallDaemon, stream: Any, channel: Channel) -> None:
        outbox = Outbox(stream, pack)
        writer = asyncio.create_task(outbox.write())
        outbox.put(frame(1))
        await replies(stream, 1)
        channel.close()
        outbox.put(frame(2))
        with pytest.raises(StreamTerminatedError):
            await asyncio.wait_for(writer, 5)

    run(story)


def test_a_message_that_would_have_to_wait_is_not_sent_now() -> None:
    async def story(_daemon: SmallDaemon, stream: Any, _channel: Channel) -> None:
        wire = stream._stream
        small, large = b"x" * 100, b"x" * (wire._h2_connection.outbound_flow_control_window - 4)
        assert not module.send_now(stream, large)
        wire.connection.write_ready.clear()
        assert not module.send_now(stream, small)
        wire.connection.write_ready.set()
        window = wire._h2_connection.outbound_flow_control_window
        wire._h2_connection.outbound_flow_control_window = 104
        assert not module.send_now(stream, small)
        wire._h2_connection.outbound_flow_control_window = window

    run(story)


def test_a_message_of_several_frames_is_sent_now_where_it_fits() -> None:
    async def story(_daemon: SmallDaemon, stream: Any, _channel: Channel) -> None:
        most = stream._stream._h2_connection.max_outbound_frame_size
        for seq, size in enumerate((most, 2 * most, 2 * most + 7, 2), 1):
            assert module.send_now(stream, CommandBatch(frames=[frame(seq, size)]).SerializeToString())
            assert [seq] == await replies(stream, 1)

    run(story)


def test_after_the_last_word_the_answers_still_come() -> None:
    async def story(daemon: SmallDaemon, stream: Any, _channel: Channel) -> None:
        outbox = Outbox(stream, pack)
        writing = asyncio.create_task(outbox.write())
        for seq in range(1, 4):
            outbox.put(frame(seq))
        outbox.end()
        await writing
        assert [1, 2, 3] == await replies(stream, 3)
        assert await stream.recv_message() is None
        assert [1, 2, 3] == [command.seq for command in daemon.frames]

    run(story)
