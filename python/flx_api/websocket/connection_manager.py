"""The hub of this process: which connections there are, who hears what, and how one that comes back catches up.

Strategy: exact topics and wildcards lead to sets of connections; an event's frame was built once by the memory and the
same string goes to everyone. A subscription with `from` suspends the connection's live events, fills the hole from the
memory, or from the daemon until the memory joins on, and goes live in one step without awaiting in between: that is
why there is neither hole nor duplicate.

Rules:
- A client id belongs to the subject (of its tenant) that first connected with it, for as long as it is connected.
- An event is delivered once per connection, however many of its subscriptions match.
- Every skip is told: a message `error` with code `gap`.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from flx_api._core import topic_matches
from flx_api.errors import Conflict, InvalidRequest, RateLimited, Unavailable
from flx_api.events.memory import Heard, frame_of
from flx_api.events.position import Position, decode, encode, execution_of_log
from flx_api.proto.flx.v1.daemon_pb2 import Event
from flx_api.websocket import protocol
from flx_api.websocket.close_codes import CloseCode
from flx_api.websocket.connection import BACKLOG_BYTES, DEFAULT_TENANT, MAX_SUBSCRIPTIONS, Connection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable

    from flx_api._core import Principal
    from flx_api.events.memory import Memory
    from flx_api.observability.metrics import Metrics
    from flx_api.proto.flx.v1.daemon_pb2 import EventBatch

MAX_CONNECTIONS: Final = 20_000
MAX_PER_SUBJECT: Final = 5_000
HEARTBEAT_S: Final = 25.0
STUCK_S: Final = 10.0
_TICK_S: Final = 1.0
_CATCH_UP_S: Final = 30.0
# How much is queued for a connection at once while it catches up; beside what it may hold then, it must fit the queue.
_CHUNK: Final = BACKLOG_BYTES // 4
# A batch below both bounds tells all that the daemon had at that moment (they are its own, `flx_api.daemon.watch`).
_FULL_EVENTS: Final = 256
_FULL_BYTES: Final = 64 * 1024
# Tenant and subject: two tenants may each have an anna, and they are not the same one.
_Owner = tuple[str, str]


class ConnectionManager:
    """The connections of one process.

    Args:
        memory: what was heard lately.
        metrics: where connections and deliveries are counted.
        clock: monotonic seconds.
        wall: seconds since the epoch, for token expiry.
    """

    def __init__(self, memory: Memory, metrics: Metrics, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._memory = memory
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self._connections: set[Connection] = set()
        self._by_client: dict[str, set[Connection]] = {}
        self._per_owner: dict[_Owner, int] = {}
        self._exact: dict[str, set[Connection]] = {}
        self._wild: dict[str, set[Connection]] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        # Events that this process alone tells: the last number of each topic, in an epoch of their own.
        self._own_epoch = f"local-{os.urandom(8).hex()}"
        self._own: dict[tuple[str, str], int] = {}
        self.draining = False
        self.history: Callable[[list[str], Position], AsyncGenerator[EventBatch, None]] | None = None

    # --- lifecycle ---------------------------------------------------------------------------------------------------

    def startup(self) -> None:
        """Begin to watch over expiry, silence and slowness."""
        self._ticker = asyncio.create_task(self._tick(), name="connection-ticker")

    async def drain(self, within_s: float = 5.0) -> None:
        """Refuse new connections and end all with RESTARTING; return when they are gone or the time is up."""
        self.draining = True
        for connection in list(self._connections):
            connection.end(CloseCode.RESTARTING)
        try:
            async with asyncio.timeout(within_s):
                await self._empty.wait()
        except TimeoutError:
            return

    async def shutdown(self) -> None:
        """Drain and stop."""
        await self.drain()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)

    def check(self, client_id: str, principal: Principal) -> None:
        """Whether a connection of this principal under this client id would be let in.

        Raises:
            Unavailable: the process is about to stop.
            RateLimited: there are too many connections, of all or of this subject.
            Conflict: another subject holds the client id.
        """
        if self.draining:
            raise Unavailable(code="shutting_down", retry_after_s=1)
        owner = _owner(principal)
        if len(self._connections) >= MAX_CONNECTIONS or self._per_owner.get(owner, 0) >= MAX_PER_SUBJECT:
            detail = "There are too many connections"
            raise RateLimited(detail, retry_after_s=5)
        holders = self._by_client.get(client_id)
        if holders and _owner(next(iter(holders)).principal) != owner:
            raise Conflict(code="client_id_taken")

    def connect(self, connection: Connection) -> None:
        """Let a connection in. Raises as `check`, which is asked again since the handshake took time."""
        owner = _owner(connection.principal)
        self.check(connection.client_id, connection.principal)
        self._connections.add(connection)
        self._empty.clear()
        self._by_client.setdefault(connection.client_id, set()).add(connection)
        self._per_owner[owner] = self._per_owner.get(owner, 0) + 1
        self._metrics.connections = len(self._connections)

    def disconnect(self, connection: Connection, code: CloseCode) -> None:
        """Forget a connection."""
        if connection not in self._connections:
            return
        for pattern in list(connection.subscriptions):
            self.unsubscribe(connection, pattern)
        self._connections.discard(connection)
        holders = self._by_client[connection.client_id]
        holders.discard(connection)
        if not holders:
            del self._by_client[connection.client_id]
        owner = _owner(connection.principal)
        self._per_owner[owner] -= 1
        if not self._per_owner[owner]:
            del self._per_owner[owner]
        self._metrics.connections = len(self._connections)
        self._metrics.closed(code)
        if not self._connections:
            self._empty.set()

    # --- messages ----------------------------------------------------------------------------------------------------

    def send_personal_message(self, client_id: str, frame: str) -> None:
        """Send a frame to all connections of a client id."""
        for connection in self._by_client.get(client_id, ()):
            connection.send(frame)

    def broadcast(self, frame: str) -> None:
        """Send a frame to everyone."""
        for connection in self._connections:
            connection.send(frame)

    def broadcast_to_subscribers(self, topic: str, heard: Heard) -> None:
        """Send an event to those who subscribed to its topic and may hear it."""
        execution = execution_of_log(topic)
        for connection in self._recipients(topic):
            seen = connection.after if execution is None else connection.after_lines.get(execution, 0)
            if not connection.suspended and heard.seq > seen and connection.may_hear(heard):
                connection.send(heard.frame)
                self._metrics.events_delivered += 1

    def publish(self, tenant: str, topic: str, ts_us: int, data: bytes) -> None:
        """Tell an event that this process alone knows: its topic begins anew with the process and is never resumed."""
        prev = self._own.get((tenant, topic), 0)
        self._own[tenant, topic] = seq = prev + 1
        event = Event(seq=seq, prev=prev, topic=topic, tenant=tenant, ts_us=ts_us, data=data)
        frame = frame_of(event, self._own_epoch, encode(self._memory.position))
        heard = Heard(0, topic, tenant, seq, prev, frame)
        for connection in self._recipients(topic):
            if not connection.may_hear(heard):
                continue
            if connection.suspended:
                connection.missed = True
                continue
            connection.send(frame)
            self._metrics.events_delivered += 1

    def _recipients(self, topic: str) -> Collection[Connection]:
        recipients: set[Connection] | None = self._exact.get(topic)
        for pattern, connections in self._wild.items():
            if topic_matches(pattern, topic):
                recipients = recipients | connections if recipients else connections
        return recipients or ()

    def event(self, heard: Heard) -> None:
        """The follower heard something."""
        self.broadcast_to_subscribers(heard.topic, heard)

    def gap(self, reason: str) -> None:
        """The follower lost something: everyone who subscribed is told."""
        position = encode(self._memory.position)
        for connection in self._connections:
            # One that is catching up may do so for its first subscription.
            if connection.subscriptions or connection.suspended:
                connection.after, connection.after_lines = 0, {}
                self._tell_gap(connection, reason, position)

    def _tell_gap(self, connection: Connection, reason: str, position: str) -> None:
        self._metrics.gap(reason)
        connection.send(
            protocol.error(
                "gap", "Events were skipped; what follows is new", reason=reason, epoch=self._memory.epoch, pos=position
            )
        )

    # --- subscriptions -----------------------------------------------------------------------------------------------

    async def subscribe(self, connection: Connection, pattern: str, from_: str | None = None) -> None:
        """Let a connection hear a topic or a pattern, from now on or from a position on.

        Raises:
            InvalidRequest, NotFound, Forbidden: it may not; nothing has changed.
        """
        connection.ears.check(pattern)
        if pattern not in connection.subscriptions and len(connection.subscriptions) >= MAX_SUBSCRIPTIONS:
            detail = f"A connection has at most {MAX_SUBSCRIPTIONS} subscriptions"
            raise InvalidRequest(detail)
        position = None if from_ is None else decode(from_)
        connection.send(protocol.frame("subscribed", event=pattern, pos=encode(self._memory.position)))
        if position is None:
            self._add(connection, pattern)
            return
        if position.epoch != self._memory.epoch:
            self._add(connection, pattern)
            self._tell_gap(connection, "epoch", encode(self._memory.position))
            return
        await self._resume(connection, pattern, position)

    def unsubscribe(self, connection: Connection, pattern: str) -> None:
        """Let a connection no longer hear a topic or a pattern."""
        if pattern in connection.subscriptions:
            connection.subscriptions.discard(pattern)
            index = self._wild if pattern.endswith("*") else self._exact
            index[pattern].discard(connection)
            if not index[pattern]:
                del index[pattern]
            self._metrics.subscriptions -= 1

    def _add(self, connection: Connection, pattern: str) -> None:
        if pattern not in connection.subscriptions and not connection.closing.done():
            connection.subscriptions.add(pattern)
            index = self._wild if pattern.endswith("*") else self._exact
            index.setdefault(pattern, set()).add(connection)
            self._metrics.subscriptions += 1

    async def _resume(self, connection: Connection, pattern: str, position: Position) -> None:
        """Fill the hole since a position, then go live."""
        memory = self._memory
        patterns = connection.subscriptions | {pattern}
        epoch, held = memory.epoch, memory.order
        connection.suspended = True
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                position = await self._history(connection, pattern, position, held)
                while memory.epoch == epoch:
                    # From here on in the one order of the memory, for all subscriptions: a frame's position must never
                    # cover an event that is still to come.
                    heard = memory.heard_after(held)
                    if heard is None:
                        self._tell_gap(connection, "evicted", encode(memory.position))
                        break
                    due = [event for event in heard if _matches(patterns, event.topic)]
                    count = _bearable(due)
                    self._deliver(connection, due[:count])
                    if len(due) <= count:
                        break
                    held = due[count - 1].order
                    await connection.room()
        except (TimeoutError, Unavailable, _Gone) as error:
            reason = error.reason if isinstance(error, _Gone) else "upstream_unavailable"
            # What follows is new from here on, also for a reader that came with a position of another history.
            position = memory.position
            self._tell_gap(connection, reason, encode(position))
        finally:
            # From the last look at the memory to here nothing is awaited, so no event can fall in between.
            connection.suspended = False
            if memory.epoch == epoch:
                connection.after = max(connection.after, position.seq)
                connection.after_lines = {**connection.after_lines, **position.logs}
            self._add(connection, pattern)
            if connection.missed:
                connection.missed = False
                self._tell_gap(connection, "resuming", encode(memory.position))

    async def _history(self, connection: Connection, pattern: str, position: Position, held: int) -> Position:
        """Deliver what happened since a position and was heard before the connection was suspended (at `held`).

        Returns:
            How far the daemon told it; what the memory told is not counted.
        """
        memory, born_from = self._memory, position.seq

        def wanted(topic: str) -> bool:
            return topic_matches(pattern, topic)

        # A position ahead of this process comes from a gateway that has heard more, or from a history that a restored
        # database has lost: the daemon knows.
        if position.seq > memory.seq or memory.missing(position, wanted, born_from):
            if self.history is None:
                raise Unavailable
            batches = self.history([pattern], position)
            try:
                async for batch in batches:
                    if batch.gap_reason or batch.epoch != position.epoch:
                        raise _Gone(batch.gap_reason or "epoch")
                    position = self._deliver_batch(connection, batch, position, wanted)
                    await connection.room()
                    settled = len(batch.events) < _FULL_EVENTS and batch.ByteSize() < _FULL_BYTES
                    if not memory.missing(position, wanted, born_from, settled=settled):
                        break
                else:
                    raise Unavailable
            finally:
                # An async generator that is left early must be closed here, or its stream lives until collection.
                await batches.aclose()
        due = [event for event in memory.since(position, wanted, born_from) if event.order <= held]
        start = 0
        while start < len(due):
            count = _bearable(due, start)
            self._deliver(connection, due[start : start + count])
            start += count
            await connection.room()
        return position

    def _deliver(self, connection: Connection, due: Iterable[Heard]) -> None:
        for heard in due:
            if connection.may_hear(heard):
                connection.send(heard.frame)
                self._metrics.events_delivered += 1

    def _deliver_batch(
        self, connection: Connection, batch: EventBatch, position: Position, wanted: Callable[[str], bool]
    ) -> Position:
        """Deliver events that the daemon had to tell again; how far that brings the reader.

        What the memory has is left to the memory.
        """
        floor, seq, logs = self._memory.floor, position.seq, dict(position.logs)
        for event in batch.events:
            execution = execution_of_log(event.topic)
            if execution is None:
                if not seq < event.seq <= floor:
                    continue
                seq = event.seq
            else:
                remembered = self._memory.logs.get(execution)
                if event.seq <= logs.get(execution, 0) or (remembered is not None and event.seq > remembered.floor):
                    continue
                logs[execution] = event.seq
            if wanted(event.topic) and self._may_hear(connection, event):
                here = Position(batch.epoch, seq, logs)
                connection.send(frame_of(event, batch.epoch, encode(here)))
                self._metrics.events_delivered += 1
        return Position(batch.epoch, max(seq, min(batch.journal_seq, floor)), logs)

    @staticmethod
    def _may_hear(connection: Connection, event: Event) -> bool:
        return (event.tenant or DEFAULT_TENANT) == connection.tenant and connection.ears.may_hear(event.topic)

    # --- watching over -----------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self.look_after(self._clock(), self._wall())

    def look_after(self, now_s: float, wall_s: float) -> None:
        """End what has expired or is stuck; give a sign of life where nothing else was sent."""
        heartbeat = protocol.frame("heartbeat", ts=int(wall_s * 1_000_000))
        for connection in list(self._connections):
            if connection.principal.expires_at <= wall_s:
                connection.end(CloseCode.TOKEN_ENDED)
            elif connection.sending_since_s is not None and now_s - connection.sending_since_s > STUCK_S:
                connection.end(CloseCode.TOO_SLOW)
            elif connection.sending_since_s is None and now_s - connection.last_sent_s > HEARTBEAT_S:
                connection.send(heartbeat)


class _Gone(Exception):
    """The daemon does not have what a position asks for: `reason` is that of the gap."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _owner(principal: Principal) -> _Owner:
    return principal.tenant or DEFAULT_TENANT, principal.subject


def _bearable(due: list[Heard], start: int = 0) -> int:
    """How many of these events may be queued at once: at least one, if there is one."""
    size = 0
    for index in range(start, len(due)):
        size += len(due[index].frame)
        if size > _CHUNK:
            return max(1, index - start)
    return len(due) - start


def _matches(patterns: Iterable[str], topic: str) -> bool:
    return any(topic_matches(pattern, topic) for pattern in patterns)
