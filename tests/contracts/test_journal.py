"""What the rest of the daemon relies on from the journal, on a real SQLite file."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select

from flx_api.daemon.journal import DEFAULT_TENANT, Journal
from flx_api.daemon.journal.tables import events, executions, topic_heads, users
from flx_api.errors import FlxError, Unavailable
from flx_api.models.event import PipelineEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from flx_api.daemon.journal import Tx

EVENT = PipelineEvent("created", "p", "me")


class Clock:
    """Microseconds that advance by one at each look."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        self.now += 1
        return self.now


def add_execution(tx: Tx, execution_id: str, *, finished_us: int | None) -> None:
    row = {"id": execution_id, "tenant": DEFAULT_TENANT, "project_id": "project", "pipeline": "p", "status": "running"}
    row |= {"trigger": "api", "triggered_by": "me", "refresh": "incremental"}
    whole = {**row, "tasks": b"[]", "state_ids": b"[]", "warnings": b"[]", "queued_us": 1, "finished_us": finished_us}
    tx.connection.execute(insert(executions), whole)


@asynccontextmanager
async def opened(folder: Path, **options: int) -> AsyncIterator[Journal]:
    journal = await Journal.open(f"sqlite:///{folder / 'flx.db'}", "project", Clock(), **options)
    try:
        yield journal
    finally:
        await journal.close()


def emit(topic: str = "t", tenant: str = DEFAULT_TENANT) -> Callable[[Tx], int]:
    return lambda tx: tx.emit(topic, EVENT, tenant=tenant)


def add_user(tx: Tx, name: str) -> None:
    row = {"username": name, "tenant": "t", "project_id": "project", "password_hash": "", "roles": b"[]"}
    tx.connection.execute(insert(users), {**row, "disabled": False, "created_us": tx.now_us})


def names(journal: Journal) -> list[str]:
    with journal.read() as connection:
        return list(connection.execute(select(users.c.username).order_by(users.c.username)).scalars())


def test_an_epoch_and_the_sequence_outlive_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            epoch = journal.epoch
            assert journal.seq == 0
            assert await journal.write(emit()) == 1
        async with opened(tmp_path) as journal:
            assert (journal.epoch, journal.seq) == (epoch, 1)
            assert await journal.write(emit()) == 2
            assert [row.prev for row in journal.events_after(0, 10)] == [0, 1]

    asyncio.run(story())


def test_a_database_that_was_put_back_is_another_history(tmp_path: Path) -> None:
    """Its numbers are given again, for other events: nobody may take them for what was there before."""

    async def story() -> None:
        async with opened(tmp_path) as journal:
            epoch = journal.epoch
            await journal.write(emit())
            with (
                closing(sqlite3.connect(tmp_path / "flx.db")) as here,
                closing(sqlite3.connect(tmp_path / "b")) as there,
            ):
                here.backup(there)
            await journal.write(emit())
        (tmp_path / "b").replace(tmp_path / "flx.db")
        async with opened(tmp_path) as journal:
            assert journal.seq == 1
            assert journal.epoch != epoch
            epoch = journal.epoch
            assert await journal.write(emit()) == 2
        async with opened(tmp_path) as journal:
            assert (journal.epoch, journal.seq) == (epoch, 2)
        (tmp_path / "flx.db-mark").unlink()
        async with opened(tmp_path) as journal:
            assert journal.epoch != epoch, "one that comes without its mark may have been anywhere"

    asyncio.run(story())


def test_a_failing_change_raises_to_its_caller_and_disturbs_no_neighbour(tmp_path: Path) -> None:
    def fails(tx: Tx) -> None:
        add_user(tx, "lost")
        tx.emit("t", EVENT, tenant=DEFAULT_TENANT)
        raise KeyError

    async def story() -> None:
        async with opened(tmp_path) as journal:
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


