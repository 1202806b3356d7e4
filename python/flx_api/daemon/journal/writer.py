"""The journal's writer: one thread, one connection, group commit.

Strategy: changes wait in a queue. The thread takes whatever has arrived, without lingering for more, and commits it as
one transaction with one fsync; while that happens the next group gathers by itself. Within a group every change has a
SAVEPOINT, so one that raises is undone alone. Events are numbered when a change emits them and inserted at the group's
end in one statement; the outcomes of the group then go to the loop in one call.

Rules:
- An event and the change that emitted it are in the database both or neither.
- Sequence numbers are given here only: dense, in the order of commit. An undone change gives its numbers back.
- A group whose fsync failed was refused and is undone; only if the process is killed before the next commit may it come
  to light all the same. A key, its answer and its effect come together even then, so who repeats with the key is right.
- The thread outlives every fault: storage that fails makes the group fail, and the next group tries again on a new
  connection, since a handle that met a read-only or vanished file stays bad after the file is good again.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy import insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from flx_api.daemon.journal.database import is_storage_fault, storage_error
from flx_api.daemon.journal.tables import events, topic_heads
from flx_api.daemon.journal.tail import EventRow
from flx_api.errors import FlxError, Internal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from sqlalchemy import Connection

_GROUP_MAX = 1024
_HEADS_MAX = 16_384

_insert_event = insert(events)
_upsert_head = upsert(topic_heads)
_upsert_head = _upsert_head.on_conflict_do_update(
    index_elements=[topic_heads.c.tenant, topic_heads.c.project_id, topic_heads.c.topic],
    set_={"seq": _upsert_head.excluded.seq},
)


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
    """What one commit made: an outcome for each change, the events, the last sequence number, and why it failed."""

    outcomes: list[Outcome]
    events: list[EventRow]
    seq: int
    fault: FlxError | None = None


class Tx:
    """One change inside the writer thread: the connection, the time, and a way to emit events."""

    __slots__ = ("_emitted", "_heads", "_seq", "connection", "now_us", "project_id")

    def __init__(self, connection: Connection, now_us: int, project_id: str, seq: int, heads: Heads) -> None:
        self.connection = connection
        self.now_us = now_us
        self.project_id = project_id
        self._seq = seq
        self._heads = heads
        self._emitted: list[EventRow] = []

    def emit(self, topic: str, data: msgspec.Struct, *, tenant: str) -> int:
        """Append an event to the journal; returns its sequence number, which holds if the change commits."""
        encoded = msgspec.json.encode(data)
        mine = (row.seq for row in reversed(self._emitted) if row.topic == topic and row.tenant == tenant)
        before = next(mine, None)
        prev = self._heads.of(Topic(tenant, topic), self) if before is None else before
        self._seq += 1
        self._emitted.append(EventRow(self._seq, prev, self.now_us, topic, tenant, encoded))
        return self._seq


class Topic(NamedTuple):
    """A topic as its readers see it: each tenant has its own."""

    tenant: str
    name: str


class Heads:
    """The last sequence number of each topic: as committed, and as the present group has it so far."""

    def __init__(self) -> None:
        self._committed: dict[Topic, int] = {}
        self.open: dict[Topic, int] = {}

    def of(self, topic: Topic, tx: Tx) -> int:
        """The topic's last sequence number, 0 when it has none."""
        found = self.open.get(topic)
        if found is None:
            found = self._committed.get(topic)
        if found is None:
            query = select(topic_heads.c.seq).where(
                topic_heads.c.tenant == topic.tenant,
                topic_heads.c.project_id == tx.project_id,
                topic_heads.c.topic == topic.name,
            )
            found = self._committed[topic] = tx.connection.execute(query).scalar() or 0
        return found

    def committed(self) -> None:
        """The group is in the database."""
        for topic, seq in self.open.items():
            # Taken out and put in again: a dict keeps the order of insertion, so the first are the longest unused.
            self._committed.pop(topic, None)
            self._committed[topic] = seq
        while len(self._committed) > _HEADS_MAX:
            del self._committed[next(iter(self._committed))]
        self.open.clear()


