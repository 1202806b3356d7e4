"""What leaves together and comes back together, against a daemon on a real socket: what it holds always comes back.

The table behind it: properties/test_express.py. Rides of requests: gateway/test_ride.py.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.properties.test_express import World
from tests.upstream.test_connection import message
from tests.upstream.test_group import all_of
from tests.upstream.test_shedding import run

from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
from flx_api.upstream import express
from flx_api.upstream.group import Group

if TYPE_CHECKING:
    import pytest
    from tests.small_daemon import SmallDaemon

    from flx_api._core import PlainCommand
    from flx_api.upstream.channel import Upstream


def members(count: int) -> list[tuple[int, PlainCommand]]:
    world = World()
    return [(index, world.command("system.echo")[0]) for index in range(count)]


def held(upstream: Upstream) -> tuple[int, int, int, int, int]:
    """Credits of both kinds that are out, what the gate and the stream count, and what is waited for."""
    (carrier,) = upstream._ready
    gate: Any = carrier.load._gate
    assert gate.outstanding == sum(gate._of.values())
    return (
        240 - upstream._credits._value,
        128 - upstream._grouped._value,
        gate.outstanding,
        carrier.outstanding,
        upstream.in_flight,
    )


def test_many_leave_as_one_message_and_give_back_what_they_held() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        daemon.batch_sizes.clear()
        group = Group(upstream)
        room = group.room_at_once
        group.begin_many(members(room))
        assert ((room,) * 5, 0, 0) == (held(upstream), group.room_at_once, group.room)
        assert dict.fromkeys(range(room), "{}") == await all_of(group)
        assert ([room], (0,) * 5) == (daemon.batch_sizes, held(upstream))
        assert room <= group.room_at_once

    run(story)


def test_what_there_is_no_room_for_waits_for_it() -> None:
    async def story(_daemon: SmallDaemon, upstream: Upstream) -> None:
        group = Group(upstream)
        count = group.room_at_once + 5
        group.begin_many(members(count))
        assert dict.fromkeys(range(count), "{}") == await all_of(group)
        assert (0,) * 5 == held(upstream)

    run(story)


def test_a_refusal_is_one_members_own() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        replies = iter([ReplyFrame(code="not_found"), ReplyFrame(accepted_id="x1", result=b"[1]")])
        daemon.answers["system.echo"] = lambda _: next(replies, ReplyFrame(result=b"[2]"))
        group = Group(upstream)
        group.begin_many(members(3))
        endings: dict[int, Any] = {}
        while not group.is_idle:
            ended = await group.ended()
            endings |= dict(ended.others) | {place: result for place, *result in ended.results}
        assert ("not_found", "x1", [b"[2]", False]) == (endings[0].code, endings[1].accepted_id, endings[2])
        assert (0,) * 5 == held(upstream)

    run(story)


def test_the_end_of_their_time_is_told_and_what_they_held_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express, "DEADLINE_GRACE_S", 0.0)

    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        daemon.answers["system.echo"] = lambda _: None
        group = Group(upstream)
        group.begin_many(members(3))
        assert dict.fromkeys(range(3), "deadline_exceeded") == await all_of(group)
        assert (0,) * 5 == held(upstream)

    run(story)


def test_who_closes_is_told_of_by_name_and_holds_on_until_the_daemon_is_done() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        daemon.answers["system.echo"] = lambda _: None
        group = Group(upstream)
        group.begin_many(members(2))
        while len(daemon.commands()) < 2:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)
        group.close()
        assert ((2, 2, 2, 2, 0), 2, True) == (held(upstream), upstream.express.abandoned, group.is_idle)
        while len(daemon.given_up) < 2:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)
        replies = [ReplyFrame(seq=command.seq) for command in daemon.commands()]
        upstream.received(upstream._ready[0], message(*replies))
        assert ((0,) * 5, 0) == (held(upstream), upstream.express.abandoned)

    run(story)


def test_a_stream_that_is_lost_takes_them_along_and_reads_are_sent_again() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        daemon.answers["system.echo"] = lambda _: None
        group = Group(upstream)
        group.begin_many(members(3))
        while len(daemon.commands()) < 3:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)
        del daemon.answers["system.echo"]
        connection: Any = upstream._ready[0].connection
        connection._protocol.connection._transport.abort()
        assert dict.fromkeys(range(3), "{}") == await all_of(group)
        assert ((0,) * 5, 6) == (held(upstream), len(daemon.commands()))

    run(story)
