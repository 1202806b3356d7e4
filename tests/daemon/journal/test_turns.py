"""Changes that are made on the loop: as if the thread had made them, and never in anybody's way."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import threading
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from flx_api.daemon.journal import Journal, Place, Prepared, pace, turns
from flx_api.daemon.journal.sqlite import Sqlite
from flx_api.daemon.journal.tables import users
from flx_api.errors import FlxError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import pytest
    from sqlalchemy import Connection

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
    """Adds a user, unless there is one. `how`: it fails then, looks at the connection, or adds what cannot be."""

    def change(tx: Tx) -> str:
        if threads is not None:
            threads.append(threading.get_ident())
        if tx.find(users, "project", name) is not None:
            return "there"
        if how == "look":
            tx.connection.execute(select(func.count()).select_from(users)).scalar_one()
        row = {"project_id": "project", "username": name, "tenant": "t", "password_hash": "", "roles": b"[]"}
        # More than SQLite's integers hold, or less than the table wants.
        created_us = {"impossible": 1 << 70, "missing": None}.get(how, 1)
        tx.add(users, {**row, "disabled": False, "created_us": created_us})
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


class Mover:
    """Stands before the move of the log: how often, and not before it is let by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        move = Sqlite.catch_up

        def catch_up(database: Sqlite, connection: Connection) -> None:
            self.count += 1
            self.begun.set()
            assert self.may_go_on.wait(10)
            move(database, connection)

        monkeypatch.setattr(Sqlite, "catch_up", catch_up)


def in_the_file_alone(folder: Path) -> list[str]:
    """The users in the database without its log."""
    copy = folder / "copy.db"
    # By another process: when this one closed the file, SQLite's locks on it would be gone.
    subprocess.run(["cp", folder / "journal.db", copy], check=True)
    with closing(sqlite3.connect(copy)) as connection:
        return [name for (name,) in connection.execute("SELECT username FROM users ORDER BY username")]


def test_who_waits_is_told_before_the_log_is_moved_and_the_next_one_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_FEWEST", 1)
    mover = Mover(monkeypatch)

    async def story() -> None:
        async with opened(tmp_path) as journal:
            assert await journal.write(adding("a")) == "added"
            assert await asyncio.to_thread(mover.begun.wait, 10)
            written = journal.write(adding("b"))
            for _ in range(50):
                await asyncio.sleep(0)
            assert not written.done()
            mover.may_go_on.set()
            assert await written == "added"
            assert "a" in in_the_file_alone(tmp_path)

    asyncio.run(story())


def test_a_calm_moment_is_used_to_move_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_WORTH", 1)
    monkeypatch.setattr(turns, "_CALM_S", 0.001)
    mover = Mover(monkeypatch)
    mover.may_go_on.set()

    async def story() -> None:
        async with opened(tmp_path) as journal:
            assert await journal.write(adding("a")) == "added"
            assert await asyncio.to_thread(mover.begun.wait, 10)
            # What comes in it waits, and no longer.
            assert await journal.write(adding("b")) == "added"
            assert "a" in in_the_file_alone(tmp_path)

    asyncio.run(story())


def test_a_journal_that_closes_before_the_calm_moment_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_WORTH", 1)
    mover = Mover(monkeypatch)

    async def story() -> None:
        async with opened(tmp_path) as journal:
            assert await journal.write(adding("a")) == "added"
        assert mover.count == 0

    asyncio.run(story())
    assert [file.name for file in tmp_path.glob("journal.db-*")] == ["journal.db-mark"]


def test_a_log_that_a_reader_holds_is_left_and_commands_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_FEWEST", 1)

    async def story() -> None:
        async with opened(tmp_path) as journal:
            with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as other:
                # A reader of long ago: nothing after what it sees may be moved.
                other.execute("BEGIN")
                other.execute("SELECT * FROM users").fetchall()
                for name in "abc":
                    assert await journal.write(adding(name)) == "added"
            assert await journal.write(adding("d")) == "added"
            assert journal.fault is None
            assert names(journal) == list("abcd")

    asyncio.run(story())


WISHES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["add", "add", "look", "fail", "impossible", "missing"])),
    max_size=12,
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