class Writer:
    """The thread that changes the database.

    Args:
        connect: opens the first connection and makes the tables; called in the thread.
        reconnect: opens another one.
        project_id: the project whose rows these are.
        clock: microseconds since the epoch.
        deliver: hands a group to the loop; called in the thread.
        opened: told, in the thread, when the connection is there, or why not.
    """

    def __init__(
        self,
        connect: Callable[[], tuple[Connection, int]],
        reconnect: Callable[[], Connection],
        *,
        project_id: str,
        clock: Callable[[], int],
        deliver: Callable[[Group], None],
        opened: Callable[[int, BaseException | None], None],
    ) -> None:
        self._connect = connect
        self._reconnect = reconnect
        self._project_id = project_id
        self._clock = clock
        self._deliver = deliver
        self._opened = opened
        self._queue: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._heads = Heads()
        self._seq = 0
        self._thread = threading.Thread(target=self._run, name="flx-journal", daemon=True)

    def start(self) -> None:
        """Begin; `opened` is called soon."""
        self._thread.start()

    def submit(self, pending: Pending) -> None:
        """Queue a change."""
        self._queue.put(pending)

    def stop(self) -> None:
        """Queue the end: what came before is committed; the journal lets nothing come after."""
        self._queue.put(None)

    def join(self) -> None:
        """Wait for the thread's end."""
        self._thread.join()

    def _run(self) -> None:
        try:
            connection, self._seq = self._connect()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the loop must hear of it
            self._opened(0, error)
            return
        self._opened(self._seq, None)
        try:
            while group := self._next_group():
                done = self._commit(connection, group)
                self._deliver(done)
                if done.fault is not None:
                    connection = self._renew(connection)
        finally:
            connection.close()

    def _renew(self, connection: Connection) -> Connection:
        try:
            new = self._reconnect()
        except Exception:  # noqa: BLE001 - then the next group tells what is wrong
            return connection
        connection.close()
        return new

    def _next_group(self) -> list[Pending]:
        """Whatever has arrived, at least one; empty at the end."""
        group: list[Pending] = []
        first = self._queue.get()
        while first is not None:
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

    def _commit(self, connection: Connection, group: list[Pending]) -> Group:
        outcomes: list[Outcome] = []
        rows: list[EventRow] = []
        try:
            with connection.begin() as transaction:
                for pending in group:
                    # Nobody waits for it any more and nothing of it was begun.
                    if pending.future.cancelled():
                        continue
                    outcomes.append(self._apply(connection, pending, rows))
                if rows:
                    connection.execute(_insert_event, [self._row(row) for row in rows])
                    connection.execute(_upsert_head, [self._head(*item) for item in self._heads.open.items()])
                elif all(outcome.error is not None for outcome in outcomes):
                    # Everything was undone: a commit would write the same pages again, and wait for the disk.
                    transaction.rollback()
        except Exception as error:  # noqa: BLE001 - the group fails, the thread goes on
            self._heads.open.clear()
            fault = storage_error(error) if is_storage_fault(error) else Internal()
            fault.__cause__ = error
            return Group([Outcome(pending.future, None, fault) for pending in group], [], self._seq, fault)
        self._heads.committed()
        self._seq += len(rows)
        return Group(outcomes, rows, self._seq)

    def _apply(self, connection: Connection, pending: Pending, rows: list[EventRow]) -> Outcome:
        """Run one change behind a SAVEPOINT. Raises when the whole transaction is lost."""
        tx = Tx(connection, self._clock(), self._project_id, self._seq + len(rows), self._heads)
        # SQLAlchemy's own savepoint objects cost ten times what the three statements do.
        execute = connection.connection.driver_connection.execute  # type: ignore[union-attr]
        execute("SAVEPOINT change")
        try:
            value = pending.change(tx)
        except Exception as error:  # noqa: BLE001 - it is the caller's
            try:
                execute("ROLLBACK TO change")
                execute("RELEASE change")
            except Exception:  # noqa: BLE001 - the driver's own
                # On some faults (disk full, I/O) SQLite undoes the whole transaction: the savepoint is gone and with
                # it the group. The first fault says why, this one does not.
                raise error from None
            if not is_storage_fault(error):
                return Outcome(pending.future, None, error)
            fault = storage_error(error)
            fault.__cause__ = error
            return Outcome(pending.future, None, fault)
        execute("RELEASE change")
        emitted = tx._emitted  # noqa: SLF001 - the writer and its transaction are one thing in two classes
        rows.extend(emitted)
        self._heads.open.update((Topic(row.tenant, row.topic), row.seq) for row in emitted)
        return Outcome(pending.future, value, None)

    def _row(self, row: EventRow) -> dict[str, Any]:
        return {**row._asdict(), "project_id": self._project_id}

    def _head(self, topic: Topic, seq: int) -> dict[str, Any]:
        return {"tenant": topic.tenant, "project_id": self._project_id, "topic": topic.name, "seq": seq}
