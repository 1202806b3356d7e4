"""Many commands on one stream."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from grpclib.testing import ChannelFor
from tests.daemon.daemon_parts import ADMIN, parts, turn

from flx_api.daemon.channel import MAX_OUTSTANDING, Aside
from flx_api.daemon.server import DaemonService, services_of
from flx_api.daemon.trust import SocketTrust
from flx_api.models.pipeline import Deleted
from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
from flx_api.proto.flx.v1.daemon_pb2 import CommandBatch, CommandFrame, ReplyFrame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from flx_api.daemon.handlers import Context, Handler


def echo(seq: int) -> CommandFrame:
    return CommandFrame(seq=seq, command="system.echo", args=b'{"n":%d}' % seq, principal=ADMIN)


def frame(seq: int, command: str) -> CommandFrame:
    return CommandFrame(seq=seq, command=command, args=b'{"id":"x"}', principal=ADMIN)


@asynccontextmanager
async def stub(folder: Path, handlers: Mapping[str, Handler]) -> AsyncIterator[DaemonStub]:
    async with parts(folder) as daemon:
        service = DaemonService(daemon.services, daemon.dispatcher(handlers), SocketTrust())
        async with ChannelFor(services_of(service)[0]) as channel:
            yield DaemonStub(channel)


async def replies(stream: Any, count: int) -> list[list[ReplyFrame]]:
    batches: list[list[ReplyFrame]] = []
    while sum(map(len, batches)) < count:
        batches.append(list((await stream.recv_message()).frames))
    return batches


def test_a_batch_is_answered_in_few_messages_each_with_its_number(tmp_path: Path) -> None:
    async def story() -> None:
        async with stub(tmp_path, {}) as daemon, daemon.Channel.open() as stream:
            await stream.send_message(CommandBatch(frames=[echo(seq) for seq in range(64)]))
            batches = await replies(stream, 64)
            assert len(batches) <= 4
            assert {reply.seq: reply.result for batch in batches for reply in batch} == {
                seq: b'{"n":%d}' % seq for seq in range(64)
            }
            await stream.end()
            assert await stream.recv_message() is None

    asyncio.run(story())


def test_replies_overtake_each_other_and_all_come_after_the_client_has_ended(tmp_path: Path) -> None:
    async def story() -> None:
        go = asyncio.Event()

        async def slow(_context: Context, _args: Any) -> Deleted:
            await go.wait()
            return Deleted("x")

        async with stub(tmp_path, {"pipeline.get": slow}) as daemon, daemon.Channel.open() as stream:
            await stream.send_message(CommandBatch(frames=[frame(1, "pipeline.get"), echo(2)]), end=True)
            (first,) = await replies(stream, 1)
            assert [reply.seq for reply in first] == [2]
            go.set()
            (second,) = await replies(stream, 1)
            assert [reply.seq for reply in second] == [1]
            assert await stream.recv_message() is None

    asyncio.run(story())


def test_beyond_256_outstanding_nothing_more_is_begun(tmp_path: Path) -> None:
    async def story() -> None:
        begun, go = [], asyncio.Event()

        async def slow(_context: Context, _args: Any) -> Deleted:
            begun.append(1)
            await go.wait()
            return Deleted("x")

        async with stub(tmp_path, {"pipeline.get": slow}) as daemon, daemon.Channel.open() as stream:
            for _ in range(4):
                frames = [frame(seq, "pipeline.get") for seq in range(100)]
                await stream.send_message(CommandBatch(frames=frames))
            await turn(50)
            assert len(begun) == MAX_OUTSTANDING
            go.set()
            await replies(stream, 400)
            assert len(begun) == 400
            await stream.end()

    asyncio.run(story())


def test_a_client_that_goes_away_ends_its_reads_and_not_its_changes(tmp_path: Path) -> None:
    async def story() -> None:
        ended, changed, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def read(_context: Context, _args: Any) -> Deleted:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            raise AssertionError

        async def change(_context: Context, _args: Any) -> Deleted:
            await go.wait()
            changed.set()
            return Deleted("x")

        handlers: dict[str, Handler] = {"pipeline.get": read, "pipeline.delete": change}
        async with stub(tmp_path, handlers) as daemon:
            async with daemon.Channel.open() as stream:
                frames = [frame(1, "pipeline.get"), frame(2, "pipeline.delete"), echo(3)]
                await stream.send_message(CommandBatch(frames=frames))
                await replies(stream, 1)
                await stream.cancel()
            await ended.wait()
            go.set()
            await changed.wait()

    asyncio.run(story())


def test_a_reply_larger_than_a_message_should_be_goes_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with stub(tmp_path, {}) as daemon, daemon.Channel.open() as stream:
            args = b'{"a":"' + b"x" * 900_000 + b'"}'
            frames = [CommandFrame(seq=n, command="system.echo", args=args, principal=ADMIN) for n in range(3)]
            await stream.send_message(CommandBatch(frames=frames))
            assert [len(batch) for batch in await replies(stream, 3)] == [1, 1, 1]
            await stream.end()

    asyncio.run(story())


def test_a_read_that_is_given_up_ends_and_is_answered_and_a_change_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        begun, ended, done, go = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def forever(_context: Context, _args: Any) -> Deleted:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            raise AssertionError

        async def change(_context: Context, _args: Any) -> Deleted:
            await go.wait()
            done.set()
            return Deleted("x")

        handlers = {"pipeline.get": forever, "pipeline.delete": change}
        async with stub(tmp_path, handlers) as daemon, daemon.Channel.open() as stream:
            await stream.send_message(CommandBatch(frames=[frame(1, "pipeline.get"), frame(2, "pipeline.delete")]))
            await begun.wait()
            cancels = [CommandFrame(seq=seq, cancel=True) for seq in (1, 2, 2, 3)]
            await stream.send_message(CommandBatch(frames=[*cancels, echo(4)]))
            answers = {reply.seq: reply.code for batch in await replies(stream, 3) for reply in batch}
            assert answers == {1: "cancelled", 2: "cancelled", 4: ""}
            await ended.wait()
            assert not done.is_set()
            go.set()
            await done.wait()
            await stream.end()
            assert await stream.recv_message() is None, "nothing is outstanding"

    asyncio.run(story())


def test_room_is_made_by_giving_up(tmp_path: Path) -> None:
    """A channel that is full of commands that wait still hears what nobody waits for any more."""

    async def story() -> None:
        async def forever(_context: Context, _args: Any) -> Deleted:
            await asyncio.Event().wait()
            raise AssertionError

        async with stub(tmp_path, {"pipeline.get": forever}) as daemon, daemon.Channel.open() as stream:
            waits = [frame(seq, "pipeline.get") for seq in range(1, MAX_OUTSTANDING + 1)]
            await stream.send_message(CommandBatch(frames=waits))
            await stream.send_message(CommandBatch(frames=[CommandFrame(seq=9, cancel=True), echo(1000)]))
            answers = {reply.seq: reply.code for batch in await replies(stream, 2) for reply in batch}
            assert answers == {9: "cancelled", 1000: ""}
            await stream.cancel()

    asyncio.run(story())


def test_room_is_made_behind_a_command_that_has_none(tmp_path: Path) -> None:
    """In the same message, in one behind it, and for one that was never begun."""

    async def story() -> None:
        begun: list[int] = []

        async def forever(context: Context, _args: Any) -> Deleted:
            begun.append(context.wait_ms)
            await asyncio.Event().wait()
            raise AssertionError

        def wait(seq: int) -> CommandFrame:
            args = b'{"id":"x"}'
            return CommandFrame(seq=seq, command="pipeline.get", args=args, principal=ADMIN, wait_ms=seq)

        def cancel(seq: int) -> CommandFrame:
            return CommandFrame(seq=seq, cancel=True)

        async def answers(stream: Any, count: int) -> dict[int, str]:
            return {reply.seq: reply.code for batch in await replies(stream, count) for reply in batch}

        async with stub(tmp_path, {"pipeline.get": forever}) as daemon, daemon.Channel.open() as stream:
            await stream.send_message(CommandBatch(frames=[wait(seq) for seq in range(1, MAX_OUTSTANDING + 1)]))
            await stream.send_message(CommandBatch(frames=[echo(1000), cancel(1)]))
            assert await answers(stream, 2) == {1: "cancelled", 1000: ""}
            await stream.send_message(CommandBatch(frames=[wait(1001), wait(1002), wait(1003)]))
            await turn(50)
            await stream.send_message(CommandBatch(frames=[cancel(2)]))
            assert await answers(stream, 1) == {2: "cancelled"}
            await stream.send_message(CommandBatch(frames=[cancel(1003), cancel(1003)]))
            assert await answers(stream, 1) == {1003: "cancelled"}
            await stream.send_message(CommandBatch(frames=[cancel(3), cancel(1001), cancel(4)]), end=True)
            assert await answers(stream, 3) == {3: "cancelled", 1001: "cancelled", 4: "cancelled"}
            await turn(50)
            assert begun == [*range(1, MAX_OUTSTANDING + 1), 1001, 1002]
            await stream.cancel()

    asyncio.run(story())


def test_a_full_channel_reads_on_for_a_while_only_and_then_carries_everything_out(tmp_path: Path) -> None:
    async def story() -> None:
        begun: list[int] = []
        go = asyncio.Event()

        async def slow(_context: Context, _args: Any) -> Deleted:
            begun.append(1)
            await go.wait()
            return Deleted("x")

        async with stub(tmp_path, {"pipeline.get": slow}) as daemon, daemon.Channel.open() as stream:
            for first in range(0, 8 * MAX_OUTSTANDING, MAX_OUTSTANDING):
                frames = [frame(seq, "pipeline.get") for seq in range(first, first + MAX_OUTSTANDING)]
                await stream.send_message(CommandBatch(frames=frames))
            await stream.send_message(CommandBatch(frames=[CommandFrame(seq=0, cancel=True)]), end=True)
            await turn(50)
            assert len(begun) == MAX_OUTSTANDING
            go.set()
            found = [reply for batch in await replies(stream, 8 * MAX_OUTSTANDING) for reply in batch]
            assert [reply.code for reply in found] == [""] * len(found), "the cancellation was not read in time"
            assert len({reply.seq for reply in found}) == 8 * MAX_OUTSTANDING
            assert await stream.recv_message() is None

    asyncio.run(story())


def test_what_is_aside_is_bounded_and_found_by_its_number() -> None:
    aside = Aside()
    assert not aside
    for seq in (1, 2, 1, 3):
        aside.put(frame(seq, f"c{len(aside)}"))
    assert aside.drop(1)
    assert not aside.drop(1), "the earlier one of the same number stays"
    assert [aside.first().command for _ in range(len(aside))] == ["c0", "c1", "c3"]
    assert not aside.drop(3)
    for size, count in ((1, MAX_OUTSTANDING), (1024 * 1024 // 2, 2)):
        for seq in range(count):
            assert not aside.is_full
            aside.put(CommandFrame(seq=seq, args=b"x" * size))
        assert aside.is_full
        while aside:
            aside.first()
