"""The bus on a real Redis that dies, comes back empty or full, is emptied by hand, hangs, and trims."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from tests.redis_server import RedisServer, running

from flx_api.errors import Unavailable
from flx_api.events import redis_bus
from flx_api.events.redis_bus import RedisBus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from flx_api.events.ephemeral_log import EphemeralEvent


class Ear:
    """One gateway's receiver: what it heard, with losses in their place."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.losses: list[str] = []

    def hear(self, events: Sequence[EphemeralEvent]) -> None:
        self.heard += [event.data.decode() for event in events]

    def lose(self, reason: str) -> None:
        self.heard.append(reason)
        self.losses.append(reason)


async def until(what: Callable[[], bool]) -> None:
    """Wait for something that a task does."""
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110 - what changes belongs to others
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def fleet(server: RedisServer, count: int = 2) -> AsyncIterator[list[tuple[RedisBus, Ear]]]:
    """Gateways with a bus each."""
    ears = [Ear() for _ in range(count)]
    buses = [RedisBus(server.url, ear, lambda: 5) for ear in ears]
    for bus in buses:
        bus.start()
    try:
        await until(lambda: not any(bus.reason for bus in buses))
        yield list(zip(buses, ears, strict=True))
    finally:
        for bus in buses:
            await bus.close()


@pytest.mark.parametrize("durable", [False, True])
def test_after_a_kill_a_loss_is_told_with_its_data_or_without(tmp_path: Path, durable: bool) -> None:
    async def story(server: RedisServer) -> None:
        async with fleet(server) as ((first, ear), (second, other)):
            await first.publish("t", "app.x", b"1")
            await until(lambda: ear.heard == other.heard == ["1"])
            server.kill()
            await until(lambda: bool(first.reason and second.reason))
            with pytest.raises(Unavailable) as refused:
                await first.publish("t", "app.x", b"2")
            assert "bus_unavailable" == refused.value.code
            assert [] == ear.losses
            server.start()
            # Nothing is published, and yet both hear of it: what was answered before may be gone.
            await until(lambda: ear.losses == other.losses == ["bus_restarted"])
            await until(lambda: not (first.reason or second.reason))
            await second.publish("t", "app.x", b"3")
            await until(lambda: ear.heard == other.heard == ["1", "bus_restarted", "3"])

    with running(tmp_path, durable=durable) as server:
        asyncio.run(story(server))


def test_a_redis_that_was_emptied_by_hand_is_noticed_though_nothing_comes(tmp_path: Path) -> None:
    async def story(server: RedisServer) -> None:
        async with fleet(server) as ((first, ear), (_, other)):
            await first.publish("t", "app.x", b"1")
            await until(lambda: ear.heard == other.heard == ["1"])
            server.ask(b"FLUSHALL")
            await until(lambda: ear.losses == other.losses == ["bus_restarted"])
            await first.publish("t", "app.x", b"2")
            await until(lambda: ear.heard == other.heard == ["1", "bus_restarted", "2"])
            assert [] == [bus.reason for bus, _ in [(first, ear)] if bus.reason]

    with running(tmp_path) as server:
        asyncio.run(story(server))


def test_what_was_trimmed_before_it_was_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_bus, "KEPT_MS", 0)

    async def story(server: RedisServer) -> None:
        async with fleet(server, 1) as ((first, ear),):
            await first.publish("t", "app.x", b"1")
            await until(lambda: ear.heard == ["1"])
            # A place far behind what is kept.
            ear.heard.clear()
            for _ in range(300):
                await first.publish("t", "app.x", b"2")
            assert set(ear.heard) <= {"2", "bus_trimmed"}
            place = next(place for place in first._places if place.seq)
            place.seq -= 7
            await first.publish("t", "app.x", b"3")
            await until(lambda: ear.heard[-2:] == ["bus_trimmed", "3"])

    with running(tmp_path) as server:
        asyncio.run(story(server))


def test_what_cannot_be_read_is_told_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(server: RedisServer) -> None:
        async with fleet(server, 1) as ((first, ear),):
            with monkeypatch.context() as other_version:
                other_version.setattr(redis_bus, "_encode", lambda _events: b"\xc1")
                await first.publish("t", "app.x", b"1")
            await first.publish("t", "app.x", b"2")
            await until(lambda: ear.heard == ["bus_unreadable", "2"])

    with running(tmp_path) as server:
        asyncio.run(story(server))


def test_a_redis_that_hangs_refuses_and_what_it_did_all_the_same_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_bus, "_CALL_S", 1.2)

    async def story(server: RedisServer) -> None:
        async with fleet(server) as ((first, ear), (_, other)):
            server.freeze()
            with pytest.raises(Unavailable):
                await first.publish("t", "app.x", b"1")
            server.thaw()
            await until(lambda: not first.reason)
            await first.publish("t", "app.x", b"2")
            await until(lambda: "2" in ear.heard and "2" in other.heard)
            # Its answer was lost, not the event: whoever was refused may repeat it, and must know that.
            assert ear.heard == other.heard
            assert ear.heard in (["2"], ["1", "2"])

    with running(tmp_path) as server:
        asyncio.run(story(server))


def test_what_is_published_in_a_tick_is_one_entry_of_each_partition(tmp_path: Path) -> None:
    async def story(server: RedisServer) -> None:
        async with fleet(server) as ((first, ear), (second, other)):
            await first.publish("t", "app.x", b"0")
            numbers = range(1, 501)
            await asyncio.gather(*(first.publish("t", f"app.{n % 50}", b"%d" % n) for n in numbers))
            await until(lambda: len(ear.heard) == len(other.heard) == 501)
            assert second.entries <= 1 + redis_bus.PARTITIONS
            for topic in range(50):
                mine = [int(data) for data in other.heard if int(data) % 50 == topic]
                assert sorted(mine) == mine

    with running(tmp_path) as server:
        asyncio.run(story(server))


def test_a_newcomer_hears_from_now_on(tmp_path: Path) -> None:
    async def story(server: RedisServer) -> None:
        async with fleet(server, 1) as ((first, _),):
            await first.publish("t", "app.x", b"1")
            async with fleet(server, 1) as ((_, late),):
                await first.publish("t", "app.x", b"2")
                await until(lambda: late.heard == ["2"])

    with running(tmp_path) as server:
        asyncio.run(story(server))
