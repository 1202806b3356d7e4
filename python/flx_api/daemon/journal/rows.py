"""Rows that the changes of one group look for and add: all of a table together, in one statement.

Strategy: a change may say beforehand which rows it will look for by their primary keys (`Prepared`). The writer asks
for those of the whole group at once, with one query for each table, and the changes find them in memory. Rows that
changes add wait in memory too, are found there by the changes after them, and are inserted at the group's end with few
statements for each table. So a group shares what statements cost, which was the most of a command under load.

Rules:
- What is kept here is what the database would say: before anybody uses the connection itself, waiting rows are
  inserted and what is known is forgotten (`flush`), since another statement may see or change any row.
- A row is added whole, and only by who has looked that its key is free.
- A text with NUL is never asked for here: JSON, in which keys travel, is no way for it in either kind of database.
"""

from __future__ import annotations

import re
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import msgspec
from sqlalchemy import LargeBinary, Table, and_, bindparam, insert, literal_column, select

from flx_api.daemon.journal.functions import elements, part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import EllipsisType

    from sqlalchemy import Column, Connection, Dialect, Insert, Select

    from flx_api.daemon.journal.writer import Tx

T = TypeVar("T")

# In one statement: a power of two, so that there are few texts to keep prepared, with few enough parameters for any
# build of SQLite.
_MOST_ROWS: Final = 64
_MOST_PARAMETERS: Final = 999
_NAMED: Final = re.compile(r"%\(\w+\)s")

Key = tuple[str, ...]
"""A primary key, its columns in the table's order."""
Row = dict[str, Any]
"""A row by the names of its columns."""


class Place(NamedTuple):
    """Where a row is or would be."""

    table: Table
    key: Key


class Prepared(Generic[T]):
    """A change, and the rows that it will look for."""

    __slots__ = ("change", "finds")

    def __init__(self, change: Callable[[Tx], T], finds: Sequence[Place]) -> None:
        self.change = change
        self.finds = finds

    def __call__(self, tx: Tx) -> T:
        """Make the change."""
        return self.change(tx)


def finds_of(change: Callable[[Tx], Any]) -> Sequence[Place]:
    """The rows that a change says it will look for."""
    return change.finds if isinstance(change, Prepared) else ()


