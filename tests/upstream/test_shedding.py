"""Load shedding in the upstream: what finds room, what is refused and how soon, and who is left alone for a while."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.small_daemon import SmallDaemon, serving
from tests.upstream.test_channel import frame

from flx_api.errors import DeadlineExceeded, Unavailable
from flx_api.observability.metrics import Metrics
from flx_api.proto.flx.v1.daemon_pb2 import ReplyBatch, ReplyFrame
from flx_api.upstream import concurrency, shedding
from flx_api.upstream.breaker import LEAST_OUTCOMES, PROBES, State
from flx_api.upstream.channel import BURST_S, MOMENT_S, QUEUE_S, Upstream
from flx_api.upstream.connection import Carrier
from flx_api.upstream.endpoints import Endpoint
from flx_api.upstream.group import Group
from flx_api.upstream.pace import WINDOW_S, Pace
from flx_api.upstream.pending import StreamLost
from flx_api.upstream.shedding import Load, Loads, Passage
from flx_api.upstream.streams import Overloaded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api.upstream.shedding import Together

ORDINARY = concurrency.FIRST - int(concurrency.FIRST * concurrency.VITAL_SHARE + 0.999)


def run(story: Callable[[SmallDaemon, Upstream], Awaitable[None]]) -> None:
    async def told(socket: Path) -> None:
        daemon = SmallDaemon()
        upstream = Upstream(Endpoint(path=str(socket)), Metrics(), jitter=lambda: 0.0)
        async with asyncio.timeout(30), serving(daemon, socket):
            upstream.start()
            try:
                await upstream.connected.wait()
                await story(daemon, upstream)
            finally:
                await upstream.close()

    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        asyncio.run(told(Path(folder) / "d.sock"))


async def full(daemon: SmallDaemon, upstream: Upstream, deadline_s: float = 20) -> list[asyncio.Task[ReplyFrame]]:
    """As many commands that get no answer as there is room for."""
    daemon.answers["plugin.list"] = lambda _: None
    held = [asyncio.create_task(upstream.call(frame("plugin.list"), deadline_s, read=True)) for _ in range(ORDINARY)]
    while sum(one.command == "plugin.list" for one in daemon.frames) < ORDINARY:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0)
    return held


async def dropped(tasks: list[asyncio.Task[ReplyFrame]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_beyond_the_limit_nothing_waits_for_longer_than_a_moment() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        held = await full(daemon, upstream)
        # A burst of them; what waits is held for twenty seconds, so this is no test of speed.
        before = asyncio.get_running_loop().time()
        burst = [asyncio.create_task(upstream.call(frame(), 20, read=True)) for _ in range(500)]
        assert BURST_S == upstream._patience_s("call")
        await asyncio.sleep(0)
        assert len(upstream._waiting) > 100
        refusals = await asyncio.gather(*burst, return_exceptions=True)
        assert {("overloaded", 1)} == {(error.code, error.retry_after_s) for error in refusals}  # type: ignore[union-attr]
        assert asyncio.get_running_loop().time() - before < 5
        assert 500 == upstream.state().refused
        # From then on it is known sooner.
        assert (MOMENT_S, QUEUE_S) == (upstream._patience_s("call"), upstream._patience_s("grouped"))
        with pytest.raises(Overloaded):
            await upstream.call(frame(), 20, read=True)
        # What is vital finds room, and so does what takes none.
        assert "{}" == (await upstream.call(frame("system.status"), 5, read=True)).result.decode()
        assert "{}" == (await upstream.call(frame("execution.wait"), 5, read=True)).result.decode()
        await dropped(held)

    run(story)


def test_who_has_no_hope_of_a_turn_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # So long that a test would notice.
    monkeypatch.setattr("flx_api.upstream.channel.MOMENT_S", 20.0)

    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        held = await full(daemon, upstream)
        now = asyncio.get_running_loop().time()
        upstream._shed_s = now
        upstream._pace = Pace(now - WINDOW_S)
        async with asyncio.timeout(10):
            with pytest.raises(Overloaded):
                await upstream.call(frame(), 20, read=True)
        assert (0, 1) == (len(upstream._waiting), upstream.state().refused)
        # Where commands come to their end, some may wait, and no more than will get a turn.
        now = upstream._shed_s = asyncio.get_running_loop().time()
        upstream._pace = Pace(now - WINDOW_S)
        upstream._pace.ended = 1
        waiting = [asyncio.create_task(upstream.call(frame(), 20, read=True)) for _ in range(60)]
        while upstream.state().refused < 2:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)
        assert 0 < len(upstream._waiting) <= 20.0 / WINDOW_S / 2
        await dropped([*held, *waiting])

    run(story)


def test_a_burst_is_no_overload() -> None:
    async def story(_daemon: SmallDaemon, upstream: Upstream) -> None:
        replies = await asyncio.gather(*(upstream.call(frame(args=b"%d" % n), 5, read=True) for n in range(150)))
        assert [str(number) for number in range(150)] == [reply.result.decode() for reply in replies]
        assert (0, len(upstream._waiting)) == (upstream.in_flight, 0)
        assert concurrency.FIRST <= upstream.state().pools[0].limit

    run(story)


def test_what_comes_free_goes_to_who_waits_the_longest() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        held = await full(daemon, upstream)
        patient = upstream._patience_s
        upstream._patience_s = lambda kind: 20.0  # type: ignore[method-assign]  # noqa: ARG005
        waiting = [asyncio.create_task(upstream.call(frame(args=b"%d" % n), 20, read=True)) for n in range(5)]
        while len(upstream._waiting) < len(waiting):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)
        upstream._patience_s = patient  # type: ignore[method-assign]
        waiting[1].cancel()
        await dropped(held)
        for seq in list(upstream._abandoned):
            upstream.received(upstream._ready[0], ReplyBatch(frames=[ReplyFrame(seq=seq)]).SerializeToString())
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [True, False, True, True, True] == [isinstance(reply, ReplyFrame) for reply in done]
        assert [b"0", b"2", b"3", b"4"] == [one.args for one in daemon.frames if one.args.isdigit()]
        # Whoever left in between took nothing along; and what was cut short is no measure of anything.
        assert (0, 240) == (upstream.in_flight, upstream._credits._value)
        assert set(upstream._ready[0].load._limit._seen) <= {"system.echo"}

    run(story)


def test_a_daemon_that_does_not_answer_is_left_alone_and_found_again() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        for _ in range(2):
            # Little time says nothing about the daemon.
            await asyncio.gather(*await full(daemon, upstream, 0.01), return_exceptions=True)
            daemon.frames.clear()
        load = upstream._ready[0].load
        assert State.CLOSED is load.state
        given = await asyncio.gather(*await full(daemon, upstream, shedding.PATIENT_S), return_exceptions=True)
        assert {DeadlineExceeded} == {type(error) for error in given}
        assert (State.OPEN, 1) == (load.state, upstream.state().pools[0].open)
        with pytest.raises(Overloaded) as refusal:
            await upstream.call(frame(), 5, read=True)
        assert "upstream_unavailable" == refusal.value.code
        assert refusal.value.retry_after_s is not None
        daemon.answers.clear()
        for _ in range(PROBES):
            answer = None
            while answer is None:
                with contextlib.suppress(Unavailable):
                    answer = await upstream.call(frame(), 5, read=True)
                await asyncio.sleep(0.01)
        assert State.CLOSED is load.state

    run(story)


def test_nothing_is_sent_again_beyond_the_budget() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        while upstream.may_send_again():
            pass
        daemon.answers["plugin.list"] = lambda _: None
        call = asyncio.create_task(upstream.call(frame("plugin.list"), 5, read=True))
        while not any(one.command == "plugin.list" for one in daemon.frames):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)
        upstream.lost(upstream._ready[0])
        with pytest.raises(StreamLost):
            await call
        assert 2 <= upstream.state().not_sent_again

    run(story)


def test_a_stream_that_is_lost_takes_what_was_left_on_it_along() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        daemon.answers["plugin.list"] = lambda _: None
        group = Group(upstream)
        await group.begin(0, frame("plugin.list"), 20, read=True)
        group.close()
        assert 1 == len(upstream._abandoned)
        upstream.lost(upstream._ready[0])
        assert (0, 0) == (len(upstream._abandoned), upstream.in_flight)

    run(story)


def test_a_stream_that_never_took_commands_is_lost_like_any_other() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream) -> None:
        daemon.answers["system.echo"] = lambda _: None
        # As when a stream is renewed: the connection is there, the new stream has not answered yet.
        new = Carrier(upstream._ready[0].connection)
        new.outbox = upstream._ready[0].outbox
        asking = asyncio.create_task(upstream.ask(new))
        await asyncio.sleep(0)
        upstream.lost(new)
        with pytest.raises(StreamLost):
            await asking

    run(story)


def test_a_passage_ends_once() -> None:
    load = Load(0.0)
    passages = [load.enter("pipeline.list", 0.0, "ordinary") for _ in range(ORDINARY)]
    assert load.enter("pipeline.list", 0.0, "ordinary") is None
    passage = passages[0]
    assert passage is not None
    for _ in range(3):
        passage.answered(0.1)
        passage.unanswered(5.0, 0.0)
        passage.lost()
    assert load.enter("pipeline.list", 0.2, "ordinary") is not None
    assert load.enter("pipeline.list", 0.2, "ordinary") is None


def test_connections_that_break_again_and_again_open_the_breaker() -> None:
    load = Load(0.0)
    for step in range(LEAST_OUTCOMES):
        assert State.CLOSED is load.state
        load.broke(step / 10, 0.0)
    assert State.OPEN is load.state
    assert load.retry_after_s(LEAST_OUTCOMES / 10) > 0
    assert load.enter("pipeline.list", LEAST_OUTCOMES / 10, "vital") is None


def test_what_is_known_of_addresses_is_bounded() -> None:
    loads = Loads()
    first = loads.of((1, "here"), 0.0)
    assert first is loads.of((1, "here"), 1.0)
    for number in range(3000):
        loads.of((1, str(number)), float(number))
    assert len(loads.of_daemon(1)) < 2000


SPELLS = st.lists(
    st.tuples(
        # What enters, after what time, and how many of the oldest are answered, lost or late then.
        st.sampled_from([0.0, 0.001, 0.03, 0.2, 1.5]),
        st.integers(0, 40),
        st.booleans(),
        st.integers(0, 40),
        st.sampled_from(["answered", "answered", "answered", "lost", "late"]),
    ),
    max_size=60,
)


def end(passage: Passage, how: str, now_s: float) -> None:
    if how == "answered":
        passage.answered(now_s)
    elif how == "lost":
        passage.lost()
    else:
        passage.unanswered(now_s, 0.0)


@given(SPELLS)
def test_together_is_the_same_as_one_by_one(story: list[tuple[float, int, bool, int, str]]) -> None:
    """Only that where windows end within what came together, they end after it."""
    one, many, now = Load(0.0), Load(0.0), 0.0
    passages: deque[Passage] = deque()
    together: deque[tuple[float, int, Together]] = deque()
    for wait_s, count, is_grouped, ending, how in story:
        now += wait_s
        sort: Together = "grouped" if is_grouped else "ordinary"
        entered = [passage for _ in range(count) if (passage := one.enter("a", now, sort)) is not None]
        passages += entered
        let_in, life = many.enter_many(count, sort)
        if one.state is not State.CLOSED:
            # Probes are an affair of those that come one by one.
            assert 0 == let_in
            return
        assert len(entered) == let_in
        together += [(now, life, sort)] * let_in
        over = [passages.popleft() for _ in range(min(ending, len(passages)))]
        over_together = [together.popleft() for _ in over]
        for passage in over:
            end(passage, how, now)
        grouped = sum(sort == "grouped" for _, _, sort in over_together)
        if how == "answered" and over_together:
            times = [now - began_s for began_s, _, _ in over_together if began_s >= many.since_s]
            took = [("a", len(times), sum(times))] if times else []
            of_life = sum(life == many.life for _, life, _ in over_together)
            many.answered_many(took, len(over_together) - grouped, grouped, of_life, now)
        elif how == "lost":
            many.lost_many(len(over_together) - grouped, grouped)
        for began_s, life, sort in over_together if how == "late" else ():
            many.unanswered_one(began_s, life, now, 0.0, sort)
        assert one._gate.outstanding == many._gate.outstanding
        assert one._gate._of == many._gate._of
        assert one.state is many.state
        assert (one.room > 0) == (many.room > 0) or one.limit != many.limit
        if one.limit != many.limit:
            return
