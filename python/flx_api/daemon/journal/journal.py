"""The journal as the loop sees it: writes that return after their commit, reads, the stream of events.

Strategy: changes go to the writer thread (`writer`), small ones are made before it on the loop (`turns`). Reads are
taken at once on the loop from a connection of their own, since an indexed read of a file in the page cache costs
microseconds and WAL readers never wait for the writer. A server costs a round trip, and no more than a time that the
connection bounds (docs/decisions/0012).

Rules:
- A `with journal.read()` block must not await.
- Sequence numbers are dense within an epoch. Retention removes events from the old end only and never the newest. What
  topics have of their own retention (`forget`) empties rows and leaves them where they are.
- A database that has lost events (it was put back from a backup) begins a new epoch: positions in the old one are no
  longer good.
- A connection for reads that is lost is replaced beside the loop; until then a read is refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy import and_, bindparam, case, delete, exists, func, insert, select, update
from sqlalchemy.exc import DBAPIError

from flx_api.daemon.journal.database import bring_to_head, database_of
from flx_api.daemon.journal.functions import position
from flx_api.daemon.journal.rehearsal import is_rehearsing, rehearsal_of
from flx_api.daemon.journal.tables import events, executions, idempotency, identity, revocations, topic_heads
from flx_api.daemon.journal.tail import EventRow, Tail
from flx_api.daemon.journal.turns import Turns
from flx_api.daemon.journal.writer import Group, Pending, Tx, Writer
from flx_api.errors import FlxError, Unavailable
from flx_api.events.news import News
from flx_api.models.auth import STILL_S
from flx_api.models.topic_rules import expires

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection

    from flx_api.models.topic_rules import Expiry

T = TypeVar("T")

_TAIL_ROWS = 4096
_PRUNE_STEP = 1000
KEYS_KEPT_US: Final = 86_400_000_000
"""How long an idempotency key is known, at least: a day. `prune` removes those that are older."""
# Rows that a step of `forget` looks at: some milliseconds.
_FORGET_STEP = 5000
_EXECUTION = "execution."
_PAUSE_S = 0.5


class Journal:
    """The daemon's database. Made by `open`.

    `epoch` names this history of events; `seq` is the last committed sequence number, `oldest` the first one still
    there (`seq + 1` when there is none); `groups` and `changes` count commits and what they held; `news` tells of
    events, and of the end.
    """

    epoch: str
    oldest: int
    _tail: Tail

    def __init__(
        self,
        url: str,
        project_id: str,
        clock: Callable[[], int],
        *,
        tail_rows: int = _TAIL_ROWS,
        busy_timeout_ms: int = 2000,
    ) -> None:
        self.project_id = project_id
        self.seq = 0
        self.groups = 0
        self.changes = 0
        self._fault: FlxError | None = None
        self._clock = clock
        self._tail_rows = tail_rows
        self._loop = asyncio.get_running_loop()
        self.news = News()
        self._closed = False
        self._reading = 0
        self._opened: asyncio.Future[int] = self._loop.create_future()
        self._database = database_of(url, busy_timeout_ms=busy_timeout_ms)
        self._reader: Connection | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._hear_of_found: list[Callable[[], None]] = []
        self._writer = Writer(
            self._database,
            self._connect,
            project_id=project_id,
            clock=clock,
            deliver=self._deliver,
            free=self._free,
            opened=self._report_open,
        )
        self._turns = Turns(self._writer, self._loop) if self._database.is_near else None

    @classmethod
    async def open(
        cls,
        url: str,
        project_id: str,
        clock: Callable[[], int],
        *,
        tail_rows: int = _TAIL_ROWS,
        busy_timeout_ms: int = 2000,
    ) -> Journal:
        """Open the database, making or migrating it first.

        Args:
            url: SQLAlchemy URL of a SQLite file or a PostgreSQL database.
            project_id: the project whose rows these are.
            clock: microseconds since the epoch.
            tail_rows: how many of the newest events stay in memory.
            busy_timeout_ms: how long a commit waits for another process's lock.

        Raises:
            StartupError: the database is not ours, of a newer version, or used by another daemon.
            FlxError: it cannot be opened, reached or written.
        """
        journal = cls(url, project_id, clock, tail_rows=tail_rows, busy_timeout_ms=busy_timeout_ms)
        journal._writer.start()
        try:
            journal.seq = await journal._opened
            journal._tail = Tail(journal.seq, tail_rows)
            journal._reader = journal._database.connect_reader()
        except DBAPIError as error:
            raise journal._database.fault_of(error) or error from error
        with journal.read() as connection:
            journal.oldest = connection.execute(select(func.min(events.c.seq))).scalar() or journal.seq + 1
        return journal

    @property
    def fault(self) -> FlxError | None:
        """Why the last group could not be stored, or why nothing can be read; None when all is well."""
        if self._fault is None and self._reader is None:
            return Unavailable(code="storage_unavailable")
        return self._fault

    def write(self, change: Callable[[Tx], T]) -> asyncio.Future[T]:
        """Apply a change in the writer thread; gives what it returned, after the commit.

        Whatever has arrived by then commits as one group. A change that raises is undone alone and its exception is
        given here. A caller that is cancelled does not undo a change that has begun. No task is needed for it: whoever
        has nothing else to do returns it to who awaits.

        Raises:
            Unavailable: `storage_unavailable`, `insufficient_storage` (nothing was changed) or `shutting_down`.
            Rehearsed: this is a rehearsal (`flx_api.daemon.journal.rehearsal`), and the change would be made.
        """
        if self._closed:
            raise Unavailable(code="shutting_down")
        if is_rehearsing():
            change = rehearsal_of(change)
        future: asyncio.Future[T] = self._loop.create_future()
        if self._turns is None:
            self._writer.submit(Pending(change, future))
        else:
            self._turns.submit(Pending(change, future))
        return future

    def on_found(self, told: Callable[[], None]) -> None:
        """Whom else to tell, on the loop, when changes that were refused turned out to be committed.

        Who cannot read the journal then (`Unavailable`) is told again a little later.
        """
        self._hear_of_found.append(told)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading, one snapshot for the whole block, on the loop thread only, without awaiting.

        Blocks may nest; the inner one sees the outer one's snapshot.

        Raises:
            Unavailable: the database cannot be read.
        """
        reader = self._reader
        if reader is None:
            raise Unavailable(code="storage_unavailable")
        self._reading += 1
        try:
            yield reader
        except DBAPIError as error:
            fault = self._database.fault_of(error)
            if fault is not None:
                raise fault from error
            raise
        finally:
            self._reading -= 1
            if not self._reading:
                self._end_reading(reader)

    async def read_back(self, look: Callable[[Connection], T]) -> T:
        """What a look at the database finds, repeated until the database answers: for what must not be given up.

        Raises:
            Unavailable: the journal was closed meanwhile.
        """
        while True:
            try:
                with self.read() as connection:
                    return look(connection)
            except Unavailable:
                if self._closed:
                    raise
            await asyncio.sleep(_PAUSE_S)

    def events_after(self, seq: int, limit: int) -> list[EventRow]:
        """At most `limit` events after a sequence number, from memory when they are there."""
        found = self._tail.after(seq, limit)
        if found is not None:
            return found
        columns = (events.c.seq, events.c.prev, events.c.ts_us, events.c.topic, events.c.tenant, events.c.data)
        with self.read() as connection:
            query = select(*columns).where(events.c.seq > seq).order_by(events.c.seq).limit(limit)
            # The reader may already see a group whose delivery is still on its way to the loop: it comes next time.
            return [EventRow(*row) for row in connection.execute(query) if row.seq <= self.seq]

    @property
    def is_closed(self) -> bool:
        """Whether nothing comes any more."""
        return self._closed

    async def changed(self, after_seq: int) -> int:
        """Wait until there is an event after this one; returns the last sequence number.

        Raises:
            Unavailable: `shutting_down`, the journal was closed.
        """
        while self.seq <= after_seq:
            if self._closed:
                raise Unavailable(code="shutting_down")
            await self.news.wait()
        return self.seq

    async def prune(self, before_us: int, keep_rows: int) -> int:
        """Remove events older than a time or beyond a number, keys older than a day, and what is then of no use.

        That is revocations that are over, and the heads of topics of executions that are over and have no events left.
        All of it in small steps.

        Args:
            before_us: what is older goes.
            keep_rows: how many events may stay.

        Returns:
            How many events were removed.
        """
        removed = 0
        while step := await self.write(lambda tx: _prune_events(tx.connection, before_us, self.seq - keep_rows)):
            removed += step.rows
            self.oldest = step.oldest
        while await self.write(lambda tx: _prune_keys(tx.connection, tx.now_us - KEYS_KEPT_US)):
            pass
        while await self.write(_prune_revocations):
            pass
        while await self.write(_prune_heads):
            pass
        return removed

    async def forget(self, found: Sequence[Expiry]) -> int:
        """Empty events of topics whose rules keep them for a shorter time than all others. In small steps.

        Returns:
            How many were emptied.
        """
        after, forgotten = self.oldest - 1, 0
        while found and after < self.seq:
            step = await self.write(partial(_forget, found=found, after=after))
            if step is None:
                break
            forgotten += step
            after += _FORGET_STEP
        if forgotten:
            self._tail.forget(lambda row: expires(found, row.topic, row.ts_us))
        return forgotten

    async def close(self) -> None:
        """Commit what was accepted, end the writer and wake everybody who waits. May be repeated."""
        if not self._closed:
            self._closed = True
            if self._asking is not None:
                self._asking.cancel()
            if self._turns is not None:
                self._turns.stop()
            self._writer.stop()
        await asyncio.to_thread(self._writer.join)
        # The thread's last delivery was scheduled before it ended; by now it has run.
        self.news.tell()
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.gather(self._replacing, return_exceptions=True)
        if self._reader is not None:
            self._reader.close()
        await asyncio.to_thread(self._database.close)

    # In the writer thread:

    def _connect(self) -> tuple[Connection, int]:
        connection = self._database.connect_writer()
        with self._database.patient(connection):
            bring_to_head(connection)
        mark = self._database.mark
        with connection.begin():
            history = self._database.history(connection)
            # Retention never removes the newest event, so this is the last number ever given.
            seq = connection.execute(select(func.max(events.c.seq))).scalar() or 0
            epoch = connection.execute(select(identity.c.epoch)).scalar()
            known = mark is None or (epoch is not None and mark.allows(epoch, seq))
            if epoch is None or not known or not epoch.startswith(history):
                epoch = history + secrets.token_hex(8)
                connection.execute(delete(identity))
                connection.execute(insert(identity), {"id": 1, "epoch": epoch, "created_us": self._clock()})
        self.epoch = epoch
        if mark is not None:
            mark.set(epoch, seq)
        return connection, seq

    def _report_open(self, seq: int, error: BaseException | None) -> None:
        self._call_soon(lambda: self._opened.set_exception(error) if error else self._opened.set_result(seq))

    def _deliver(self, group: Group) -> None:
        if group.events and self._database.mark is not None:
            self._database.mark.set(self.epoch, group.seq)
        self._call_soon(lambda: self._settle(group))

    def _free(self) -> None:
        if self._turns is not None:
            self._call_soon(self._turns.free)

    def _call_soon(self, callback: Callable[[], None]) -> None:
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)

    # In the loop:

    def _end_reading(self, reader: Connection) -> None:
        if not self._database.is_lost(reader):
            with contextlib.suppress(DBAPIError):
                reader.rollback()
        if self._database.is_lost(reader) and self._reader is reader:
            self._reader = None
            self._replacing = self._loop.create_task(self._replace(reader))

    async def _replace(self, reader: Connection) -> None:
        """Another connection for reads, as soon as there can be one."""
        reader.invalidate()
        reader.close()
        while self._reader is None:
            try:
                self._reader = await asyncio.to_thread(self._database.connect_reader)
            except DBAPIError:
                await asyncio.sleep(_PAUSE_S)

    def _settle(self, group: Group) -> None:
        self.groups += 1
        self._fault = group.fault
        self.changes += len(group.outcomes)
        if group.events:
            self.seq = group.seq
            self._tail.extend(group.events)
            self.news.tell()
        for future, value, error in group.outcomes:
            if future.done():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        if group.is_found:
            self._tell_found()
        if group.is_in_doubt and self._asking is None:
            self._asking = self._loop.call_later(_PAUSE_S, self._ask)

    def _tell_found(self) -> None:
        for told in self._hear_of_found:
            self._tell(told)

    def _tell(self, told: Callable[[], None]) -> None:
        if self._closed:
            return
        try:
            told()
        except Unavailable:
            self._loop.call_later(_PAUSE_S, self._tell, told)

    def _ask(self) -> None:
        """Let the writer ask what became of a group, also when nobody else writes."""
        self._asking = None
        if not self._closed:
            asked = self._loop.create_future()
            # Whether it was refused is told with its group.
            asked.add_done_callback(lambda done: done.exception())
            self._writer.submit(Pending(lambda _tx: None, asked))


