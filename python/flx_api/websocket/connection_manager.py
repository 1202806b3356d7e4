"""The connections of this process: who is there, and how what the hub has for them reaches them.

Strategy: the hub (`flx_api._core.Hub`) knows who hears what and how far each connection is. One task asks it who is
due, gives each its turn, and sleeps until the hub has something next; who has written a turn can get another. The hub
is that of the process: the threads of the native listener serve other connections of it. Where the memory does not
reach back, the daemon tells what is missing, while the hub holds the connection.

Rules:
- A client id belongs to the subject (of its tenant) that first connected with it, for as long as it is connected.
- At most one turn is on its way to a connection: what a slow peer has not taken costs nothing here.
- Every skip is told.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from flx_api.errors import Conflict, RateLimited, Unavailable
from flx_api.events.position import Position
from flx_api.websocket import protocol
from flx_api.websocket.close_codes import CloseCode
from flx_api.websocket.history import catch_up
from flx_api.websocket.standing import owner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flx_api._core import Hub, Principal, Roster
    from flx_api.events.ephemeral_log import EphemeralEvent
    from flx_api.events.follower import Past
    from flx_api.models.topic_rules import TopicRule
    from flx_api.observability.metrics import Metrics
    from flx_api.websocket.connection import Connection
    from flx_api.websocket.history import History

MAX_CONNECTIONS: Final = 20_000
MAX_PER_SUBJECT: Final = 5_000
STUCK_S: Final = 10.0
_TICK_S: Final = 1.0
# So many connections are served before others have their turn.
_ROOM: Final = 256
_SWEEP_TICKS: Final = 5
_WARNING_S: Final = 60.0
# For a Close frame to be taken.
_FAREWELL_S: Final = 2.5


class ConnectionManager:
    """The connections of one process.

    Args:
        hub: what was heard, and who hears it.
        roster: who is here, on either face.
        metrics: where ends are counted; the rest the hub counts.
        clock: monotonic seconds.
        wall: seconds since the epoch, for token expiry.
        rules: of topics.
        heartbeat_s: after so long without anything a connection gets a sign of life.
    """

    def __init__(
        self,
        hub: Hub,
        roster: Roster,
        metrics: Metrics,
        clock: Callable[[], float],
        wall: Callable[[], float],
        *,
        rules: Sequence[TopicRule] = (),
        heartbeat_s: float = 25.0,
    ) -> None:
        self._hub = hub
        self._heartbeat_s = heartbeat_s
        self._roster = roster
        self._rules = rules
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self._connections: set[Connection] = set()
        self._by_client: dict[str, set[Connection]] = {}
        self._per_owner: dict[tuple[str, str], int] = {}
        self._by_handle: dict[int, Connection] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._pumper: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        # Who waits for the end of the present turn.
        self._waiting: list[asyncio.Future[None]] = []
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False
        # Whether a client id is free elsewhere in this process: at the native listener.
        self.is_free: Callable[[str, str, str], bool] = held_by_nobody
        self.history: History | None = None

    # --- lifecycle ---------------------------------------------------------------------------------------------------

    def startup(self) -> None:
        """Begin to serve, and to watch over expiry, silence and slowness."""
        self._ticker = asyncio.create_task(self._tick(), name="connection-ticker")
        self._pumper = asyncio.create_task(self._pump(), name="connection-pump")

    async def drain(self, within_s: float) -> None:
        """Refuse new connections and end all with RESTARTING, one after the other; each is told when.

        Returns when they are gone or the time is up.
        """
        self.draining = True
        loop, connections = asyncio.get_running_loop(), list(self._connections)
        for number, connection in enumerate(connections, 1):
            in_s = within_s * number / len(connections)
            if within_s:
                connection.send(protocol.frame("reconnect", in_ms=int(in_s * 1000)))
            loop.call_later(in_s, connection.end, CloseCode.RESTARTING)
        try:
            async with asyncio.timeout(within_s + _FAREWELL_S):
                await self._empty.wait()
        except TimeoutError:
            return

    async def shutdown(self) -> None:
        """Drain and stop."""
        await self.drain(0)
        tasks = [task for task in (self._ticker, self._pumper) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def check(self, client_id: str | None, principal: Principal) -> None:
        """Whether a connection of this principal under this client id would be let in; a stream has none.

        Raises:
            Unavailable: the process is about to stop.
            RateLimited: there are too many connections, of all or of this subject.
            Conflict: another subject holds the client id.
        """
        if self.draining:
            raise Unavailable(code="shutting_down", retry_after_s=1)
        owner = owner_of(principal)
        if len(self._connections) >= MAX_CONNECTIONS or self._per_owner.get(owner, 0) >= MAX_PER_SUBJECT:
            raise too_many()
        if client_id is None:
            return
        holders = self._by_client.get(client_id)
        is_held = bool(holders) and owner_of(next(iter(holders or ())).principal) != owner
        if is_held or not self.is_free(client_id, *owner):
            raise Conflict(code="client_id_taken")

    def connect(self, connection: Connection) -> None:
        """Let a connection in. Raises as `check`, which is asked again since the handshake took time."""
        owner = owner_of(connection.principal)
        self.check(connection.client_id, connection.principal)
        principal = connection.principal
        classes = protocol.allowed_classes(principal.roles, self._rules)
        handle = self._hub.connect(connection.tenant, principal.subject, classes, connection.dialect)
        if handle is None:
            raise too_many()
        connection.handle, connection.written = handle, self._written
        self._by_handle[handle] = connection
        now_s = self._wall()
        connection.seat = self._roster.enter(principal, connection.client_id or "", handle, int(now_s * 1e6))
        connection.warns_s = warning_s(principal, now_s)
        self._connections.add(connection)
        self._empty.clear()
        if connection.client_id is not None:
            self._by_client.setdefault(connection.client_id, set()).add(connection)
        self._per_owner[owner] = self._per_owner.get(owner, 0) + 1

    def disconnect(self, connection: Connection, code: CloseCode) -> None:
        """Forget a connection."""
        if connection not in self._connections:
            return
        self._hub.disconnect(connection.handle)
        self._roster.leave(connection.seat)
        del self._by_handle[connection.handle]
        self._connections.discard(connection)
        if connection.client_id is not None:
            holders = self._by_client[connection.client_id]
            holders.discard(connection)
            if not holders:
                del self._by_client[connection.client_id]
        owner = owner_of(connection.principal)
        self._per_owner[owner] -= 1
        if not self._per_owner[owner]:
            del self._per_owner[owner]
        self._metrics.closed(code)
        if not self._connections:
            self._empty.set()

    def end(self, handles: Iterable[int], code: CloseCode) -> None:
        """End connections, as far as they are here."""
        for handle in handles:
            connection = self._by_handle.get(handle)
            if connection is not None:
                connection.end(code)

    def renew(self, connection: Connection, principal: Principal) -> None:
        """Let another token of the same subject be in force for a connection."""
        now_s = self._wall()
        connection.principal = principal
        connection.warns_s = warning_s(principal, now_s)
        self._roster.renew(connection.seat, principal)
        classes = protocol.allowed_classes(principal.roles, self._rules)
        lost = self._hub.set_rights(connection.handle, principal.subject, classes, self._now_ms())
        for frame in protocol.renewed(principal, lost, now_s):
            connection.send(frame)
        self.news()

    # --- messages ----------------------------------------------------------------------------------------------------

    def send_personal_message(self, client_id: str, frame: str) -> None:
        """Send a frame to all connections of a client id."""
        for connection in self._by_client.get(client_id, ()):
            connection.send(frame)

    def broadcast(self, frame: str) -> None:
        """Send a frame to everyone."""
        for connection in self._connections:
            connection.send(frame)

    def publish(self, tenant: str, topic: str, ts_us: int, data: bytes) -> None:
        """Tell an event that is in no journal, and never resumed."""
        self._hub.publish(tenant, topic, ts_us, data, self._now_ms())
        self.news()

    def publish_all(self, events: Sequence[EphemeralEvent]) -> None:
        """Tell events that are in no journal, and never resumed."""
        self._hub.publish_all(events, self._now_ms())
        self.news()

    def lose(self, reason: str) -> None:
        """Ephemeral events were lost on their way here: everybody who may miss one is told."""
        self._hub.lose(reason, self._now_ms())
        self.news()

    # --- serving -----------------------------------------------------------------------------------------------------

    def news(self) -> None:
        """The hub has something new."""
        # The native listener's threads see for themselves.
        if self._by_handle or self._waiting:
            self._news.set()

    def serve(self) -> int:
        """Give those who are due their turns; how many frames these have in all."""
        turns = self._hub.take(self._now_ms(), _ROOM)
        frames = 0
        for handle, turn in turns:
            self._by_handle[handle].give(turn)
            frames += len(turn)
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        return frames

    async def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            began_s = self._clock()
            frames = self.serve()
            if frames:
                # The writers' turn; what it takes is what sending costs.
                await asyncio.sleep(0)
                self._hub.spent(frames, int((self._clock() - began_s) * 1e6))
                continue
            due_ms = self._hub.wakes_at()
            # The hub counts in whole milliseconds, and a moment too early would be a turn for nothing.
            delay_s = None if due_ms is None else max(0.0, due_ms / 1000 - self._clock()) + 0.0005
            timer = None if delay_s is None else loop.call_later(delay_s, self._news.set)
            await self._news.wait()
            if timer is not None:
                timer.cancel()

    def _written(self, connection: Connection) -> None:
        self._hub.writable(connection.handle, self._now_ms())
        self.news()

    async def level(self, connection: Connection) -> None:
        """Wait until a connection was given everything that was heard up to now."""
        order = self._hub.order
        # Once: whatever moves the connection on is a turn itself. Asked for one after the other, turns in which a slow
        # one gets nothing would keep this process busy.
        self.news()
        while not self._hub.has_passed(connection.handle, order):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    # --- subscriptions -----------------------------------------------------------------------------------------------

    async def subscribe(self, connection: Connection, pattern: str, from_: str | None = None) -> None:
        """Let a connection hear a topic or a pattern, from now on or from a position on.

        Raises:
            InvalidRequest, NotFound, Forbidden: it may not; nothing has changed.
        """
        history = self.begin(connection, [pattern], from_)
        if history is not None:
            await self.catch_up(connection, [pattern], history)

    def begin(self, connection: Connection, patterns: list[str], from_: str | None) -> Position | None:
        """Let a connection hear topics or patterns, all or none of them; where it has to `catch_up` from.

        Raises:
            InvalidRequest, NotFound, Forbidden: it may not; nothing has changed.
        """
        why, frames, history = self._hub.subscribe(connection.handle, patterns, from_, self._now_ms())
        if why is not None:
            raise protocol.refused(why)
        for frame in frames:
            connection.pass_on(frame)
        self.news()
        return None if history is None else Position(*history)

    def unsubscribe(self, connection: Connection, pattern: str) -> None:
        """Let a connection no longer hear a topic or a pattern."""
        self._hub.unsubscribe(connection.handle, pattern, self._now_ms())
        self.news()

    async def catch_up(self, connection: Connection, patterns: list[str], position: Position) -> None:
        """Feed a connection from the daemon until the memory joins on."""
        held = _Held(self._hub, connection, self._now_ms)
        if self.history is None:
            held.give_up("upstream_unavailable")
        else:
            await catch_up(self.history, patterns, position, held)
        self.news()

    # --- watching over -----------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_S)
            self.look_after(self._clock(), self._wall())
            ticks += 1
            if ticks % _SWEEP_TICKS == 0:
                self._hub.sweep(self._now_ms())

    def look_after(self, now_s: float, wall_s: float) -> None:
        """End what has expired or is stuck, tell whose token is about to end, and give a sign of life to the others."""
        heartbeat = protocol.frame("heartbeat", ts=int(wall_s * 1_000_000))
        for connection in list(self._connections):
            if connection.principal.expires_at <= wall_s:
                connection.end(CloseCode.TOKEN_ENDED)
            elif connection.sending_since_s is not None and now_s - connection.sending_since_s > STUCK_S:
                connection.end(CloseCode.TOO_SLOW)
            elif connection.warns_s is not None and connection.warns_s <= wall_s:
                connection.warns_s = None
                left_s = math.ceil(connection.principal.expires_at - wall_s)
                connection.send(protocol.frame("expiring", in_s=left_s))
            elif connection.sending_since_s is None and now_s - connection.last_sent_s > self._heartbeat_s:
                connection.send(heartbeat)


class _Held:
    """A connection that is catching up."""

    def __init__(self, hub: Hub, connection: Connection, now_ms: Callable[[], int]) -> None:
        self._hub = hub
        self._connection = connection
        self._now_ms = now_ms

    def backfill(self, past: Past) -> bool | None:
        """Give it a batch."""
        handle, now_ms = self._connection.handle, self._now_ms()
        found = self._hub.backfill(handle, past.epoch, past.events, past.journal_seq, past.is_last, now_ms)
        if found is None:
            return None
        for frame in found[0]:
            self._connection.pass_on(frame)
        return found[1]

    async def room(self) -> None:
        """Wait until its queue is short."""
        await self._connection.room()

    def give_up(self, reason: str) -> None:
        """Let it go on with a gap."""
        gap = self._hub.give_up(self._connection.handle, reason, self._now_ms())
        if gap is not None:
            self._connection.pass_on(gap)


def held_by_nobody(_client_id: str, _tenant: str, _subject: str) -> bool:
    """What a face says where there is none."""
    return True


def too_many() -> RateLimited:
    """Why nobody more is let in now."""
    return RateLimited("There are too many connections", retry_after_s=5)


def warning_s(principal: Principal, now_s: float) -> float:
    """When to tell that a token ends: a minute before, or when half of what is left is over."""
    return principal.expires_at - min(_WARNING_S, (principal.expires_at - now_s) / 2)
