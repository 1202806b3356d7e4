"""A change that is rehearsed: noted row by row, undone as a whole, and nobody hears of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, insert, literal, select, text, update

from flx_api.daemon.journal import Journal, Rehearsed, RowChange, rehearsing
from flx_api.daemon.journal.sqlite import file_of
from flx_api.daemon.journal.tables import users
from flx_api.errors import Conflict, Internal
from flx_api.models.event import SystemEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from flx_api.daemon.journal import Tx

EVENT = SystemEvent("started", "words")


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Journal]:
    journal = await Journal.open(f"sqlite:///{folder / 'flx.db'}", "p", lambda: 7)
    try:
        await journal.write(lambda tx: add(tx, "ann"))
        yield journal
    finally:
        await journal.close()


def row(name: str, **values: Any) -> dict[str, Any]:
    made = {"project_id": "p", "username": name, "tenant": "default", "password_hash": "x", "roles": b"[]"}
    return {**made, "disabled": False, "created_us": 1, **values}


def add(tx: Tx, *names: str) -> None:
    tx.connection.execute(insert(users), [row(name) for name in names])


async def rehearsed(journal: Journal, change: Callable[[Tx], Any]) -> Rehearsed:
    with rehearsing(), pytest.raises(Rehearsed) as raised:
        await journal.write(change)
    return raised.value


def test_what_would_change_is_told_and_not_done(tmp_path: Path) -> None:
    def change(tx: Tx) -> str:
        add(tx, "bob", "cid", "dan")
        tx.connection.execute(update(users).where(users.c.username.in_(["ann", "bob"])).values(disabled=True))
        tx.connection.execute(delete(users).where(users.c.username == "cid"))
        # Changed and changed back is not changed.
        tx.connection.execute(update(users).where(users.c.username == "dan").values(tenant="other"))
        tx.emit("system_events", EVENT, tenant="default")
        return "done"

    async def story() -> None:
        async with opened(tmp_path) as journal:
            told = await rehearsed(journal, change)
            assert told.value == "done"
            assert list(told.rows) == [
                RowChange("users", None, row("bob", disabled=True)),
                RowChange("users", None, row("dan", tenant="other")),
                RowChange("users", row("ann"), row("ann", disabled=True)),
            ]
            with journal.read() as connection:
                assert connection.execute(select(users.c.username)).scalars().all() == ["ann"]
            assert journal.seq == 0
            # The number that the event would have had is the next one's.
            assert await journal.write(lambda tx: tx.emit("system_events", EVENT, tenant="default")) == 1
            assert [event.prev for event in journal.events_after(0, 9)] == [0]

    asyncio.run(story())


def test_what_is_changed_back_is_no_change(tmp_path: Path) -> None:
    def change(tx: Tx) -> None:
        for tenant in ("other", "default"):
            tx.connection.execute(update(users).values(tenant=tenant))
        add(tx, "bob")
        tx.connection.execute(delete(users).where(users.c.username == "bob"))

    async def story() -> None:
        async with opened(tmp_path) as journal:
            assert list((await rehearsed(journal, change)).rows) == []

    asyncio.run(story())


def test_the_files_of_the_database_are_not_even_written(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            database = file_of(f"sqlite:///{tmp_path / 'flx.db'}")
            files = [database, database.with_name("flx.db-wal"), database.with_name("flx.db-mark")]
            before = [file.read_bytes() for file in files]
            await rehearsed(journal, lambda tx: add(tx, *(f"user {number}" for number in range(500))))
            assert [file.read_bytes() for file in files] == before

    asyncio.run(story())


def test_others_of_the_same_commit_are_for_real(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:

            async def ask(number: int) -> object:
                if number % 2:
                    await journal.write(lambda tx: add(tx, f"real {number}"))
                    return None
                return await rehearsed(journal, lambda tx: add(tx, f"played {number}"))

            await asyncio.gather(*(ask(number) for number in range(40)))
            with journal.read() as connection:
                names = set(connection.execute(select(users.c.username)).scalars())
            assert names == {"ann", *(f"real {number}" for number in range(1, 40, 2))}

    asyncio.run(story())


def test_a_refusal_is_the_refusal(tmp_path: Path) -> None:
    def refuse(tx: Tx) -> None:
        add(tx, "bob")
        raise Conflict

    async def story() -> None:
        async with opened(tmp_path) as journal:
            with rehearsing(), pytest.raises(Conflict):
                await journal.write(refuse)

    asyncio.run(story())


def test_only_the_task_that_asks_rehearses(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            asked = asyncio.Event()

            async def background() -> None:
                await asked.wait()
                await journal.write(lambda tx: add(tx, "bob"))

            task = asyncio.create_task(background())
            with rehearsing():
                asked.set()
                await task
            # And no longer than it asks.
            await journal.write(lambda tx: add(tx, "cid"))

    asyncio.run(story())


def test_what_nobody_could_tell_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            with rehearsing(), pytest.raises(TypeError, match="TextClause"):
                await journal.write(lambda tx: tx.connection.execute(text("DELETE FROM users")))
            told = await rehearsed(journal, lambda tx: tx.connection.scalar(select(literal(3))))
            assert told.value == 3
            with journal.read() as connection:
                assert connection.execute(select(users.c.username)).scalars().all() == ["ann"]
            assert not isinstance(journal.fault, Internal)

    asyncio.run(story())