class _Step:
    """One step of retention: how many rows went, and the oldest that stays."""

    __slots__ = ("oldest", "rows")

    def __init__(self, rows: int, oldest: int) -> None:
        self.rows = rows
        self.oldest = oldest


def _prune_events(connection: Connection, before_us: int, up_to_seq: int) -> _Step | None:
    """Remove up to a step of events from the old end; None when the oldest one may stay."""
    query = select(events.c.seq, events.c.ts_us).order_by(events.c.seq).limit(_PRUNE_STEP + 1)
    oldest = [(row.seq, row.ts_us) for row in connection.execute(query)]
    # The last row read is never removed: the next step needs it, and the newest event stays for good.
    count = 0
    while count < len(oldest) - 1 and (oldest[count][1] < before_us or oldest[count][0] <= up_to_seq):
        count += 1
    if not count:
        return None
    connection.execute(delete(events).where(events.c.seq < oldest[count][0]))
    return _Step(count, oldest[count][0])


def _forget(tx: Tx, found: Sequence[Expiry], after: int) -> int | None:
    """Empty what expires among the rows of a step; how many. None when all that follow are too young."""
    step = and_(events.c.seq > after, events.c.seq <= after + _FORGET_STEP)
    oldest_us = tx.connection.execute(select(func.min(events.c.ts_us)).where(step)).scalar()
    if oldest_us is not None and oldest_us >= max(expiry.before_us for expiry in found):
        return None
    before_us = case(*((_fits(expiry.pattern), expiry.before_us) for expiry in found), else_=0)
    expired = update(events).where(step, events.c.ts_us < before_us, events.c.data != b"").values(data=b"")
    return tx.connection.execute(expired).rowcount


