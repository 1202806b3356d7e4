"""Rows that a group looks for and adds together, on both kinds of database: as if each change had come alone."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, func, select, update
from tests.contracts.journal_homes import EVENT, emit, names, opened

from flx_api.daemon.journal import Place, Prepared
from flx_api.daemon.journal.rows import driver_of, statements_of
from flx_api.daemon.journal.tables import idempotency, pipelines, users
from flx_api.errors import FlxError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.contracts.journal_homes import Home

    from flx_api.daemon.journal import Journal, Tx

NAMES = ("a", "b", "c", "d")


def row(name: str) -> dict[str, Any]:
    """A whole user."""
    made = {"project_id": "project", "username": name, "tenant": "t", "password_hash": "", "roles": b"[]"}
    return {**made, "disabled": False, "created_us": 1}


def place(name: str) -> Place:
    return Place(users, ("project", name))


def adding(*wanted: str) -> Prepared[list[str]]:
    """Adds those that are not there; returns which."""

    def change(tx: Tx) -> list[str]:
        free = [name for name in dict.fromkeys(wanted) if tx.find(users, "project", name) is None]
        for name in free:
            tx.add(users, row(name))
        return free

    return Prepared(change, [place(name) for name in wanted])


async def at_once(journal: Journal, *changes: Callable[[Tx], Any]) -> list[Any]:
    """All of them in one group: the writer is held until they are in its queue."""
    gate = threading.Event()
    holding = asyncio.ensure_future(journal.write(lambda _tx: gate.wait(10)))
    results = [asyncio.ensure_future(journal.write(change)) for change in changes]
    await asyncio.sleep(0)
    gate.set()
    assert await holding
    before = journal.groups
    found = await asyncio.gather(*results, return_exceptions=True)
    assert journal.groups - before <= 1
    return found


def test_a_row_is_found_by_the_changes_after_the_one_that_added_it(home: Home) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            assert await at_once(journal, adding("a"), adding("a", "b"), adding("c", "b")) == [["a"], ["b"], ["c"]]
            assert names(journal) == ["a", "b", "c"]
            assert await at_once(journal, adding("c", "d"), adding("d")) == [["d"], []]

    asyncio.run(story())


def test_a_row_of_a_change_that_fails_is_not_there(home: Home) -> None:
    def fails(tx: Tx) -> None:
        tx.add(users, row("a"))
        assert tx.find(users, "project", "a") == row("a")
        tx.emit("t", EVENT, tenant="t")
        raise KeyError

    def fails_late(tx: Tx) -> None:
        tx.add(users, row("b"))
        assert tx.connection.execute(select(users.c.username).where(users.c.username == "b")).scalar() == "b"
        tx.add(users, row("c"))
        raise KeyError

    async def story() -> None:
        async with opened(home) as journal:
            found = await at_once(journal, fails, fails_late, adding("a", "b", "c"), emit())
            assert [type(one) for one in found] == [KeyError, KeyError, list, int]
            assert found[2:] == [["a", "b", "c"], 1]
            assert names(journal) == ["a", "b", "c"]

    asyncio.run(story())


def test_a_statement_sees_what_was_added_and_what_it_changes_is_found(home: Home) -> None:
    def disables(tx: Tx) -> int:
        return tx.connection.execute(update(users).values(disabled=True)).rowcount

    def looks(tx: Tx) -> Any:
        return tx.find(users, "project", "a")

    async def story() -> None:
        async with opened(home) as journal:
            found = await at_once(journal, adding("a"), disables, Prepared(looks, [place("a")]))
            assert found == [["a"], 1, {**row("a"), "disabled": True}]

    asyncio.run(story())


def test_a_value_that_cannot_be_kept_is_the_fault_of_its_change_alone(home: Home) -> None:
    """PostgreSQL keeps no NUL; both refuse a second row of one key."""

    def careless(tx: Tx) -> None:
        tx.add(users, row("a"))

    def odd(tx: Tx) -> None:
        assert tx.find(users, "project", "o\0dd") is None
        tx.add(users, row("o\0dd"))

    async def story() -> None:
        async with opened(home) as journal:
            await journal.write(adding("a"))
            odd_one = Prepared(odd, [place("o\0dd")])
            found = await at_once(journal, adding("b"), careless, odd_one, emit(), adding("c"))
            assert isinstance(found[1], Exception)
            assert found[2] is None if home.url.startswith("sqlite") else isinstance(found[2], FlxError)
            assert (found[0], *found[3:]) == (["b"], 1, ["c"])
            assert {"a", "b", "c"} <= set(names(journal))

    asyncio.run(story())


def test_a_group_costs_a_few_statements_however_many_changes(home: Home) -> None:
    said: list[str] = []

    async def story() -> None:
        async with opened(home) as journal:
            connection = journal._writer._connection
            if home.url.startswith("sqlite"):
                # Most is said to the driver itself; it tells every statement, whoever says it.
                driver_of(connection).set_trace_callback(said.append)
            else:
                event.listen(connection, "before_cursor_execute", lambda *words: said.append(words[2]))
            await at_once(journal, *(adding(f"user-{number}") for number in range(128)))
            assert len(names(journal)) == 128
            assert len([words for words in said if "users" in words]) == 1 + 128 // 64

    asyncio.run(story())


@pytest.mark.parametrize("table", [users, idempotency, pipelines])
def test_many_are_found_by_the_index(home: Home, table: Any) -> None:
    """A look at every row would be right too, and ever slower."""

    async def story() -> None:
        async with opened(home) as journal:
            with journal.read() as connection:
                text = str(statements_of(table).of_keys.compile(connection, compile_kwargs={"literal_binds": True}))
                sqlite = home.url.startswith("sqlite")
                if not sqlite:
                    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
                told = connection.exec_driver_sql(f"EXPLAIN {'QUERY PLAN ' * sqlite}{text}").all()
                assert ("USING INDEX" if sqlite else "Index") in str(told)
                assert f"SCAN {table.name}" not in str(told)

    asyncio.run(story())


# What a change of the property does, in its order.
steps = st.lists(
    st.tuples(st.sampled_from(["find", "add", "count", "remove", "fail"]), st.sampled_from(NAMES)), max_size=5
)


def carried_out(tx: Tx, wanted: Sequence[tuple[str, str]]) -> list[Any]:
    told: list[Any] = []
    for verb, name in wanted:
        if verb == "find":
            told.append(tx.find(users, "project", name) is not None)
        elif verb == "add" and tx.find(users, "project", name) is None:
            tx.add(users, row(name))
        elif verb == "count":
            told.append(tx.connection.execute(select(func.count()).select_from(users)).scalar())
        elif verb == "remove":
            tx.connection.execute(delete(users).where(users.c.username == name))
        elif verb == "fail":
            raise KeyError
    return told


def naive(present: set[str], wanted: Sequence[tuple[str, str]]) -> tuple[set[str], list[Any] | None]:
    """The same on a set: what is there afterwards, and what is told; None: it fails."""
    now = set(present)
    told: list[Any] = []
    for verb, name in wanted:
        if verb == "find":
            told.append(name in now)
        elif verb == "add":
            now.add(name)
        elif verb == "count":
            told.append(len(now))
        elif verb == "remove":
            now.discard(name)
        elif verb == "fail":
            return present, None
    return now, told


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(steps, st.sets(st.sampled_from(NAMES))), min_size=1, max_size=6),
    before=st.sets(st.sampled_from(NAMES)),
)
def test_like_one_change_after_the_other(
    home: Home, changes: list[tuple[list[tuple[str, str]], set[str]]], before: set[str]
) -> None:
    async def story() -> None:
        async with opened(home) as journal:
            await journal.write(lambda tx: tx.connection.execute(delete(users)).rowcount)
            await journal.write(adding(*before))
            asked = [
                Prepared(partial(carried_out, wanted=wanted), [place(name) for name in announced])
                for wanted, announced in changes
            ]
            found = await at_once(journal, *asked)
            present = before
            for (wanted, _), told in zip(changes, found, strict=True):
                present, expected = naive(present, wanted)
                assert (None if isinstance(told, KeyError) else told) == expected
            assert names(journal) == sorted(present)

    asyncio.run(story())
