"""A rehearsal: the very change that a command makes, run in the writer and undone before anybody could see it.

Strategy: within `rehearsing()` every `Journal.write` runs its change in the writer thread as always, behind its own
savepoint, on a connection that notes which rows it touches; then `Rehearsed` is raised in the place of the answer. The
writer undoes a change that raises, alone; and whoever asked for it gets no further than this write. So a plan cannot
drift from what it plans, and code that knows nothing of rehearsals cannot carry out half of one.

Rules:
- What is undone gives its sequence numbers back, emits nothing and keeps no idempotency key.
- A change may use SQLAlchemy's own insert, update, delete and select; any other statement is refused, since nobody
  could say which rows it touches.
- The mark is of the task that asks (a context variable): what runs in the background goes on for real.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

from sqlalchemy import Delete, Insert, Select, Update, select

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Table

    from flx_api.daemon.journal.writer import Tx

_REHEARSING: Final = ContextVar("rehearsing", default=False)

Values = dict[str, Any]
"""A row by the names of its columns."""


class RowChange(NamedTuple):
    """A row that a change would make (`before` is None), change, or remove (`after` is None)."""

    table: str
    before: Values | None
    after: Values | None


class Rehearsed(Exception):
    """A change was run and undone.

    Args:
        value: what it returned.
        rows: what it would have changed, in the order in which it was touched.
    """

    def __init__(self, value: object, rows: Sequence[RowChange]) -> None:
        super().__init__()
        self.value = value
        self.rows = rows


@contextlib.contextmanager
def rehearsing() -> Iterator[None]:
    """Let every write of this task be a rehearsal."""
    before = _REHEARSING.set(True)
    try:
        yield
    finally:
        _REHEARSING.reset(before)


def is_rehearsing() -> bool:
    """Whether a write that is asked for now is a rehearsal."""
    return _REHEARSING.get()


def rehearsal_of(change: Callable[[Tx], object]) -> Callable[[Tx], NoReturn]:
    """The same change, which raises `Rehearsed` at its end so that the writer undoes it."""

    def rehearsed(tx: Tx) -> NoReturn:
        recorder = Recorder(tx.connection)
        tx.connection = cast("Connection", recorder)
        value = change(tx)
        raise Rehearsed(value, recorder.rows())

    return rehearsed


class Recorder:
    """Stands for a connection and notes what each row was before a statement first touched it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._touched: dict[tuple[Table, tuple[Any, ...]], Values | None] = {}

    def execute(self, statement: Any, parameters: Any = None) -> Any:  # noqa: ANN401 - as the connection's own
        """Carry a statement out.

        Raises:
            TypeError: it is none of which it can be said what it touches.
        """
        if isinstance(statement, (Insert, Update, Delete)):
            many = parameters if isinstance(parameters, list) else [parameters or {}]
            for given in many:
                self._note(statement, given)
        elif not isinstance(statement, Select):
            msg = f"{type(statement).__name__} cannot be rehearsed"
            raise TypeError(msg)
        return self._connection.execute(statement, parameters)

    def scalar(self, statement: Any, parameters: Any = None) -> Any:  # noqa: ANN401 - as the connection's own
        """The first value of the first row."""
        return self.execute(statement, parameters).scalar()

    def rows(self) -> list[RowChange]:
        """What is different from before; what was changed and changed back is not."""
        found = []
        for (table, key), before in self._touched.items():
            after = self._row(table, key)
            if before != after:
                found.append(RowChange(table.name, before, after))
        return found

    def _note(self, statement: Insert | Update | Delete, given: Mapping[str, Any]) -> None:
        table = cast("Table", statement.table)
        if isinstance(statement, Insert):
            values = {**statement.compile().params, **given}
            key = tuple(values[column.name] for column in table.primary_key)
            self._touched.setdefault((table, key), self._row(table, key))
            return
        query = select(table)
        if statement.whereclause is not None:
            query = query.where(statement.whereclause)
        for row in self._connection.execute(query, given):
            values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
            key = tuple(values[column.name] for column in table.primary_key)
            self._touched.setdefault((table, key), values)

    def _row(self, table: Table, key: tuple[Any, ...]) -> Values | None:
        where = (column == value for column, value in zip(table.primary_key, key, strict=True))
        row = self._connection.execute(select(table).where(*where)).one_or_none()
        return None if row is None else dict(row._mapping)  # noqa: SLF001 - as above
