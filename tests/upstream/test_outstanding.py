"""The table of what is outstanding, by itself: who is told what, and what comes free when."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from flx_api.errors import DeadlineExceeded
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, ReplyFrame
from flx_api.upstream.outstanding import Outstanding
from flx_api.upstream.pending import Pending, StreamLost

if TYPE_CHECKING:
    from flx_api.errors import FlxError
    from flx_api.upstream.pending import Kind


class Told:
    """Where a reply goes."""

    def __init__(self, table: Outstanding | None = None, seq: int = 0) -> None:
        self.ending: ReplyFrame | FlxError | None = None
        self._table = table
        self._seq = seq

    def done(self) -> bool:
        return self.ending is not None

    def set_result(self, reply: ReplyFrame, /) -> None:
        self.ending = reply
        if self._table is not None:
            self._table.end(self._seq)

    def set_exception(self, error: FlxError, /) -> None:
        self.ending = error


def stream() -> Any:
    """A stream that writes down what is put on it."""
    put: list[CommandFrame] = []
    outbox = SimpleNamespace(put=put.append, frames=put)
    return SimpleNamespace(outbox=outbox, outstanding=0, is_ready=True, connection=SimpleNamespace(place="here"))


class Table:
    """A table with commands on it."""

    def __init__(self) -> None:
        self.freed: list[Kind | None] = []
        self.outstanding = Outstanding(self.freed.append, lambda: 0.0)
        self.stream = stream()

    def put(self, seq: int, told: Told, kind: Any = "call", deadline: float = 1e9) -> None:
        self.stream.outstanding += 1
        self.outstanding.put(seq, Pending(told, deadline, kind, self.stream, None))


def test_who_has_no_task_leaves_the_table_while_it_is_gone_through() -> None:
    async def story() -> None:
        table = Table()
        told = [Told(table.outstanding, seq) for seq in (1, 2, 3)]
        for seq, one in enumerate(told, 1):
            table.put(seq, one)
        table.outstanding.replies(table.stream, [ReplyFrame(seq=seq, result=b"%d" % seq) for seq in (2, 1, 3)])
        assert [b"1", b"2", b"3"] == [one.ending.result for one in told if isinstance(one.ending, ReplyFrame)]
        assert (["call"] * 3, 0, {}) == (table.freed, table.stream.outstanding, table.outstanding.pending)
        table.outstanding.close()

    asyncio.run(story())


def test_a_reply_on_another_stream_is_nobodys() -> None:
    async def story() -> None:
        table, told = Table(), Told()
        table.put(1, told)
        table.outstanding.replies(stream(), [ReplyFrame(seq=1)])
        assert (None, 1) == (told.ending, table.outstanding.foreign)
        table.outstanding.close()

    asyncio.run(story())


@pytest.mark.parametrize(("kind", "is_kept"), [("call", True), (None, False)])
def test_who_leaves_keeps_a_credit_until_the_daemon_is_done(kind: Any, is_kept: bool) -> None:
    async def story() -> None:
        table = Table()
        table.put(7, Told(), kind)
        table.outstanding.abandon(7)
        assert ([7] if is_kept else []) == [frame.seq for frame in table.stream.outbox.frames if frame.cancel]
        assert ([] if is_kept else [None]) == table.freed
        table.outstanding.replies(table.stream, [ReplyFrame(seq=7), ReplyFrame(seq=7)])
        assert ([kind], 0) == (table.freed, table.stream.outstanding)
        table.outstanding.close()

    asyncio.run(story())


def test_a_lost_stream_fails_its_own_and_no_others() -> None:
    async def story() -> None:
        table, lost, other = Table(), Told(), Told()
        table.put(1, lost)
        first, table.stream = table.stream, stream()
        table.put(2, other)
        table.outstanding.lost(first, "gone", "upstream_unavailable", broke=True)
        assert isinstance(lost.ending, StreamLost)
        assert ("here", None) == (lost.ending.place, other.ending)
        table.outstanding.close()

    asyncio.run(story())


def test_one_sweep_ends_all_whose_time_is_over() -> None:
    async def story() -> None:
        table = Table()
        told = [Told() for _ in range(3)]
        for seq, one in enumerate(told, 1):
            table.put(seq, one, deadline=0.0 if seq < 3 else 1e9)
        table.put(4, Told(), deadline=0.0)
        table.outstanding.abandon(4)
        while table.outstanding.abandoned:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
        assert [True, True, False] == [isinstance(one.ending, DeadlineExceeded) for one in told]
        assert ["call"] == table.freed
        table.outstanding.close()

    asyncio.run(story())