def test_what_has_arrived_commits_as_one_group(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            await asyncio.gather(*(journal.write(emit()) for _ in range(200)))
            # The first one may go alone while the others gather.
            assert journal.changes == 200
            assert journal.groups <= 20

    asyncio.run(story())


def test_readers_see_a_change_as_soon_as_its_write_returns(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            await journal.write(lambda tx: add_user(tx, "a"))
            assert names(journal) == ["a"]
            with journal.read() as outer, journal.read() as inner:
                assert outer is inner

    asyncio.run(story())


def test_changed_returns_with_the_event_and_ends_with_the_journal(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
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


def test_topics_of_two_tenants_are_two_chains(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            for tenant in ("a", "b", "a"):
                await journal.write(emit("t", tenant))
            assert [(row.tenant, row.prev) for row in journal.events_after(0, 9)] == [("a", 0), ("b", 0), ("a", 1)]

    asyncio.run(story())


def test_old_events_come_from_the_database_when_memory_has_let_them_go(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path, tail_rows=4) as journal:
            for _ in range(20):
                await journal.write(emit())
            assert [row.seq for row in journal.events_after(0, 5)] == [1, 2, 3, 4, 5]
            assert [row.seq for row in journal.events_after(18, 5)] == [19, 20]
            assert journal.events_after(20, 5) == []

    asyncio.run(story())


def test_retention_removes_from_the_old_end_and_never_the_newest(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            await asyncio.gather(*(journal.write(emit(f"t{i % 3}")) for i in range(2500)))
            assert await journal.prune(before_us=0, keep_rows=2400) == 100
            assert journal.oldest == 101
            assert await journal.prune(before_us=2**60, keep_rows=10) == 2399
            assert journal.oldest == 2500
        async with opened(tmp_path) as journal:
            assert (journal.seq, journal.oldest) == (2500, 2500)
            # The chain goes on, although the topic's event before is gone.
            await journal.write(emit("t0"))
            assert journal.events_after(2500, 1)[0].prev == 2500

    asyncio.run(story())


def test_retention_forgets_the_heads_of_what_is_over(tmp_path: Path) -> None:
    """Topics of an execution go with its last event; those that go on, or always exist, keep the chain."""

    def heads(journal: Journal) -> list[str]:
        with journal.read() as connection:
            return sorted(connection.execute(select(topic_heads.c.topic)).scalars())

    async def story() -> None:
        async with opened(tmp_path) as journal:
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
        async with opened(tmp_path) as journal:
            await journal.write(emit("execution.on.status"))
            assert journal.events_after(7, 1)[0].prev == 4

    asyncio.run(story())


def test_retention_forgets_many_heads_in_steps(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            await asyncio.gather(*(journal.write(emit(f"execution.{number}.status")) for number in range(2500)))
            await journal.prune(before_us=0, keep_rows=1)
            with journal.read() as connection:
                assert connection.execute(select(topic_heads.c.seq)).scalars().all() == [2500]

    asyncio.run(story())


def test_a_full_disk_is_507_reads_go_on_and_space_heals_it(tmp_path: Path) -> None:
    def limit_pages(tx: Tx, pages: int) -> None:
        tx.connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def big(tx: Tx) -> None:
        tx.connection.exec_driver_sql(
            "INSERT INTO users VALUES ('project', 'big', 't', ?, x'5b5d', 0, 0)", ("x" * 1_000_000,)
        )

    async def story() -> None:
        async with opened(tmp_path) as journal:
            await journal.write(lambda tx: add_user(tx, "a"))
            await journal.write(lambda tx: limit_pages(tx, 1))  # SQLite raises it to the present size
            with pytest.raises(FlxError) as refused:
                await journal.write(big)
            assert refused.value.code == "insufficient_storage"
            assert names(journal) == ["a"]
            # The limit was the connection's; a fault of the whole group gave it a new one.
            await journal.write(lambda tx: limit_pages(tx, 1_000_000))
            await journal.write(big)
            assert names(journal) == ["a", "big"]
            assert await journal.write(emit()) == 1

    asyncio.run(story())


def test_a_read_only_database_is_503_until_it_can_be_written_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            await journal.write(lambda tx: tx.connection.exec_driver_sql("PRAGMA query_only=ON"))
            with pytest.raises(Unavailable) as refused:
                await journal.write(emit())
            assert refused.value.code == "storage_unavailable"
            assert journal.fault is not None
            assert await journal.write(emit()) == 1
            assert journal.fault is None

    asyncio.run(story())


def test_a_lock_of_another_process_is_503_and_its_end_heals_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path, busy_timeout_ms=10) as journal:
            await journal.write(lambda tx: add_user(tx, "a"))
            with closing(sqlite3.connect(tmp_path / "flx.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(Unavailable) as refused:
                    await journal.write(emit())
                assert refused.value.code == "storage_unavailable"
                assert names(journal) == ["a"]
            assert await journal.write(emit()) == 1

    asyncio.run(story())


def test_a_caller_that_is_gone_before_its_change_begins_changes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            task = asyncio.create_task(journal.write(emit()))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
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


@settings(max_examples=15, deadline=None)
@given(CHANGES)
def test_like_a_naive_journal(changes: list[tuple[list[str], bool, bool]]) -> None:
    """Numbers are dense, `prev` is the topic's last one, effect and events are there both or neither."""

    async def story(folder: Path) -> None:
        async with opened(folder, tail_rows=3) as journal:

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

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(story(Path(folder)))


CHILD = """
import asyncio, itertools, sys
from pathlib import Path
from flx_api.daemon.journal import Journal
from flx_api.models.event import PipelineEvent

async def main(path):
    journal = await Journal.open(f"sqlite:///{path}", "project", itertools.count().__next__)
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


def test_what_was_acknowledged_before_kill_9_is_there_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "flx.db"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "python"}
    )
    assert child.stdout is not None
    acknowledged = [child.stdout.readline() for _ in range(500)]
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().split(b"\n")[:-1]
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL

    async def story() -> None:
        async with opened(tmp_path) as journal:
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
