"""Changes that are made on the loop: as if the thread had made them, and never in anybody's way."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from flx_api.daemon.journal import Journal, Place, Prepared, turns
from flx_api.daemon.journal.tables import users
from flx_api.errors import FlxError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import pytest

    from flx_api.daemon.journal import Tx

Wish = tuple[str, str]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Journal]:
    journal = await Journal.open(f"sqlite:///{folder}/journal.db", "project", lambda: 7)
    try:
        yield journal
    finally:
        await journal.close()


def adding(name: str, how: str = "add", threads: list[int] | None = None) -> Prepared[str]:
    """Adds a user, unless there is one. `how`: it fails then, looks at the connection, or names what cannot be."""

    def change(tx: Tx) -> str:
        if threads is not None:
            threads.append(threading.get_ident())
        if tx.find(users, "project", name) is not None:
            return "there"
        if how == "look":
            tx.connection.execute(select(func.count()).select_from(users)).scalar_one()
        row = {"project_id": "project", "username": name, "tenant": "t", "password_hash": "", "roles": b"[]"}
        # More than SQLite's integers hold.
        tx.add(users, {**row, "disabled": False, "created_us": 1 << 70 if how == "impossible" else 1})
        tx.emit(name, {}, tenant="t")
        if how == "fail":
            raise ValueError
        return "added"

    return Prepared(change, [Place(users, ("project", name))])


def names(journal: Journal) -> list[str]:
    with journal.read() as connection:
        return list(connection.execute(select(users.c.username).order_by(users.c.username)).scalars())


async def outcomes(journal: Journal, changes: list[Callable[[Tx], Any]]) -> list[object]:
    found = await asyncio.gather(*map(journal.write, changes), return_exceptions=True)
    return [type(one) if isinstance(one, BaseException) else one for one in found]


def test_small_changes_of_one_turn_are_one_group_made_on_the_loop(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            threads: list[int] = []
            found = await outcomes(journal, [adding(f"user-{n:03}", threads=threads) for n in range(200)])
            assert found == ["added"] * 200
            assert set(threads) == {threading.get_ident()}
            assert (journal.groups, journal.seq, len(names(journal))) == (1, 200, 200)
            assert [row.topic for row in journal.events_after(0, 3)] == ["user-000", "user-001", "user-002"]

    asyncio.run(story())


def test_a_group_with_any_other_change_is_made_in_the_thread(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            threads: list[int] = []
            other = adding("b", threads=threads).change
            assert await outcomes(journal, [adding("a", threads=threads), other]) == ["added", "added"]
            assert len(set(threads)) == 1
            assert threading.get_ident() not in threads

    asyncio.run(story())


def test_who_has_the_lock_holds_up_the_change_and_not_the_loop(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            holder = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            written = journal.write(adding("a"))
            # With the loop in SQLite's hands nobody would come here before its patience is at an end.
            for _ in range(50):
                await asyncio.sleep(0)
            assert not written.done()
            holder.execute("ROLLBACK")
            holder.close()
            assert await written == "added"

    asyncio.run(story())


def test_what_waits_when_the_journal_closes_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_STEP", 3)

    async def story(count: int) -> None:
        folder = tmp_path / str(count)
        folder.mkdir()
        async with opened(folder) as journal:
            written = [journal.write(adding(f"user-{n}")) for n in range(10)]
            for _ in range(count):
                await asyncio.sleep(0)
            await journal.close()
            assert await asyncio.gather(*written) == ["added"] * 10
        async with opened(folder) as journal:
            assert len(names(journal)) == 10

    for count in range(8):
        asyncio.run(story(count))


def test_a_change_that_nobody_waits_for_any_more_is_not_begun(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as journal:
            journal.write(adding("a")).cancel()
            assert await journal.write(adding("b")) == "added"
            assert names(journal) == ["b"]

    asyncio.run(story())


WISHES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["add", "add", "look", "fail", "impossible"])), max_size=12
)


@settings(max_examples=40, deadline=None)
@given(st.lists(WISHES, min_size=1, max_size=3), st.integers(1, 5))
def test_as_if_the_thread_had_made_them(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[Wish]], step: int
) -> None:
    async def story(folder: Path, *, on_the_loop: bool) -> tuple[object, ...]:
        async with opened(folder) as journal:
            if not on_the_loop:
                journal._turns = None
            found = [await outcomes(journal, [adding(*wish) for wish in wishes]) for wishes in groups]
            told = [(row.seq, row.prev, row.topic) for row in journal.events_after(0, 99)]
            return found, names(journal), told

    before, turns._STEP = turns._STEP, step  # type: ignore[misc]
    try:
        ours = asyncio.run(story(tmp_path_factory.mktemp("loop"), on_the_loop=True))
    finally:
        turns._STEP = before  # type: ignore[misc]
    assert asyncio.run(story(tmp_path_factory.mktemp("thread"), on_the_loop=False)) == ours
    assert FlxError not in [one for group in ours[0] for one in group]  # type: ignore[attr-defined]
