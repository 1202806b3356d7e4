"""The journal's writer: one thread, one connection, group commit.

Strategy: changes wait in a queue. The thread takes whatever has arrived, without lingering for more, and commits it as
one transaction with one fsync; while that happens the next group gathers by itself. Within a group every change has a
SAVEPOINT from where it first uses the connection, so one that raises is undone alone. Rows that changes look for by
their keys are asked for at the group's beginning, those that they add are inserted at its end, as are the events, which
are numbered when a change emits them: one statement for all (`flx_api.daemon.journal.rows`). The outcomes of the group
then go to the loop in one call.

Where the database is near, the loop may have made a group already, with the same functions, and the thread only commits
it (`flx_api.daemon.journal.turns`).

Rules:
- An event and the change that emitted it are in the database both or neither.
- Sequence numbers are given here only: dense, in the order of commit. An undone change gives its numbers back.
- A group whose fsync failed was refused and is undone; only if the process is killed before the next commit may it come
  to light all the same. A key, its answer and its effect come together even then, so who repeats with the key is right.
- The thread outlives every fault: storage that fails makes the group fail, and the next group tries again on a new
  connection, since a handle that met a read-only or vanished file stays bad after the file is good again.
- When the line breaks in a commit, nobody is told anything before the database has said on a new connection whether it
  happened. When it cannot be asked in time the group is refused, and asked for before anything else is stored; who
  follows changes in memory is told when it was found.
- A transaction that failed only because of others beside it is repeated: a change may run more than once, and does
  nothing but change the database.
- When a statement that is made for many is refused (a value that the database cannot hold), the group is repeated with
  each change by itself, so that only the one at fault is told.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy import func, select

from flx_api.daemon.journal.heads import Heads, Topic, upsert_of
from flx_api.daemon.journal.rows import Place, Row, Rows, add, driver_of, find, finds_of, place_of
from flx_api.daemon.journal.tables import events
from flx_api.daemon.journal.tail import EventRow
from flx_api.errors import FlxError, Internal, StartupError, Unavailable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Table, Transaction

    from flx_api.daemon.journal.database import Database

_GROUP_MAX = 1024
_REPEATS = 3
_ASKED_TIMES = 20
_ASKED_EVERY_S = 0.1

_encode = msgspec.json.Encoder().encode


class Pending(NamedTuple):
    """A change that waits, and who waits for it."""

    change: Callable[[Tx], Any]
    future: asyncio.Future[Any]


class Outcome(NamedTuple):
    """What became of a change: a value, or an error."""

    future: asyncio.Future[Any]
    value: Any
    error: BaseException | None


class Group(NamedTuple):
    """What one commit made: an outcome for each change, the events, the last sequence number, and why it failed.

    `is_in_doubt`: it failed as far as is known, and it or one before it may have been committed. `is_found`: it was
    refused like that, and turned out to be committed.
    """

    outcomes: list[Outcome]
    events: list[EventRow]
    seq: int
    fault: FlxError | None = None
    is_in_doubt: bool = False
    is_found: bool = False


class Doubt(NamedTuple):
    """A group whose commit was not answered, the transaction to ask for, and the heads it would have made."""

    group: Group
    transaction: str
    heads: dict[Topic, int]


class Making:
    """A group whose transaction is open: its changes so far and what became of them, how many it is to have.

    `result` is what it comes to, once it is at its end.
    """

    __slots__ = ("emitted", "group", "most", "outcomes", "result", "transaction")

    def __init__(self, transaction: Transaction, most: int = 0) -> None:
        self.transaction = transaction
        self.most = most
        self.group: list[Pending] = []
        self.outcomes: list[Outcome] = []
        self.emitted: list[EventRow] = []
        self.result = Group([], [], 0)


class _CatchUp:
    """In the place of a group: nobody waits, so what commits put off may be done."""


class Tx:
    """One change inside the writer thread: the time, a way to emit events, rows by their keys, and the connection.

    `emitted` are its events so far; `is_lost`: the whole group cannot be stored like this.
    """

    __slots__ = (
        "_added",
        "_group",
        "_heads",
        "_mine",
        "_rows",
        "_seq",
        "_used",
        "emitted",
        "is_lost",
        "now_us",
        "project_id",
    )

    def __init__(self, group: Connection, now_us: int, *, project_id: str, seq: int, heads: Heads, rows: Rows) -> None:
        self.now_us = now_us
        self.project_id = project_id
        self.emitted: list[EventRow] = []
        self.is_lost = False
        self._group = group
        self._seq = seq
        self._heads = heads
        self._mine: dict[Topic, int] = {}
        self._rows = rows
        self._added: dict[Place, Row] = {}
        self._used: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The connection, behind a savepoint of this change, with every row that was added so far inserted."""
        return self._used or self._open()

    @connection.setter
    def connection(self, stand_in: Connection) -> None:
        self._used = stand_in

    def find(self, table: Table, *key: str) -> Row | None:
        """The row of a primary key; it costs little when the change said that it would look for it (`Prepared`)."""
        return self.at(Place(table, key))

    def at(self, place: Place) -> Row | None:
        """The row of a place; as `find`."""
        if self._used is None:
            found = self._added.get(place) or self._rows.at(place)
            if found is not ...:
                return found
        return find(self.connection, place)

    def add(self, table: Table, row: Row) -> None:
        """Add a whole row, whose key is known to be free."""
        if self._used is None:
            self._added[place_of(table, row)] = row
        else:
            add(self._used, table, row)

    def emit(self, topic: str, data: object, *, tenant: str) -> int:
        """Append an event to the journal; returns its sequence number, which holds if the change commits."""
        encoded = _encode(data)
        place = Topic(tenant, topic)
        prev = self._mine.get(place)
        if prev is None:
            prev = self._heads.of(place, self)
        self._seq += 1
        self._mine[place] = self._seq
        self.emitted.append(EventRow(self._seq, prev, self.now_us, topic, tenant, encoded))
        return self._seq

    def begin_alone(self) -> None:
        """Let nothing of this change wait for the group."""
        self._open()

    def end(self) -> None:
        """It came to its end: what it did holds if the group does."""
        if self._used is None:
            self._rows.accept(self._added)
        else:
            driver_of(self._group).execute("RELEASE change")
        self._heads.open.update(self._mine)

    def undo(self) -> None:
        """It failed: nothing of it holds."""
        if self._used is not None:
            driver_of(self._group).execute("ROLLBACK TO change")
            driver_of(self._group).execute("RELEASE change")

    def _open(self) -> Connection:
        try:
            self._rows.flush(self._group)
        except Exception:
            self.is_lost = True
            raise
        # SQLAlchemy's own savepoint objects cost ten times what the three statements do.
        driver_of(self._group).execute("SAVEPOINT change")
        self._used = self._group
        for place, row in self._added.items():
            add(self._group, place.table, row)
        return self._group


