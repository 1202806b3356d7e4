"""Histories that many ask for at once, from a source that a test plays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from flx_api.errors import Unavailable
from flx_api.events.histories import AT_ONCE, FRESH_S, Histories
from flx_api.events.position import Position
from flx_api.proto.flx.v1.daemon_pb2 import Event, EventBatch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

HERE = Position("e", 7)


def batch(first: int, count: int = 1) -> EventBatch:
    events = [Event(topic="t", seq=seq, data=b"1") for seq in range(first, first + count)]
    return EventBatch(epoch="e", events=events, journal_seq=first + count - 1)


class Daemon:
    """Tells a full batch, one that is not full, and then what comes; counts who listens."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], int]] = []
        self.listening = self.most = 0
        self.fault: Exception | None = None
        self.may_tell = asyncio.Event()
        self.may_tell.set()
        self.now_s = 100.0

    async def history(self, topics: list[str], position: Position) -> AsyncGenerator[EventBatch, None]:
        self.asked.append((tuple(topics), position.seq))
        self.listening += 1
        self.most = max(self.most, self.listening)
        try:
            await self.may_tell.wait()
            if self.fault is not None:
                raise self.fault
            yield batch(position.seq + 1, 256)
            yield batch(position.seq + 257)
            yield batch(position.seq + 258)
        finally:
            self.listening -= 1

    def histories(self) -> Histories:
        return Histories(self.history, lambda: self.now_s)


async def take(histories: Histories, count: int, topic: str = "t", position: Position = HERE) -> list[int]:
    """The last numbers of so many batches."""
    batches = histories.of([topic], position)
    found: list[int] = []
    async for one in batches:
        found.append(one.journal_seq)
        if len(found) == count:
            break
    await batches.aclose()
    return found


def test_a_crowd_is_told_what_the_daemon_is_asked_for_once() -> None:
    async def story() -> None:
        daemon = Daemon()
        histories = daemon.histories()
        found = await asyncio.gather(*(take(histories, 2) for _ in range(1_000)))
        assert found == [[263, 264]] * 1_000
        assert (daemon.asked, daemon.listening) == ([(("t",), 7)], 0)
        # Other topics and other positions are other histories.
        await asyncio.gather(take(histories, 2, "u"), take(histories, 2, position=Position("e", 8)))
        await take(histories, 2, position=Position("e", 7, {"x": 1}))
        assert daemon.asked[1:] == [(("u",), 7), (("t",), 8), (("t",), 7)]

    asyncio.run(story())


def test_a_recording_is_soon_forgotten() -> None:
    async def story() -> None:
        daemon = Daemon()
        histories = daemon.histories()
        for pause_s, times in ((0.0, 1), (FRESH_S / 2, 1), (FRESH_S / 2, 2)):
            daemon.now_s += pause_s
            assert await take(histories, 2) == [263, 264]
            assert len(daemon.asked) == times

    asyncio.run(story())


def test_who_needs_more_goes_on_alone_from_where_it_began() -> None:
    async def story() -> None:
        daemon = Daemon()
        assert await take(daemon.histories(), 5) == [263, 264, 263, 264, 265]
        assert (len(daemon.asked), daemon.listening) == (2, 0)

    asyncio.run(story())


def test_what_cannot_be_had_fails_for_all_who_wait_and_is_asked_for_anew() -> None:
    async def story() -> None:
        daemon = Daemon()
        daemon.fault = Unavailable()
        histories = daemon.histories()
        found = await asyncio.gather(*(take(histories, 2) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in found] == [Unavailable] * 3
        assert len(daemon.asked) == 1
        daemon.fault = None
        assert await take(histories, 2) == [263, 264]

    asyncio.run(story())


def test_who_leaves_takes_nothing_away_and_a_crowd_takes_turns() -> None:
    async def story() -> None:
        daemon = Daemon()
        daemon.may_tell.clear()
        histories = daemon.histories()
        first, second = (asyncio.create_task(take(histories, 2)) for _ in range(2))
        others = [asyncio.create_task(take(histories, 2, f"t{number}")) for number in range(50)]
        while daemon.listening < AT_ONCE:  # noqa: ASYNC110 - the loop goes round
            await asyncio.sleep(0)
        first.cancel()
        daemon.may_tell.set()
        assert await second == [263, 264]
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await asyncio.gather(*others) == [[263, 264]] * 50
        assert daemon.most == AT_ONCE
        await histories.close()

    asyncio.run(story())


def test_what_is_recorded_is_known_until_it_is_old() -> None:
    async def story() -> None:
        daemon = Daemon()
        histories = daemon.histories()
        assert histories.known(["t"], HERE) == []
        daemon.may_tell.clear()
        taking = asyncio.create_task(take(histories, 2))
        await asyncio.sleep(0)
        assert histories.known(["t"], HERE) == []
        daemon.may_tell.set()
        heard = await taking
        assert heard == [past.journal_seq for past in histories.known(["t"], HERE)]
        assert histories.known(["t"], Position("e", 8)) == histories.known(["u"], HERE) == []
        assert [(("t",), 7)] == daemon.asked
        daemon.now_s += FRESH_S
        assert histories.known(["t"], HERE) == []

    asyncio.run(story())


def test_what_could_not_be_had_is_not_known() -> None:
    async def story() -> None:
        daemon = Daemon()
        daemon.fault = Unavailable()
        histories = daemon.histories()
        recording = histories._recording(["t"], HERE)
        known: list[object] = []
        # Looked at before it is forgotten.
        recording.add_done_callback(lambda _: known.append(histories.known(["t"], HERE)))
        await asyncio.wait([recording])
        await asyncio.sleep(0)
        assert (known, histories.known(["t"], HERE)) == ([[]], [])

    asyncio.run(story())
