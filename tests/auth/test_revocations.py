"""The gateway's knowledge of revocations, against a daemon on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from tests.hub_ear import HubEar
from tests.small_daemon import SmallDaemon, serving

from flx_api._core import Revocations
from flx_api.auth.revocations import RevocationFollower
from flx_api.events.follower import Follower
from flx_api.models.auth import STILL_S
from flx_api.observability.metrics import Metrics
from flx_api.proto.flx.v1.daemon_pb2 import Event, Revocation
from flx_api.upstream.channel import Upstream
from flx_api.upstream.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from grpclib.server import Stream

    from flx_api.proto.flx.v1.daemon_pb2 import RevocationBatch, RevocationsRequest

NOW_S = 1_700_000_000.0


class Gateway:
    """The parts of a gateway that matter here; a listener that nobody may tell about revocations."""

    def __init__(self, socket: Path, *, refuse: bool = False) -> None:
        self.ear = HubEar()
        self.native = Revocations()
        self.upstream = Upstream(Endpoint(path=str(socket)), Metrics(), jitter=lambda: 0.0)
        self.revocations = RevocationFollower(
            self.upstream, self.native, max_staleness_s=5.0, refuse=refuse, wall=lambda: NOW_S
        )
        self.follower = Follower(self.upstream, self.ear.hub, self.ear, Metrics(), (self.revocations,))

    def revokes(self, token_id: str, tenant: str = "default") -> bool:
        return self.native.revokes(subject="anna", tenant=tenant, token_id=token_id)


@contextlib.asynccontextmanager
async def gateway(socket: Path) -> AsyncIterator[Gateway]:
    made = Gateway(socket)
    made.upstream.start()
    made.revocations.start()
    made.follower.start()
    try:
        yield made
    finally:
        await made.follower.close()
        await made.revocations.close()
        await made.upstream.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


def told(kind: str, value: str, type_: str = "revoked") -> dict[str, Any]:
    return {"type": type_, "kind": kind, "value": value, "issued_before": None, "expires_at": None}


def event(seq: int, value: str, type_: str = "revoked") -> Event:
    data = msgspec.json.encode(told("jti", value, type_))
    return Event(seq=seq, topic="revocation_events", tenant="default", data=data)


def play(story: Callable[[Path], Coroutine[Any, Any, None]]) -> None:
    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        asyncio.run(story(Path(folder) / "d.sock"))


class Slow(SmallDaemon):
    """Takes its snapshot when asked, and gives it when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def Revocations(  # noqa: N802 - the contract's name
        self, stream: Stream[RevocationsRequest, RevocationBatch]
    ) -> None:
        self.asked.set()
        await self.go.wait()
        await super().Revocations(stream)


def test_nothing_is_known_before_the_snapshot_and_every_change_after_it() -> None:
    async def story(socket: Path) -> None:
        daemon = SmallDaemon()
        daemon.revocations = [Revocation(kind="jti", value="a", tenant="default")]
        async with gateway(socket) as made:
            assert not made.revocations.known
            assert made.revocations.stale_refuses
            assert "not known" in made.revocations.reason
            async with serving(daemon, socket):
                await until(lambda: made.revocations.known)
                assert (False, "") == (made.revocations.stale_refuses, made.revocations.reason)
                assert (True, False) == (made.revokes("a"), made.revokes("a", "other"))
                await daemon.publish("revocation_events", told("jti", "b"))
                await until(lambda: made.revokes("b"))
                await daemon.publish("revocation_events", told("jti", "b"), tenant="other")
                await until(lambda: made.revokes("b", "other"))
                await daemon.publish("revocation_events", told("jti", "b", "restored"))
                await until(lambda: not made.revokes("b"))
                assert made.revokes("b", "other")
                await daemon.publish("pipeline_events", {})
                await until(lambda: made.ear.heard != [])
                assert ["pipeline_events"] == [topic for topic, _ in made.ear.heard]
                assert 4 == made.ear.hub.seq

    play(story)


def test_a_connection_that_breaks_costs_no_snapshot_and_loses_nothing() -> None:
    async def story(socket: Path) -> None:
        daemon = SmallDaemon()
        async with gateway(socket) as made:
            async with serving(daemon, socket):
                await until(lambda: made.revocations.known)
            await daemon.publish("revocation_events", told("jti", "a"))
            async with serving(daemon, socket):
                await until(lambda: made.revokes("a"))
            assert 1 == daemon.snapshots

    play(story)


def test_another_history_is_taken_whole() -> None:
    async def story(socket: Path) -> None:
        daemon = SmallDaemon()
        daemon.revocations = [Revocation(kind="jti", value="a", tenant="default")]
        async with gateway(socket) as made:
            async with serving(daemon, socket):
                await until(lambda: made.revokes("a"))
            daemon.epoch = "e2"
            daemon.revocations = [Revocation(kind="jti", value="b", tenant="default")]
            async with serving(daemon, socket):
                await until(lambda: made.revokes("b"))
            assert not made.revokes("a")
            assert 2 == daemon.snapshots

    play(story)


def test_a_gap_is_filled_by_a_snapshot() -> None:
    async def story(socket: Path) -> None:
        daemon = SmallDaemon()
        async with gateway(socket) as made:
            async with serving(daemon, socket):
                await until(lambda: made.revocations.known)
            for value in "abc":
                await daemon.publish("revocation_events", told("jti", value))
            # What the first two told is gone from the journal, but not from the daemon.
            daemon.journal, daemon.oldest_kept = daemon.journal[2:], 2
            daemon.revocations = [Revocation(kind="jti", value=value, tenant="default") for value in "abc"]
            async with serving(daemon, socket):
                await until(lambda: all(made.revokes(value) for value in "abc"))
            assert 2 == daemon.snapshots

    play(story)


