"""What the rest of the daemon relies on from the journal, on a real SQLite file and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from tests.contracts.journal_homes import EVENT, add_execution, add_user, emit, names, opened

from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.daemon.journal.tables import events, topic_heads
from flx_api.errors import Unavailable
from flx_api.models.event import PipelineEvent
from flx_api.models.topic_rules import Expiry

if TYPE_CHECKING:
    from tests.contracts.journal_homes import Home

    from flx_api.daemon.journal import Journal, Tx


def test_an_epoch_and_the_sequence_outlive_a_restart(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            epoch = journal.epoch
            assert journal.seq == 0
            assert await journal.write(emit()) == 1
        async with opened(home) as journal:
            assert (journal.epoch, journal.seq) == (epoch, 1)
            assert await journal.write(emit()) == 2
            assert [row.prev for row in journal.events_after(0, 10)] == [0, 1]

    asyncio.run(story())


def test_a_failing_change_raises_to_its_caller_and_disturbs_no_neighbour(home: Home) -> None:
    def fails(tx: Tx) -> None:
        add_user(tx, "lost")
        tx.emit("t", EVENT, tenant=DEFAULT_TENANT)
        raise KeyError

    async def story() -> None:
        async with opened(home) as journal:
            results = await asyncio.gather(
                journal.write(lambda tx: add_user(tx, "a")),
                journal.write(fails),
                journal.write(lambda tx: add_user(tx, "b")),
                journal.write(emit()),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [type(None), KeyError, type(None), int]
            assert names(journal) == ["a", "b"]
            assert [row.seq for row in journal.events_after(0, 10)] == [1]

    asyncio.run(story())


def test_what_has_arrived_commits_as_one_group(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            await asyncio.gather(*(journal.write(emit()) for _ in range(200)))
            # The first one may go alone while the others gather.
            assert journal.changes == 200
            assert journal.groups <= 20

    asyncio.run(story())


def test_readers_see_a_change_as_soon_as_its_write_returns(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            await journal.write(lambda tx: add_user(tx, "a"))
            assert names(journal) == ["a"]
            with journal.read() as outer, journal.read() as inner:
                assert outer is inner

    asyncio.run(story())


def test_changed_returns_with_the_event_and_ends_with_the_journal(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            waiting = asyncio.create_task(journal.changed(0))
            await journal.write(lambda tx: add_user(tx, "no event"))
            assert not waiting.done()
            await journal.write(emit())
            assert await waiting == 1
            endless = asyncio.create_task(journal.changed(1))
            await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await endless
        with pytest.raises(Unavailable) as refused:
            await journal.write(emit())
        assert refused.value.code == "shutting_down"

    asyncio.run(story())


def test_topics_of_two_tenants_are_two_chains(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            for tenant in ("a", "b", "a"):
                await journal.write(emit("t", tenant))
            assert [(row.tenant, row.prev) for row in journal.events_after(0, 9)] == [("a", 0), ("b", 0), ("a", 1)]

    asyncio.run(story())


def test_old_events_come_from_the_database_when_memory_has_let_them_go(home: Home) -> None:
    async def story() -> None:
        async with opened(home, tail_rows=4) as journal:
            for _ in range(20):
                await journal.write(emit())
            assert [row.seq for row in journal.events_after(0, 5)] == [1, 2, 3, 4, 5]
            assert [row.seq for row in journal.events_after(18, 5)] == [19, 20]
            assert journal.events_after(20, 5) == []

    asyncio.run(story())


def test_retention_removes_from_the_old_end_and_never_the_newest(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            await asyncio.gather(*(journal.write(emit(f"t{i % 3}")) for i in range(2500)))
            assert await journal.prune(before_us=0, keep_rows=2400) == 100
            assert journal.oldest == 101
            assert await journal.prune(before_us=2**60, keep_rows=10) == 2399
            assert journal.oldest == 2500
        async with opened(home) as journal:
            assert (journal.seq, journal.oldest) == (2500, 2500)
            # The chain goes on, although the topic's event before is gone.
            await journal.write(emit("t0"))
            assert journal.events_after(2500, 1)[0].prev == 2500

    asyncio.run(story())


@pytest.mark.parametrize("tail_rows", [1, 10_000], ids=["from the database", "from memory"])
def test_topics_that_are_kept_for_a_shorter_time_are_emptied_where_they_are(home: Home, tail_rows: int) -> None:
    """More than a step of them; the first rule that fits counts, and case does."""
    topics = ["app.a.x", "app.a.keep", "app.b", "app.A.x", "system_events"]
    found = [Expiry("app.a.keep", 0), Expiry("app.a.*", 2**60), Expiry("app.b", 2**60)]

    async def story() -> None:
        async with opened(home, tail_rows=tail_rows) as journal:
            await asyncio.gather(*(journal.write(emit(topic)) for topic in topics * 1100))
            assert 2200 == await journal.forget(found)
            assert 0 == await journal.forget(found)
            rows = journal.events_after(0, 10_000)
            assert list(range(1, 5501)) == [row.seq for row in rows]
            assert {"app.a.x", "app.b"} == {row.topic for row in rows if not row.data}
            assert {"app.a.keep", "app.A.x", "system_events"} == {row.topic for row in rows if row.data}
            # What is young stays, and the chain goes on.
            await journal.write(emit("app.b"))
            assert 0 == await journal.forget([Expiry("app.b", 1)])
            (newest,) = journal.events_after(5500, 2)
            assert (newest.prev, bool(newest.data)) == (rows[-3].seq, True)

    asyncio.run(story())


def test_retention_forgets_the_heads_of_what_is_over(home: Home) -> None:
    """Topics of an execution go with its last event; those that go on, or always exist, keep the chain."""

    def heads(journal: Journal) -> list[str]:
        with journal.read() as connection:
            return sorted(connection.execute(select(topic_heads.c.topic)).scalars())

    async def story() -> None:
        async with opened(home) as journal:
            await journal.write(lambda tx: add_execution(tx, "over", finished_us=5))
            await journal.write(lambda tx: add_execution(tx, "on", finished_us=None))
            topics = ["execution.over.status", "execution.over.metric", "execution.gone.status", "execution.on.status"]
            for topic in (*topics, "system_events", "execution.over.status"):
                await journal.write(emit(topic))
            await journal.prune(before_us=0, keep_rows=2)
            assert heads(journal) == ["execution.on.status", "execution.over.status", "system_events"]
            await journal.write(emit("execution_events"))
            await journal.prune(before_us=0, keep_rows=1)
            assert heads(journal) == ["execution.on.status", "execution_events", "system_events"]
        async with opened(home) as journal:
            await journal.write(emit("execution.on.status"))
            assert journal.events_after(7, 1)[0].prev == 4

    asyncio.run(story())


def test_retention_forgets_many_heads_in_steps(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            await asyncio.gather(*(journal.write(emit(f"execution.{number}.status")) for number in range(2500)))
            await journal.prune(before_us=0, keep_rows=1)
            with journal.read() as connection:
                assert connection.execute(select(topic_heads.c.seq)).scalars().all() == [2500]

    asyncio.run(story())


def test_a_caller_that_is_gone_before_its_change_begins_changes_nothing(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            written = journal.write(emit())
            written.cancel()
            await asyncio.gather(written, return_exceptions=True)
            # Whether the thread was faster or not, the numbers stay dense.
            after = await journal.write(emit())
            assert [row.seq for row in journal.events_after(0, 9)] == list(range(1, after + 1))

    asyncio.run(story())


CHANGES = st.lists(st.tuples(st.lists(st.sampled_from("abc"), max_size=4), st.booleans(), st.booleans()), max_size=40)


def naive(changes: list[tuple[list[str], bool, bool]]) -> list[tuple[int, int, str, str]]:
    """Changes one after the other, in order of arrival; those that fail never happened."""
    heads: dict[str, int] = {}
    expected: list[tuple[int, int, str, str]] = []
    for number, (topics, fails, _) in enumerate(changes):
        for topic in topics if not fails else []:
            expected.append((len(expected) + 1, heads.get(topic, 0), topic, f"{number:03}"))
            heads[topic] = len(expected)
    return expected


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES)
def test_like_a_naive_journal(home: Home, changes: list[tuple[list[str], bool, bool]]) -> None:
    """Numbers are dense, `prev` is the topic's last one, effect and events are there both or neither."""

    async def story() -> None:
        async with opened(home.another(), tail_rows=3) as journal:

            async def one(number: int) -> None:
                topics, fails, late = changes[number]

                def change(tx: Tx) -> None:
                    if not late:
                        add_user(tx, f"{number:03}")
                    for topic in topics:
                        tx.emit(topic, PipelineEvent("created", f"{number:03}", ""), tenant="t")
                    if late:
                        add_user(tx, f"{number:03}")
                    if fails:
                        raise ArithmeticError

                if fails:
                    with pytest.raises(ArithmeticError):
                        await journal.write(change)
                else:
                    await journal.write(change)

            await asyncio.gather(*(one(number) for number in range(len(changes))))
            expected = naive(changes)
            rows = journal.events_after(0, 1000)
            assert [(row.seq, row.prev, row.topic) for row in rows] == [item[:3] for item in expected]
            assert all(item[3].encode() in row.data for row, item in zip(rows, expected, strict=True))
            assert names(journal) == [f"{number:03}" for number, item in enumerate(changes) if not item[1]]
            with journal.read() as connection:
                stored = connection.execute(select(events.c.seq, events.c.prev).order_by(events.c.seq)).all()
            assert [tuple(row) for row in stored] == [item[:2] for item in expected]

    asyncio.run(story())


