"""Commands of one request on the shared stream, against a daemon on a real socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.small_daemon import SmallDaemon, serving, stop
from tests.upstream.test_channel import frame, run

from flx_api.errors import Conflict, FlxError
from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
from flx_api.upstream.group import Ending, Group

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from grpclib.server import Server

    from flx_api.upstream.channel import Upstream


def told(ending: Ending) -> str:
    """A reply's result, or an error's code."""
    return ending.code if isinstance(ending, FlxError) else ending.result.decode()


async def all_of(group: Group) -> dict[int, str]:
    """How everything that was begun ended."""
    found: dict[int, str] = {}
    while not group.is_idle:
        ended = await group.ended()
        found |= {index: told(ending) for index, ending in ended.others}
        found |= {index: result.decode() for index, result, _ in ended.results}
    return found


def test_a_group_leaves_as_one_message_and_gives_its_credits_back() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.batch_sizes.clear()
        free = upstream._credits._value
        group = Group(upstream, 30)
        begun = 0
        while group.has_room:
            await group.begin(begun, frame(args=b"%d" % begun), 5, read=True)
            begun += 1
        assert (30, free - 30) == (begun, upstream._credits._value)
        assert {index: str(index) for index in range(30)} == await all_of(group)
        assert 30 in daemon.batch_sizes
        assert (0, free) == (upstream.in_flight, upstream._credits._value)
        assert ([], []) == await group.ended()

    run(story)


def test_there_is_no_room_before_it_was_looked_at_what_has_ended() -> None:
    async def story(_daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        group = Group(upstream)
        await group.begin(0, frame(), 5, read=True)
        room = [group.has_room]
        await upstream.call(frame(), 5, read=True)
        room.append(group.has_room)
        assert {0: "{}"} == await all_of(group)
        assert [True, False, True] == [*room, group.has_room]

    run(story)


def test_each_ends_at_its_own_deadline() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["slow"] = lambda _: None
        group = Group(upstream)
        await group.begin(0, frame("slow"), 0.01, read=True)
        await group.begin(1, frame(), 5, read=True)
        assert [(1, "{}")] == [(index, told(ending)) for index, ending in (await group.ended()).others]
        assert {0: "deadline_exceeded"} == await all_of(group)

    run(story)


def test_a_broken_stream_fails_writes_and_repeats_reads_once() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, server: Server, socket: Path) -> None:
        daemon.answers["hang"] = lambda _: None
        group = Group(upstream)
        for index, read in enumerate((False, True, True)):
            await group.begin(index, frame("hang"), 5, read=read)
        while len(daemon.commands()) < 3:  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        daemon.answers["hang"] = lambda _: ReplyFrame(result=b"1")
        await stop(server)
        async with serving(daemon, socket):
            assert {0: "upstream_unavailable", 1: "1", 2: "1"} == await all_of(group)

    run(story)


def test_what_cannot_be_sent_is_told_and_waited_for_once() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["slow"] = lambda _: None
        held = Group(upstream)
        for index in range(128):
            await held.begin(index, frame("slow"), 5, read=True)
        group = Group(upstream)
        before = asyncio.get_running_loop().time()
        found: dict[int, str] = {}
        for index in range(3):
            await group.begin(index, frame(), 5, read=True)
            found |= await all_of(group)
        assert dict.fromkeys(range(3), "overloaded") == found
        assert asyncio.get_running_loop().time() - before < 2
        assert "{}" == (await upstream.call(frame(), 5, read=True)).result.decode()
        held.close()

    run(story)


def test_who_waits_by_nature_takes_nothing_of_what_batches_share() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["execution.wait"] = lambda _: None
        free = upstream._grouped._value
        group = Group(upstream)
        await group.begin(0, frame("execution.wait"), 5, read=True)
        assert (1, free) == (upstream._waits.held, upstream._grouped._value)
        group.close()

    run(story)


def test_what_was_left_stays_outstanding_until_the_daemon_is_done_with_it() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["slow"] = lambda _: None
        free = upstream._credits._value
        group = Group(upstream)
        await group.begin(0, frame("slow"), 0.05, read=True)
        group.close()
        assert group.is_idle
        assert (free - 1, 1) == (upstream._credits._value, len(upstream._abandoned))
        while upstream._abandoned:  # noqa: ASYNC110 - it ends with its deadline
            await asyncio.sleep(0)
        assert (free, 128) == (upstream._credits._value, upstream._grouped._value)

    run(story)


def test_commands_with_keys_are_sent_again_with_them_and_their_outcome_waited_for() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, server: Server, socket: Path) -> None:
        daemon.answers["pipeline.run"] = lambda _: None
        group = Group(upstream)
        for index in range(3):
            command = frame("pipeline.run")
            command.idempotency_key = f"k{index}" if index else ""
            await group.begin(index, command, 20, read=False)
        while len(daemon.commands()) < 3:  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        answers: list[ReplyFrame | FlxError] = [Conflict("still", code="idempotency_in_progress")] * 3
        answers += [ReplyFrame(result=b"1")] * 2
        daemon.answers["pipeline.run"] = lambda _: answers.pop(0)
        await stop(server)
        async with serving(daemon, socket):
            assert {0: "upstream_unavailable", 1: "1", 2: "1"} == await all_of(group)
        assert ["k1", "k2"] == sorted({sent.idempotency_key for sent in daemon.commands()[3:]})
        assert group.is_idle

    run(story)


def test_a_group_that_is_closed_asks_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, server: Server, socket: Path) -> None:
        daemon.answers["pipeline.run"] = lambda _: None
        group = Group(upstream)
        command = frame("pipeline.run")
        command.idempotency_key = "k"
        await group.begin(0, command, 20, read=False)
        while not daemon.commands():  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        daemon.answers["pipeline.run"] = lambda _: Conflict("still", code="idempotency_in_progress")
        await stop(server)
        async with serving(daemon, socket):
            ending = asyncio.create_task(group.ended())
            while not group._resting:  # noqa: ASYNC110 - the group's table is no event
                await asyncio.sleep(0)
            group.close()
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
            assert group.is_idle

    monkeypatch.setattr("flx_api.upstream.group.ASK_AGAIN_S", (0.05, 60.0))
    run(story)