def test_what_happens_during_the_snapshot_is_in_force_at_once_and_after_it() -> None:
    async def story(socket: Path) -> None:
        daemon = Slow()
        async with gateway(socket) as made, serving(daemon, socket):
            await daemon.asked.wait()
            await daemon.publish("revocation_events", told("jti", "a"))
            await until(lambda: made.revokes("a"))
            daemon.go.set()
            await until(lambda: made.revocations.known)
            # The snapshot was taken after that event and does not hold it, so it was taken back meanwhile.
            assert not made.revokes("a")

    play(story)


def test_an_older_snapshot_does_not_undo_a_newer_event() -> None:
    async def story(socket: Path) -> None:
        daemon = Slow()
        daemon.revocations = [Revocation(kind="jti", value="b", tenant="default")]
        async with gateway(socket) as made, serving(daemon, socket):
            await daemon.asked.wait()
            # The daemon's journal is empty: these numbers are beyond what its snapshot will say.
            made.revocations.batch([event(7, "a"), event(8, "b", "restored")], anew=False)
            daemon.go.set()
            await until(lambda: made.revocations.known)
            assert (True, False) == (made.revokes("a"), made.revokes("b"))

    play(story)


def test_a_daemon_without_revocations_has_none() -> None:
    class Other(SmallDaemon):
        async def Revocations(  # noqa: N802 - the contract's name
            self,
            stream: Stream[RevocationsRequest, RevocationBatch],
        ) -> None:
            raise GRPCError(Status.UNIMPLEMENTED)

    async def story(socket: Path) -> None:
        async with gateway(socket) as made, serving(Other(), socket):
            await until(lambda: made.revocations.known)
            assert 0 == len(made.native)

    play(story)


def test_a_snapshot_that_fails_is_asked_for_again() -> None:
    class Broken(SmallDaemon):
        async def Revocations(  # noqa: N802 - the contract's name
            self, stream: Stream[RevocationsRequest, RevocationBatch]
        ) -> None:
            if self.snapshots == 0:
                self.snapshots += 1
                raise GRPCError(Status.INTERNAL)
            await super().Revocations(stream)

    async def story(socket: Path) -> None:
        daemon = Broken()
        daemon.revocations = [Revocation(kind="key", value="k", tenant="default")]
        async with gateway(socket) as made, serving(daemon, socket):
            await until(lambda: made.revocations.known)
            assert made.native.revokes(subject="x", key_id="k")
            assert 2 == daemon.snapshots

    play(story)


def test_an_event_that_cannot_be_read_leads_to_a_snapshot() -> None:
    async def story(socket: Path) -> None:
        daemon = SmallDaemon()
        async with gateway(socket) as made, serving(daemon, socket):
            await until(lambda: made.revocations.known)
            daemon.revocations = [Revocation(kind="jti", value="a", tenant="default")]
            await daemon.publish("revocation_events", {"type": "something new"})
            await until(lambda: made.revokes("a"))

    play(story)


def test_silence_is_measured_from_the_last_sign_of_life_and_refused_by_setting() -> None:
    async def story(socket: Path) -> None:
        for refuse in (False, True):
            daemon, made = SmallDaemon(), Gateway(socket, refuse=refuse)
            revocations, upstream = made.revocations, made.upstream
            upstream.start()
            try:
                async with serving(daemon, socket):
                    await upstream.connected.wait()
                    await upstream.stub()
                    assert upstream._primary is not None
                    revocations.batch([], anew=True)
                    revocations._install(0, [])
                    now_s = asyncio.get_running_loop().time()
                    upstream._primary.heard_s = now_s + 100.0
                    revocations.look(now_s + 105.0)
                    assert (False, False, "") == (revocations.stale, revocations.stale_refuses, revocations.reason)
                    revocations.look(now_s + 105.1)
                    assert (True, refuse) == (revocations.stale, revocations.stale_refuses)
                    assert "silent for more than 5 s" in revocations.reason
                    upstream._primary.heard_s = now_s + 106.0
                    revocations.look(now_s + 106.0)
                    assert (False, "") == (revocations.stale, revocations.reason)
                    # Replies alone do not help: without the stream nothing would be heard.
                    revocations.lost()
                    upstream._primary.heard_s = now_s + 112.0
                    revocations.look(now_s + 112.0)
                    assert revocations.stale
                    revocations.batch([], anew=False)
                    revocations.look(now_s + 112.0)
                    assert "" == revocations.reason
                    # Nor does the stream, as long as what was before it is not known.
                    revocations.batch([], anew=True)
                    upstream._primary.heard_s = now_s + 118.0
                    revocations.look(now_s + 118.0)
                    assert revocations.stale
            finally:
                await upstream.close()

    play(story)


def test_what_is_over_is_forgotten_when_no_clock_and_no_leeway_could_make_it_good() -> None:
    async def story(socket: Path) -> None:
        made = Gateway(socket)
        made.native.apply("jti", "a", "default", None, int(NOW_S) - STILL_S)
        made.native.apply("jti", "b", "default", None, int(NOW_S) - STILL_S + 1)
        made.revocations.look(1.0)
        assert (False, True) == (made.revokes("a"), made.revokes("b"))

    play(story)
