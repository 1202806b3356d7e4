"""Places of commands that wait: how many there are, how many one caller holds, and that each comes back once."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.small_daemon import SmallDaemon, stop
from tests.upstream.test_channel import frame, run
from tests.upstream.test_connection import until

from flx_api.errors import FlxError, Unavailable
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, Principal, ReplyFrame
from flx_api.upstream.group import Group
from flx_api.upstream.waits import WAITS, Place, Waits

if TYPE_CHECKING:
    from pathlib import Path

    from grpclib.server import Server

    from flx_api.upstream.channel import Upstream

OWNERS = [Principal(tenant=tenant, subject=subject) for tenant in "ab" for subject in ("anna", "ben")]


def of(principal: Principal) -> tuple[str, str]:
    return principal.tenant, principal.subject


def waiting(subject: str, wait_ms: int = 0) -> CommandFrame:
    """A command that waits; with `wait_ms` one that begins what it waits for."""
    command = "pipeline.run" if wait_ms else "execution.wait"
    return CommandFrame(command=command, args=b"{}", wait_ms=wait_ms, principal=Principal(subject=subject))


def held(upstream: Upstream) -> int:
    """Asked anew each time: it changes."""
    return upstream._waits.held


def test_one_caller_gets_half_and_is_told_so() -> None:
    waits = Waits()
    for _ in range(WAITS // 2):
        waits.take(OWNERS[0], 1)
    with pytest.raises(Unavailable, match="This caller waits for too many executions") as refused:
        waits.take(OWNERS[0], 1)
    assert 1 == refused.value.retry_after_s
    # The same subject of another tenant is another; with two streams there is twice the room.
    waits.take(OWNERS[2], 1)
    waits.take(OWNERS[0], 2)


def test_all_together_get_no_more_than_there_are() -> None:
    waits = Waits()
    places = [waits.take(OWNERS[number % 4], 0) for number in range(WAITS)]
    with pytest.raises(Unavailable, match="Too many callers wait"):
        waits.take(Principal(subject="new"), 1)
    waits.release(places.pop())
    waits.take(Principal(subject="new"), 1)


@given(st.lists(st.one_of(st.tuples(st.sampled_from(OWNERS), st.integers(0, 2)), st.integers(0, 9)), max_size=60))
def test_places_are_counted_exactly(steps: list[tuple[Principal, int] | int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flx_api.upstream.waits.WAITS", 6)
        waits, places = Waits(), list[Place]()
        for step in steps:
            if isinstance(step, int):
                if step < len(places):
                    waits.release(places.pop(step))
            else:
                owner, streams = step
                most, own = 6 * max(streams, 1), sum(place.owner == of(owner) for place in places)
                try:
                    places.append(waits.take(owner, streams))
                except Unavailable:
                    assert len(places) >= most or own >= most // 2
                else:
                    assert len(places) <= most
                    assert own < most // 2
            # Nothing is kept of owners who hold none.
            assert (len(places), Counter(place.owner for place in places)) == (waits.held, waits._of_owner)


def test_who_waits_for_much_keeps_nobody_else_from_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.upstream.waits.WAITS", 6)

    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["execution.wait"] = lambda given: None if given.principal.subject == "anna" else ReplyFrame()
        daemon.answers["pipeline.run"] = lambda _: None
        waits = [
            asyncio.create_task(upstream.call(waiting("anna", wait_ms), 20, read=False)) for wait_ms in (0, 5_000, 0)
        ]
        await until(lambda: len(daemon.commands()) == 3)
        with pytest.raises(Unavailable, match="This caller waits"):
            await upstream.call(waiting("anna"), 5, read=True)
        with pytest.raises(Unavailable, match="This caller waits"):
            await upstream.call(waiting("anna", 5), 5, read=False)
        assert "" == (await upstream.call(waiting("ben"), 5, read=True)).code
        # Also anna's own commands that do not wait.
        assert b"{}" == (await upstream.call(frame(), 5, read=True)).result
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    run(story)


def test_places_come_back_however_a_wait_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.upstream.waits.WAITS", 10)

    async def story(daemon: SmallDaemon, upstream: Upstream, server: Server, _socket: Path) -> None:
        daemon.answers["execution.wait"] = lambda _: None
        free = upstream._credits._value
        # Its caller leaves before it has left, and later: then it holds its place as long as the daemon is about it.
        early = asyncio.create_task(upstream.call(waiting("anna"), 0.2, read=False))
        await asyncio.sleep(0)
        early.cancel()
        late = asyncio.create_task(upstream.call(waiting("anna"), 0.2, read=False))
        await until(daemon.commands)
        late.cancel()
        await asyncio.gather(early, late, return_exceptions=True)
        assert 1 <= held(upstream) == len(upstream._abandoned)
        # Others come to the end of their time, alone and in a batch.
        with pytest.raises(FlxError):
            await upstream.call(waiting("anna"), 0.1, read=False)
        group = Group(upstream)
        await group.begin(0, waiting("anna"), 5, read=False)
        await group.begin(1, waiting("ben"), 5, read=False)
        group.close()
        await until(lambda: held(upstream) == 2)
        # Refused for want of a credit: the place goes back.
        upstream._credits.resize(-free)
        monkeypatch.setattr("flx_api.upstream.channel.QUEUE_S", 0.01)
        with pytest.raises(Unavailable):
            await upstream.call(waiting("carl"), 5, read=False)
        hoping = asyncio.create_task(upstream.call(waiting("carl"), 5, read=False))
        await asyncio.sleep(0)
        assert 3 == held(upstream)
        hoping.cancel()
        await asyncio.gather(hoping, return_exceptions=True)
        upstream._credits.resize(free)
        assert 2 == held(upstream)
        # And the rest with the stream.
        lost = asyncio.create_task(upstream.call(waiting("carl"), 5, read=False))
        await until(lambda: held(upstream) == 3)
        await stop(server)
        with pytest.raises(Unavailable):
            await lost
        await until(lambda: held(upstream) == 0)
        assert {} == upstream._waits._of_owner

    run(story)