def _fits(pattern: str) -> ColumnElement[bool]:
    """As `TopicRule.fits`. Not by LIKE, which passes over case in SQLite."""
    if pattern.endswith(".*"):
        return func.substr(events.c.topic, 1, len(pattern) - 1) == pattern[:-1]
    return events.c.topic == pattern


def _prune_heads(tx: Tx) -> int:
    """Remove up to a step of heads that no event will follow: of executions that are over, their own events gone.

    Only such topics grow in number. One that could go on must keep its head: an event without one before it begins a
    topic.
    """
    oldest = select(func.min(events.c.seq)).scalar_subquery()
    rest = func.substr(topic_heads.c.topic, len(_EXECUTION) + 1)
    going_on = exists().where(
        executions.c.id == func.substr(rest, 1, position(rest, ".") - 1), executions.c.finished_us.is_(None)
    )
    place = (topic_heads.c.tenant, topic_heads.c.project_id, topic_heads.c.topic)
    query = select(*place).where(topic_heads.c.seq < oldest, topic_heads.c.topic.startswith(_EXECUTION), ~going_on)
    over = [row._asdict() for row in tx.connection.execute(query.limit(_PRUNE_STEP))]
    if over:
        tx.connection.execute(delete(topic_heads).where(*(column == bindparam(column.name) for column in place)), over)
    return len(over)


def _prune_keys(connection: Connection, before_us: int) -> int:
    rowid = select(idempotency.c.tenant, idempotency.c.subject, idempotency.c.key)
    old = connection.execute(rowid.where(idempotency.c.created_us < before_us).limit(_PRUNE_STEP)).all()
    for row in old:
        key = (idempotency.c.tenant == row.tenant, idempotency.c.subject == row.subject, idempotency.c.key == row.key)
        connection.execute(delete(idempotency).where(*key))
    return len(old)


def _prune_revocations(tx: Tx) -> int:
    """Remove up to a step of revocations that hit nothing any more. Gateways forget them by themselves."""
    over_s = tx.now_us // 1_000_000 - STILL_S
    over = select(revocations.c.id).where(revocations.c.expires_at <= over_s).limit(_PRUNE_STEP)
    return tx.connection.execute(delete(revocations).where(revocations.c.id.in_(over))).rowcount
