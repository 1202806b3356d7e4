"""The follower against a daemon on a real socket."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.small_daemon import SmallDaemon, serving

from flx_api.events.follower import Follower
from flx_api.events.memory import Heard, Memory
from flx_api.events.position import Position
from flx_api.observability.metrics import Metrics
from flx_api.proto.flx.v1.daemon_pb2 import Event, EventBatch
from flx_api.upstream.channel import Upstream
from flx_api.upstream.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable


class Ear:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []
        self.gaps: list[str] = []
        self.news = asyncio.Event()

    def event(self, heard: Heard) -> None:
        self.heard.append((heard.topic, heard.seq))
        self.news.set()

    def gap(self, reason: str) -> None:
        self.gaps.append(reason)
        self.news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.heard) + len(self.gaps) < count:
                self.news.clear()
                await self.news.wait()


class Confidant:
    """Keeps what no client may hear."""

    def __init__(self, ear: Ear) -> None:
        self.ear = ear
        self.told: list[tuple[list[int], bool, int]] = []

    def batch(self, events: Iterable[Event], *, anew: bool) -> None:
        self.told.append(([event.seq for event in events], anew, len(self.ear.heard)))

    def lost(self) -> None:
        """Not the subject here."""


def test_what_is_between_daemon_and_gateways_goes_to_its_listener_first_and_nowhere_else() -> None:
    ear, memory = Ear(), Memory()
    confidant = Confidant(ear)
    follower = Follower(Upstream(Endpoint(path="none"), Metrics()), memory, ear, Metrics(), confidant)
    topics = ["pipeline_events", "revocation_events", "pipeline_events", "revocation_events"]
    events = [Event(seq=seq, topic=topic, tenant="default") for seq, topic in enumerate(topics, 1)]
    follower.take(EventBatch(epoch="e1", events=events[:2], journal_seq=2))
    follower.take(EventBatch(epoch="e1", events=events[1:], journal_seq=4))
    follower.take(EventBatch(epoch="e1", journal_seq=5, gap_reason="evicted"))
    assert [("pipeline_events", 1), ("pipeline_events", 3)] == ear.heard
    # What was heard before is not told again; what is lost is.
    assert [([2], True, 0), ([4], False, 1), ([], True, 2)] == confidant.told
    assert 5 == memory.seq
    assert [] == list(memory.journal_after(0))


def test_it_goes_on_where_it_was_when_the_daemon_comes_back() -> None:
    async def story(socket: Path) -> None:
        daemon, ear, memory = SmallDaemon(), Ear(), Memory()
        upstream = Upstream(Endpoint(path=str(socket)), Metrics(), jitter=lambda: 0.0)
        follower = Follower(upstream, memory, ear, Metrics())
        assert follower.reason
        upstream.start()
        follower.start()
        try:
            async with serving(daemon, socket):
                await upstream.connected.wait()
                while follower.reason:  # noqa: ASYNC110 - a reason is text, not an event
                    await asyncio.sleep(0)
                await daemon.publish("pipeline_events", 1)
                await daemon.log("x", b"1")
                await ear.until(2)
            await daemon.publish("pipeline_events", 2)
            await daemon.log("x", b"2")
            async with serving(daemon, socket):
                await ear.until(4)
                assert sorted(ear.heard) == [
                    ("execution.x.log", 1),
                    ("execution.x.log", 2),
                    ("pipeline_events", 1),
                    ("pipeline_events", 2),
                ]
                batches = follower.history(["pipeline_events"], Position("e1", 1, {}))
                assert [event.seq for event in (await anext(batches)).events] == [2]
                await batches.aclose()
            daemon.epoch = "e2"
            async with serving(daemon, socket):
                await ear.until(5)
                assert ear.gaps == ["epoch"]
                assert memory.epoch == "e2"
        finally:
            await follower.close()
            await upstream.close()

    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        asyncio.run(story(Path(folder) / "d.sock"))