class Rows:
    """What the present group knows of rows, and what it will insert."""

    def __init__(self) -> None:
        self._known: dict[Place, Row | None] = {}
        self._waiting: dict[Table, list[Row]] = {}
        self._bulks: dict[Table, _Bulk] = {}
        self._asks: dict[Table, str] = {}

    def ask(self, connection: Connection, places: Iterable[Place]) -> None:
        """Look for rows in the database that are not known yet, with one query for each table."""
        wanted: dict[Table, dict[Key, None]] = {}
        for place in places:
            table, key = place
            if place not in self._known and "\0" not in "".join(key):
                wanted.setdefault(table, {})[key] = None
                self._known[place] = None
        for table, keys in wanted.items():
            asked = msgspec.json.encode(list(keys)).decode()
            if self._has_none(connection, table, asked):
                continue
            for found in connection.execute(statements_of(table).of_keys, {"keys": asked}):
                row = found._asdict()
                self._known[place_of(table, row)] = row

    def _has_none(self, connection: Connection, table: Table, asked: str) -> bool:
        """Whether it is certain that there is no row of these keys; most are new."""
        if connection.dialect.name != "sqlite":
            return False
        text = self._asks.get(table)
        if text is None:
            text = self._asks[table] = str(statements_of(table).of_keys.compile(dialect=connection.dialect))
        return driver_of(connection).execute(text, (asked,)).fetchone() is None

    def at(self, place: Place) -> Row | EllipsisType | None:
        """What is at a place; `...` when it cannot say."""
        return self._known.get(place, ...)

    def accept(self, added: Mapping[Place, Row]) -> None:
        """Let the rows of a change wait that came to its end."""
        self._known.update(added)
        for (table, _), row in added.items():
            waiting = self._waiting.get(table)
            if waiting is None:
                self._waiting[table] = [row]
            else:
                waiting.append(row)

    def flush(self, connection: Connection) -> None:
        """Insert what waits, and know nothing any more."""
        for table, rows in self._waiting.items():
            self.insert(connection, table, rows)
        self.forget()

    def forget(self) -> None:
        """Neither wait nor know."""
        self._waiting.clear()
        self._known.clear()

    def insert(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        """Insert whole rows."""
        bulk = self._bulks.get(table)
        if bulk is None:
            bulk = self._bulks[table] = _bulk_of(table, connection.dialect)
        bulk.insert(connection, rows)


def driver_of(connection: Connection) -> Any:  # noqa: ANN401 - sqlite3's connection or psycopg's
    """What the driver calls a connection."""
    return connection.connection.driver_connection


def say(connection: Connection, text: str, values: tuple[Any, ...]) -> None:
    """Carry out a statement of ours that gives nothing back."""
    if connection.dialect.name == "sqlite":
        # SQLAlchemy takes longer to say it than the database to do it.
        driver_of(connection).execute(text, values)
    else:
        connection.exec_driver_sql(text, values)


def place_of(table: Table, row: Row) -> Place:
    """Where a row belongs."""
    return Place(table, statements_of(table).key_of(row))


def find(connection: Connection, place: Place) -> Row | None:
    """Look for one row in the database."""
    statements = statements_of(place.table)
    row = connection.execute(statements.of_key, dict(zip(statements.key, place.key, strict=True))).one_or_none()
    return None if row is None else row._asdict()


def add(connection: Connection, table: Table, row: Row) -> None:
    """Insert one row."""
    connection.execute(statements_of(table).add, row)


class Statements(NamedTuple):
    """The columns of a table's key, the key of a row, and what is said about the table."""

    key: tuple[str, ...]
    key_of: Callable[[Row], Key]
    of_key: Select[Any]
    of_keys: Select[Any]
    add: Insert


# Built once for each table: a statement costs more to build than SQLite takes to carry it out.
@cache
def statements_of(table: Table) -> Statements:
    """What is said about a table."""
    columns = list(table.primary_key)
    names = tuple(column.name for column in columns)
    keys = elements(bindparam("keys")).table_valued("value", name="keys")
    matches = and_(*(column == part(keys.c.value, literal_column(str(n))) for n, column in enumerate(columns)))
    return Statements(
        names,
        _values_of(names),
        select(table).where(*(column == bindparam(column.name) for column in columns)),
        select(table).select_from(keys.join(table, matches)),
        insert(table),
    )


class _Bulk(NamedTuple):
    """An INSERT of many rows: its beginning, the marks of one row, how values are taken, and which are bound how."""

    beginning: str
    marks: str
    most: int
    values_of: Callable[[Row], tuple[Any, ...]]
    binds: tuple[tuple[int, Callable[[Any], Any]], ...]

    def insert(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Insert them, with few statements of few different texts, which the drivers keep prepared."""
        at, many = 0, self.most
        while at < len(rows):
            while many > len(rows) - at:
                many //= 2
            values: list[Any] = []
            for row in rows[at : at + many]:
                values += self.values_of(row)
            for column, bind in self.binds:
                values[column :: len(values) // many] = map(bind, values[column :: len(values) // many])
            say(connection, self.beginning + ", ".join([self.marks] * many), tuple(values))
            at += many


def _bulk_of(table: Table, dialect: Dialect) -> _Bulk:
    # One that fails is lost with its group. SQLite need not keep the pages as they were before it.
    compiled = insert(table).prefix_with("OR FAIL", dialect="sqlite").compile(dialect=dialect)
    beginning, values, marks = str(compiled).partition(" VALUES ")
    columns = tuple(compiled.positiontup or [column.name for column in table.columns])
    binds = {column.name: _bind_of(column, dialect) for column in table.columns}
    many = 1 << (_MOST_PARAMETERS // len(columns)).bit_length() - 1
    # Where parameters have names the values of many rows could not be told apart: their places count.
    return _Bulk(
        beginning + values,
        _NAMED.sub("%s", marks),
        min(_MOST_ROWS, many),
        _values_of(columns),
        tuple((place, bind) for place, name in enumerate(columns) if (bind := binds[name]) is not None),
    )


def _bind_of(column: Column[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    """How a value of a column is made one of the driver's; None: it is one."""
    if dialect.name == "sqlite" and isinstance(column.type, LargeBinary):
        # The driver takes bytes as they are; SQLAlchemy would make a view of each for whoever has something else.
        return None
    return column.type.dialect_impl(dialect).bind_processor(dialect)


def _values_of(names: tuple[str, ...]) -> Callable[[Row], tuple[Any, ...]]:
    """Takes the values of these names, in this order."""
    if len(names) == 1:
        name = names[0]
        return lambda row: (row[name],)
    return itemgetter(*names)
