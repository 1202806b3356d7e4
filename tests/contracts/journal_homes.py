"""Journals for tests, on databases of both kinds."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy import insert, inspect, select

from flx_api.daemon.journal import DEFAULT_TENANT, Journal
from flx_api.daemon.journal.tables import executions, users
from flx_api.models.event import PipelineEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy import Connection

    from flx_api.daemon.journal import Tx

EVENT = PipelineEvent("created", "p", "me")


def shape_of(connection: Connection) -> dict[str, object]:
    """Tables with columns, keys, indexes and constraints, to be compared."""
    found = inspect(connection)
    return {
        table: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in found.get_columns(table)],
            found.get_pk_constraint(table)["constrained_columns"],
            sorted((str(item["name"]), tuple(item["column_names"])) for item in found.get_indexes(table)),
            [(item["constrained_columns"], item["referred_table"]) for item in found.get_foreign_keys(table)],
            [item["column_names"] for item in found.get_unique_constraints(table)],
        )
        for table in found.get_table_names()
    }


class Clock:
    """Microseconds that advance by one at each look."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        self.now += 1
        return self.now


class Home:
    """Where a journal lives: the URL of a database, and how to have another one."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self.url = make()

    def another(self) -> Home:
        """A database of the same kind, empty."""
        return Home(self._make)


@asynccontextmanager
async def opened(home: Home, **options: int) -> AsyncIterator[Journal]:
    journal = await Journal.open(home.url, "project", Clock(), **options)
    try:
        yield journal
    finally:
        await journal.close()


def emit(topic: str = "t", tenant: str = DEFAULT_TENANT) -> Callable[[Tx], int]:
    return lambda tx: tx.emit(topic, EVENT, tenant=tenant)


def add_user(tx: Tx, name: str) -> None:
    row = {"username": name, "tenant": "t", "project_id": "project", "password_hash": "", "roles": b"[]"}
    tx.connection.execute(insert(users), {**row, "disabled": False, "created_us": tx.now_us})


def add_execution(tx: Tx, execution_id: str, *, finished_us: int | None) -> None:
    row = {"id": execution_id, "tenant": DEFAULT_TENANT, "project_id": "project", "pipeline": "p", "status": "running"}
    row |= {"trigger": "api", "triggered_by": "me", "refresh": "incremental"}
    whole = {**row, "tasks": b"[]", "state_ids": b"[]", "warnings": b"[]", "queued_us": 1, "finished_us": finished_us}
    tx.connection.execute(insert(executions), whole)


def names(journal: Journal) -> list[str]:
    with journal.read() as connection:
        return list(connection.execute(select(users.c.username).order_by(users.c.username)).scalars())