CHILD = """
import asyncio, itertools, sys
from flx_api.daemon.journal import Journal
from flx_api.models.event import PipelineEvent

async def main(url):
    journal = await Journal.open(url, "project", itertools.count().__next__)
    numbers = itertools.count()
    async def worker():
        for number in numbers:
            event = PipelineEvent("created", str(number), "me")
            await journal.write(lambda tx: tx.emit(f"t{number % 7}", event, tenant="t"))
            sys.stdout.write(f"{number}\\n")
            sys.stdout.flush()
    await asyncio.gather(*(worker() for _ in range(16)))

asyncio.run(main(sys.argv[1]))
"""


def test_what_was_acknowledged_before_kill_9_is_there_afterwards(home: Home) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, home.url], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "python"}
    )
    assert child.stdout is not None
    acknowledged = [child.stdout.readline() for _ in range(500)]
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().split(b"\n")[:-1]
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL

    async def story() -> None:
        async with opened(home) as journal:
            rows = journal.events_after(0, 1_000_000)
            assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
            held = {row.data.split(b'"pipeline":"')[1].split(b'"')[0] for row in rows}
            assert {line.strip() for line in (*acknowledged, *rest)} <= held
            heads: dict[str, int] = {}
            for row in rows:
                assert row.prev == heads.get(row.topic, 0)
                heads[row.topic] = row.seq
            assert await journal.write(emit()) == len(rows) + 1

    asyncio.run(story())