class Writer:
    """The thread that changes the database.

    Args:
        database: the kind of database it is.
        connect: opens the first connection and makes the tables; called in the thread.
        project_id: the project whose rows these are.
        clock: microseconds since the epoch.
        deliver: hands a group to the loop; called in the thread.
        free: hands the connection to the loop; called in the thread.
        opened: told, in the thread, when the connection is there, or why not.
    """

    def __init__(
        self,
        database: Database,
        connect: Callable[[], tuple[Connection, int]],
        *,
        project_id: str,
        clock: Callable[[], int],
        deliver: Callable[[Group], None],
        free: Callable[[], None],
        opened: Callable[[int, BaseException | None], None],
    ) -> None:
        self._database = database
        self._connect = connect
        self._upsert_head = upsert_of(database)
        self._project_id = project_id
        self._clock = clock
        self._deliver = deliver
        self._free = free
        self._opened = opened
        self._queue: queue.SimpleQueue[Pending | list[Pending] | Making | _CatchUp | None] = queue.SimpleQueue()
        self._heads = Heads()
        self._rows = Rows()
        self._seq = 0
        self._connection: Connection
        self._session: int | None = None
        self._bad = False
        self._doubt: Doubt | None = None
        self._found: Group | None = None
        self._thread = threading.Thread(target=self._run, name="flx-journal", daemon=True)

    def start(self) -> None:
        """Begin; `opened` is called soon."""
        self._thread.start()

    def submit(self, pending: Pending) -> None:
        """Queue a change."""
        self._queue.put(pending)

    def take(self, group: list[Pending]) -> None:
        """Queue a group as it is."""
        self._queue.put(group)

    def seal(self, making: Making) -> None:
        """Queue a group that is made, to be committed."""
        self._queue.put(making)

    def catch_up(self) -> None:
        """Queue what commits put off; the connection is not free before it is done."""
        self._queue.put(_CatchUp())

    def stop(self) -> None:
        """Queue the end: what came before is committed; the journal lets nothing come after."""
        self._queue.put(None)

    def join(self) -> None:
        """Wait for the thread's end."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._connection, self._seq = self._connect()
            self._session = self._database.session(self._connection)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the loop must hear of it
            self._opened(0, error)
            return
        self._opened(self._seq, None)
        try:
            while group := self._next_group():
                if isinstance(group, _CatchUp):
                    self._database.catch_up(self._connection)
                else:
                    done = self._carry_out(group)
                    self._deliver(done)
                    if done.fault is None and self._database.committed(len(done.outcomes)):
                        self._database.catch_up(self._connection)
                self._free()
        finally:
            self._connection.close()

    def _carry_out(self, asked: list[Pending] | Making) -> Group:
        """Commit a group, on a connection that is good as far as is known."""
        made, group = (asked, asked.group) if isinstance(asked, Making) else (None, asked)
        if self._bad:
            fault = self._renew()
            if (found := self._found) is not None:
                # It was refused, as far as anybody knew; those who follow events hear of it.
                self._found = None
                self._deliver(found._replace(is_found=True))
            if fault is not None:
                return self._refused(group, fault)
        done = self._commit(group, made)
        if done.fault is not None:
            self._bad = True
            if self._doubt is not None:
                self._renew()
                if (found := self._found) is not None:
                    self._found = None
                    return found
                done = done._replace(is_in_doubt=self._doubt is not None)
        return done

    def _renew(self) -> FlxError | None:
        """Take another connection; why it cannot be, or None."""
        old = self._connection
        try:
            new = self._database.connect_writer(self._session)
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on
            return self._fault_of(error)
        try:
            if self._database.is_lost(old):
                old.invalidate()
            old.close()
            self._connection, self._session = new, self._database.session(new)
            self._resolve()
            if self._doubt is not None or self._is_anothers():
                return Unavailable(code="storage_unavailable")
        except Exception as error:  # noqa: BLE001 - as above
            return self._fault_of(error)
        self._bad = False
        return None

    def _is_anothers(self) -> bool:
        """Whether another daemon had the database while our line to it was down: its numbers are not ours."""
        if self._session is None:
            return False
        with self._connection.begin():
            return (self._connection.execute(select(func.max(events.c.seq))).scalar() or 0) != self._seq

    def _resolve(self) -> None:
        """Ask what became of the group in doubt."""
        doubt = self._doubt
        if doubt is None:
            return
        for _ in range(_ASKED_TIMES):
            committed = self._database.has_committed(self._connection, doubt.transaction)
            if committed is not None:
                break
            time.sleep(_ASKED_EVERY_S)
        else:
            return
        self._doubt = None
        if committed and doubt.group.events:
            # A server that crashed may give the transaction's number to another one: what is there is what counts.
            with self._connection.begin():
                committed = self._connection.execute(select(func.max(events.c.seq))).scalar() == doubt.group.seq
        if committed:
            self._heads.open = doubt.heads
            self._heads.committed()
            self._seq = doubt.group.seq
            self._found = doubt.group

    def _fault_of(self, error: BaseException) -> FlxError:
        if isinstance(error, StartupError):
            # Another daemon took the database while the line was down.
            fault: FlxError = Unavailable(code="storage_unavailable")
        else:
            fault = self._database.fault_of(error) or Internal()
        fault.__cause__ = error
        return fault

    def _refused(self, group: list[Pending], fault: FlxError) -> Group:
        outcomes = [Outcome(pending.future, None, fault) for pending in group]
        return Group(outcomes, [], self._seq, fault, is_in_doubt=self._doubt is not None)

    def _next_group(self) -> list[Pending] | Making | _CatchUp:
        """Whatever has arrived, at least one; empty at the end."""
        group: list[Pending] = []
        first = self._queue.get()
        while first is not None:
            if not isinstance(first, Pending):
                # The loop puts groups or changes, never both.
                return first
            group.append(first)
            if len(group) == _GROUP_MAX:
                break
            try:
                first = self._queue.get_nowait()
            except queue.Empty:
                break
        else:
            # The end was among them: once this group is done, the next call must see it again.
            if group:
                self._queue.put(None)
        return group

    def _commit(self, group: list[Pending], made: Making | None) -> Group:
        repeats, together = 0, True
        while True:
            try:
                return self._transact(group, together=together) if made is None else self._close(made)
            except Exception as error:  # noqa: BLE001 - the group fails, the thread goes on
                made = None
                self._heads.open.clear()
                self._rows.forget()
                if repeats < _REPEATS and self._database.may_repeat(error):
                    repeats += 1
                elif together and not isinstance(self._database.fault_of(error), Unavailable):
                    together = False
                else:
                    return self._refused(group, self._fault_of(error))

    def _transact(self, group: list[Pending], *, together: bool) -> Group:
        """A group as one transaction. Raises when it is lost, leaving a doubt when its commit was not answered."""
        connection = self._connection
        doubt: Doubt | None = None
        try:
            with connection.begin() as transaction:
                making = Making(transaction)
                self.make(making, group, together=together)
                done = self.end(making)
                if transaction.is_active and (name := self._database.transaction(connection)) is not None:
                    doubt = Doubt(done, name, dict(self._heads.open))
        except Exception:
            if doubt is not None and self._database.is_lost(connection):
                self._doubt = doubt
            raise
        return self._committed(done)

    def _close(self, made: Making) -> Group:
        """Commit what the loop has made."""
        with made.transaction:
            pass
        return self._committed(made.result)

    def _committed(self, done: Group) -> Group:
        self._heads.committed()
        self._seq = done.seq
        return done

    # In the thread, or on the loop (`flx_api.daemon.journal.turns`) while the thread has nothing to do:

    @property
    def is_sound(self) -> bool:
        """Whether the connection is good as far as is known."""
        return not self._bad

    @property
    def most(self) -> int:
        """How many changes a group may have."""
        return _GROUP_MAX

    @property
    def is_behind(self) -> bool:
        """Whether a calm moment should be used to catch up."""
        return not self._bad and self._database.is_behind

    def begin_at_once(self, most: int) -> Making:
        """Begin a group of so many changes, if that needs no waiting. Raises when it does, or cannot be."""
        return Making(self._database.begin_at_once(self._connection), most)

    def make(self, making: Making, changes: list[Pending], *, together: bool = True) -> None:
        """Make changes. Raises when the group is lost."""
        connection = self._connection
        if together:
            self._rows.ask(connection, [place for pending in changes for place in finds_of(pending.change)])
        for pending in changes:
            # Nobody waits for it any more and nothing of it was begun.
            if not pending.future.cancelled():
                making.outcomes.append(self._apply(connection, pending, making.emitted, together=together))

    def end(self, making: Making) -> Group:
        """Write down what is left of a group but its commit. Raises when the group is lost."""
        connection, emitted = self._connection, making.emitted
        self._rows.flush(connection)
        if emitted:
            self._rows.insert(connection, events, self._stored(emitted))
            for topic, seq in self._heads.open.items():
                self._upsert_head(connection, (topic.tenant, self._project_id, topic.name, seq))
        elif all(outcome.error is not None for outcome in making.outcomes):
            # Everything was undone: a commit would write the same pages again, and wait for the disk.
            making.transaction.rollback()
        making.result = Group(making.outcomes, emitted, self._seq + len(emitted))
        return making.result

    def drop(self, making: Making) -> None:
        """Undo what was made of a group."""
        self._heads.open.clear()
        self._rows.forget()
        # On some faults the transaction is undone already, and what is told then is of no use.
        with contextlib.suppress(Exception):
            making.transaction.rollback()

    def _apply(self, connection: Connection, pending: Pending, emitted: list[EventRow], *, together: bool) -> Outcome:
        """Run one change, to be undone alone. Raises when the whole transaction is lost."""
        seq = self._seq + len(emitted)
        tx = Tx(connection, self._clock(), project_id=self._project_id, seq=seq, heads=self._heads, rows=self._rows)
        try:
            if not together:
                tx.begin_alone()
            value = pending.change(tx)
        except Exception as error:
            if tx.is_lost:
                raise
            try:
                tx.undo()
            except Exception:  # noqa: BLE001 - the driver's own
                # On some faults (disk full, I/O, a lost line) the whole transaction is undone: the savepoint is gone
                # and with it the group. The first fault says why, this one does not.
                raise error from None
            if self._database.may_repeat(error):
                raise
            fault = self._database.fault_of(error)
            if fault is None:
                return Outcome(pending.future, None, error)
            fault.__cause__ = error
            return Outcome(pending.future, None, fault)
        tx.end()
        emitted += tx.emitted
        return Outcome(pending.future, value, None)

    def _stored(self, emitted: Sequence[EventRow]) -> list[Row]:
        project_id = self._project_id
        return [
            {
                "seq": seq,
                "prev": prev,
                "ts_us": ts_us,
                "topic": topic,
                "tenant": tenant,
                "data": data,
                "project_id": project_id,
            }
            for seq, prev, ts_us, topic, tenant, data in emitted
        ]
