"""The follower against a daemon on a real socket."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hub_ear import HubEar
from tests.small_daemon import SmallDaemon, serving

from flx_api.events.follower import Follower
from flx_api.events.position import Position
from flx_api.observability.metrics import Metrics
from flx_api.proto.flx.v1.daemon_pb2 import Event, EventBatch
from flx_api.upstream.channel import Upstream
from flx_api.upstream.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable


class Confidant:
    """Keeps what no client may hear."""

    def __init__(self, ear: HubEar) -> None:
        self.ear = ear
        self.told: list[tuple[list[int], bool, int]] = []

    def batch(self, events: Iterable[Event], *, anew: bool) -> None:
        self.told.append(([event.seq for event in events], anew, len(self.ear.heard)))

    def lost(self) -> None:
        """Not the subject here."""


def test_what_is_between_daemon_and_gateways_goes_to_its_listener_first_and_nowhere_else() -> None:
    ear = HubEar()
    confidant = Confidant(ear)
    follower = Follower(Upstream(Endpoint(path="none"), Metrics()), ear.hub, ear, Metrics(), (confidant,))
    topics = ["pipeline_events", "revocation_events", "pipeline_events", "revocation_events"]
    events = [Event(seq=seq, topic=topic, tenant="default") for seq, topic in enumerate(topics, 1)]
    follower.take(EventBatch(epoch="e1", events=events[:2], journal_seq=2))
    follower.take(EventBatch(epoch="e1", events=events[1:], journal_seq=4))
    follower.take(EventBatch(epoch="e1", journal_seq=5, gap_reason="evicted"))
    assert [("pipeline_events", 1), ("pipeline_events", 3)] == ear.heard
    # What was heard before is not told again; what is lost is.
    assert [([2], True, 0), ([4], False, 1), ([], True, 2)] == confidant.told
    assert 5 == ear.hub.seq
    assert ["evicted"] == ear.gaps


def test_what_was_heard_before_is_dropped_and_what_is_over_leaves_positions_later() -> None:
    ear = HubEar()
    follower = Follower(Upstream(Endpoint(path="none"), Metrics()), ear.hub, ear, Metrics())
    status = [
        Event(seq=seq, prev=0, topic=f"execution.{seq}.status", data=b'{"execution":"%d","status":"failed"}' % seq)
        for seq in range(1, 41)
    ]
    status.append(Event(seq=41, prev=40, topic="execution.40.status", data=b'"no status"'))
    follower.take(EventBatch(epoch="e1", events=status, journal_seq=41))
    follower.take(EventBatch(epoch="e1", events=status, journal_seq=41))
    assert list(range(1, 42)) == [seq for _, seq in ear.heard]
    epoch, seq, logs = ear.hub.position()
    assert ("e1", 41, {str(number): 0 for number in range(9, 41)}) == (epoch, seq, logs)


def test_it_goes_on_where_it_was_when_the_daemon_comes_back() -> None:
    async def story(socket: Path) -> None:
        daemon, ear = SmallDaemon(), HubEar()
        upstream = Upstream(Endpoint(path=str(socket)), Metrics(), jitter=lambda: 0.0)
        follower = Follower(upstream, ear.hub, ear, Metrics())
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
                assert ear.hub.epoch == "e2"
        finally:
            await follower.close()
            await upstream.close()

    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        asyncio.run(story(Path(folder) / "d.sock"))
