"""Watch and Logs: events of the journal and lines of run logs, from a position on.

Strategy: a watcher is a cursor into the journal and one into each log that is going on; nothing is queued for it. Each
turn fills one batch from the cursors and sends it; when there is nothing, it waits for the journal or one of the logs.
A slow watcher takes its turns less often and costs nothing in between. Watchers that keep up are at the same line, so
what one of them has read of a log is kept for the others (`Pages`).

Rules:
- The first batch goes out at once, even empty, so that a client without a position learns where "now" is.
- What cannot be given any more (another epoch, removed by retention, forgotten by the rule of its topic) is told as
  `gap_reason`, never passed over.
- Topics between daemon and gateways are told to gateways only.
- Ephemeral events have a cursor of their own, and come in the same batches where they were asked for.
- Logs: from the position the client names; those that were going on before from their present end; new ones from their
  first line, also when they end before anybody looked. A gateway that begins is told the last line of those that go on:
  it gives out positions, and a log that is quiet for now would not be in them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from flx_api.errors import NotFound, Unavailable
from flx_api.models.event import PRIVATE_TOPICS
from flx_api.proto.flx.v1.daemon_pb2 import Event, EventBatch, LogBatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from flx_api.daemon.executions import Executions, LogFile
    from flx_api.daemon.journal import EventRow, Journal
    from flx_api.events.ephemeral_log import EphemeralLog
    from flx_api.proto.flx.v1.daemon_pb2 import WatchRequest

BATCH_EVENTS: Final = 256
BATCH_BYTES: Final = 64 * 1024
# After so many events that concern the watcher nothing, it is told how far it has come.
_SILENT_EVENTS: Final = 1024
# Of logs that are followed: at most a batch each.
_PAGES_MAX: Final = 64
_PREFIX, _STATUS, _LOG = "execution.", ".status", ".log"

_raw = msgspec.json.Decoder(msgspec.Raw)


class Topics:
    """A watcher's patterns: exact names, `*`, or a trailing `.*`."""

    def __init__(self, patterns: Iterable[str]) -> None:
        names = set(patterns)
        self._all = "*" in names
        self._prefixes = tuple(name[:-1] for name in names if name.endswith(".*"))
        self._names = frozenset(names)

    def match(self, topic: str) -> bool:
        """Whether one of the patterns is about this topic."""
        return self._all or topic in self._names or topic.startswith(self._prefixes)


class Page(NamedTuple):
    """Lines of a log behind one of them, as events, and how many bytes their data are."""

    after: int
    events: list[Event]
    size: int


class Pages:
    """What was read last of each log."""

    def __init__(self) -> None:
        self._pages: dict[str, Page] = {}

    def find(self, execution_id: str, after: int) -> Page | None:
        """What was read behind this line, if that was the last."""
        page = self._pages.get(execution_id)
        return page if page is not None and page.after == after else None

    def keep(self, execution_id: str, page: Page) -> None:
        """Keep a page in place of the one before."""
        self._pages.pop(execution_id, None)
        self._pages[execution_id] = page
        if len(self._pages) > _PAGES_MAX:
            del self._pages[next(iter(self._pages))]

    def forget(self, execution_id: str) -> None:
        """Nobody needs it any more."""
        self._pages.pop(execution_id, None)


class Watcher:
    """One watcher's cursors.

    Args:
        request: topics and positions.
        journal: the events.
        executions: the logs.
        ephemeral: the events that are in no journal.
        tenant: the one tenant it may see; None sees all.
        may_see: what else keeps it from seeing a topic (False), if anything does.
        clock: microseconds since the epoch; log lines bear the time at which they are passed on first.
        pages: shared with other watchers.
    """

    def __init__(
        self,
        request: WatchRequest,
        journal: Journal,
        executions: Executions,
        ephemeral: EphemeralLog,
        *,
        tenant: str | None,
        may_see: Callable[[str], bool] | None = None,
        clock: Callable[[], int],
        pages: Pages | None = None,
    ) -> None:
        self._pages = pages or Pages()
        self._wake = asyncio.Event()
        self._topics = Topics(request.topics)
        self._may_see_more = may_see
        self._ephemeral = ephemeral
        self._ephemeral_gap = ""
        self._ephemeral_seq = self._start_ephemeral(request)
        self._journal = journal
        self._executions = executions
        self._tenant = tenant
        self._clock = clock
        self._gap = ""
        self._silent = 0
        self._seq = self._start(request)
        # Up to there it is history: a log that goes on may have begun in it, and then its first line is the next one.
        self._begun = journal.seq
        self._named = {position.execution_id: position.after_line for position in request.logs}
        self._lines: dict[str, int] = {}
        # Logs that were given to their end; their runs may still count as active for a while.
        self._given: set[str] = set()
        # Logs with lines that could not be read; looked at again when there is news of anything.
        self._unreadable: set[str] = set()
        back = 1 if tenant is None and not request.HasField("after_seq") else 0
        for execution_id in executions.active_logs():
            self._lines[execution_id] = max(executions.log(execution_id).last_line - back, 0)
        # One that waits may begin and end between two looks, and its first event is past: nothing else tells of it.
        self._lines.update(executions.waiting())
        self._lines.update(self._named)

    async def batches(self) -> AsyncIterator[EventBatch]:
        """Batches for as long as they are asked for."""
        batch = await self._fill()
        yield batch
        while True:
            await self._news()
            batch = await self._fill()
            if (
                batch.events
                or batch.ephemeral
                or batch.gap_reason
                or batch.ephemeral_gap_reason
                or self._silent >= _SILENT_EVENTS
            ):
                self._silent = 0
                yield batch

    def _start(self, request: WatchRequest) -> int:
        now = self._journal.seq
        if not request.HasField("after_seq"):
            return now
        # A position ahead of the journal is of another history, whatever it calls itself.
        if (request.epoch and request.epoch != self._journal.epoch) or request.after_seq > now:
            self._gap = "epoch"
            return now
        return int(request.after_seq)

    def _start_ephemeral(self, request: WatchRequest) -> int | None:
        if not request.ephemeral:
            return None
        if request.ephemeral_epoch:
            self._ephemeral_gap = self._ephemeral.lost(request.ephemeral_epoch, request.ephemeral_after)
            if not self._ephemeral_gap:
                return int(request.ephemeral_after)
        return self._ephemeral.seq

    def _has_all_ephemeral(self) -> bool:
        return self._ephemeral_seq is None or self._ephemeral_seq >= self._ephemeral.seq

    async def _fill(self) -> EventBatch:
        events: list[Event] = []
        size = self._take_events(events)
        await self._take_lines(events, size)
        gap, self._gap = self._gap, ""
        batch = EventBatch(epoch=self._journal.epoch, events=events, journal_seq=self._seq, gap_reason=gap)
        if self._ephemeral_seq is not None:
            self._take_ephemeral(batch, self._ephemeral_seq)
        return batch

    def _take_ephemeral(self, batch: EventBatch, seq: int) -> None:
        log = self._ephemeral
        if log.lost(log.epoch, seq):
            self._ephemeral_gap, seq = "evicted", log.seq
        found = log.after(seq, BATCH_EVENTS, BATCH_BYTES)
        batch.ephemeral.extend(
            Event(**event._asdict())
            for event in found
            if self._concerns(event.tenant) and self._may_see(event.topic) and self._topics.match(event.topic)
        )
        self._ephemeral_seq = batch.ephemeral_seq = seq + len(found)
        batch.ephemeral_epoch = log.epoch
        batch.ephemeral_gap_reason, self._ephemeral_gap = self._ephemeral_gap, ""

    def _take_events(self, events: list[Event]) -> int:
        size = 0
        if self._seq + 1 < self._journal.oldest:
            self._gap = self._gap or "evicted"
            self._seq = self._journal.oldest - 1
        for row in self._journal.events_after(self._seq, BATCH_EVENTS):
            if size > BATCH_BYTES:
                break
            if row.seq != self._seq + 1:
                # Numbers are dense: retention has removed some since `oldest` was looked at.
                self._gap = self._gap or "evicted"
            self._seq = row.seq
            self._note_new_execution(row)
            if self._concerns(row.tenant) and self._may_see(row.topic) and self._topics.match(row.topic):
                if not row.data:
                    self._gap = self._gap or "evicted"
                    continue
                seq, prev, ts_us, topic, tenant, data = row
                events.append(Event(seq=seq, prev=prev, ts_us=ts_us, topic=topic, tenant=tenant, data=data))
                size += len(data) + len(topic)
            else:
                self._silent += 1
        return size

    def _note_new_execution(self, row: EventRow) -> None:
        if not (row.topic.startswith(_PREFIX) and row.topic.endswith(_STATUS)):
            return
        execution_id = row.topic[len(_PREFIX) : -len(_STATUS)]
        if row.prev == 0:
            if row.seq > self._begun:
                self._lines.setdefault(execution_id, 0)
            elif execution_id not in self._named:
                self._lines[execution_id] = 0
        elif b'"status":"queued"' in row.data:
            # Tried again after its end was given: its log goes on behind the attempts before.
            self._follow_again(execution_id, is_news=True)

    def _follow_again(self, execution_id: str, *, is_news: bool = False) -> None:
        self._given.discard(execution_id)
        log = self._log(execution_id, renewed=is_news)
        if log is not None:
            self._lines.setdefault(execution_id, log.earlier_lines)

    async def _take_lines(self, events: list[Event], size: int) -> None:
        active = self._executions.active_logs()
        self._given.intersection_update(active)
        for execution_id in active:
            if execution_id not in self._given and execution_id not in self._lines:
                self._follow_again(execution_id)
        # Where each of the others begins is only known when history has been told.
        is_told = self._seq >= self._begun
        for execution_id in [key for key in self._lines if is_told or key in self._named]:
            if len(events) >= BATCH_EVENTS or size >= BATCH_BYTES:
                return
            log = self._log(execution_id)
            if log is None:
                del self._lines[execution_id]
                continue
            if log.complete:
                # The index of a log of old is made at its first use, by reading all of it.
                await asyncio.to_thread(log.load)
            given = self._take_log(events, execution_id, log, BATCH_BYTES - size)
            size += given
            if given:
                # To the end of the line: a log that fills every batch must not keep the others back.
                self._lines[execution_id] = self._lines.pop(execution_id)
            elif log.last_line > self._lines[execution_id]:
                self._miss(execution_id, log)
            if log.complete and self._lines[execution_id] >= log.last_line:
                del self._lines[execution_id]
                self._given.add(execution_id)
                self._pages.forget(execution_id)

    def _miss(self, execution_id: str, log: LogFile) -> None:
        """Lines that were counted cannot be read: what is over is passed over, and said to be gone."""
        end = log.last_line if log.complete else log.earlier_lines
        if self._lines[execution_id] < end:
            self._gap = self._gap or "evicted"
            self._lines[execution_id] = end
        else:
            self._unreadable.add(execution_id)

    def _take_log(self, events: list[Event], execution_id: str, log: LogFile, room: int) -> int:
        after, most = self._lines[execution_id], BATCH_EVENTS - len(events)
        if after >= log.last_line:
            return 0
        page = self._pages.find(execution_id, after)
        if page is None or len(page.events) > most or page.size > room:
            page = self._read(execution_id, log, most, room)
        events += page.events
        self._lines[execution_id] = after + len(page.events)
        return page.size

    def _read(self, execution_id: str, log: LogFile, most: int, room: int) -> Page:
        after, now_us, tenant, size = self._lines[execution_id], self._clock(), log.tenant, 0
        topic, events = f"{_PREFIX}{execution_id}{_LOG}", []
        for number, line in enumerate(log.lines(after + 1, most, room), after + 1):
            data = _as_json(line)
            size += len(data)
            events.append(Event(seq=number, prev=number - 1, ts_us=now_us, topic=topic, tenant=tenant, data=data))
        page = Page(after, events, size)
        if events:
            self._pages.keep(execution_id, page)
        return page

    def _log(self, execution_id: str, *, renewed: bool = False) -> LogFile | None:
        """The log, if it is one this watcher is to see; `renewed`: as it is since another attempt was told."""
        if not self._topics.match(f"{_PREFIX}{execution_id}{_LOG}"):
            return None
        try:
            if renewed:
                self._executions.renew_log(execution_id)
            log = self._executions.log(execution_id)
        except NotFound:
            return None
        return log if self._concerns(log.tenant) else None

    def _concerns(self, tenant: str) -> bool:
        return self._tenant is None or tenant == self._tenant

    def _may_see(self, topic: str) -> bool:
        if self._may_see_more is not None and not self._may_see_more(topic):
            return False
        return self._tenant is None or topic not in PRIVATE_TOPICS

    async def _news(self) -> None:
        """Wait until the journal or one of the logs has more.

        Raises:
            Unavailable: `shutting_down`, the journal was closed.
        """
        if self._seq < self._journal.seq or not self._has_all_ephemeral():
            return
        sources = [self._journal.news]
        if self._ephemeral_seq is not None:
            sources.append(self._ephemeral.news)
        for execution_id, line in self._lines.items():
            log = self._log(execution_id)
            if log is None:
                continue
            # One that is over is not asked for its last line: that may have to be counted first, in a thread.
            if log.complete or (log.last_line > line and execution_id not in self._unreadable):
                return
            sources.append(log.news)
        if self._journal.is_closed:
            raise Unavailable(code="shutting_down")
        self._wake.clear()
        for source in sources:
            source.wake(self._wake)
        try:
            await self._wake.wait()
        finally:
            self._unreadable.clear()
            for source in sources:
                source.spare(self._wake)


async def log_batches(log: LogFile, from_line: int, limit: int, *, follow: bool) -> AsyncIterator[LogBatch]:
    """The lines of one log in batches.

    Args:
        log: the log.
        from_line: the first line, from 1.
        limit: how many lines at most; 0 is all.
        follow: go on until the run is over.
    """
    if log.complete:
        await asyncio.to_thread(log.load)
    line, left = max(from_line, 1), limit or None
    while left is None or left > 0:
        lines = log.lines(line, min(BATCH_EVENTS, left or BATCH_EVENTS), BATCH_BYTES)
        if lines:
            yield LogBatch(first_line=line, lines=lines)
            line += len(lines)
            left = None if left is None else left - len(lines)
        elif not follow or log.complete:
            # What is counted of one that is over and cannot be read is gone.
            return
        elif log.last_line >= line:
            await log.news.wait()
        else:
            await log.changed(line - 1)


def _as_json(line: bytes) -> bytes:
    """A log line as JSON: as it is when it is a JSON object, else as a string."""
    if line.startswith(b"{"):
        try:
            # A decoder that skips values does not look at the bytes inside of strings.
            line.decode()
            _raw.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        else:
            return line
    return msgspec.json.encode(line.decode(errors="replace"))
