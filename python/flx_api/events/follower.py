"""One Watch stream per process: everything the daemon tells, into the hub.

Strategy: a task waits for a connection, asks for everything after the position it has, and takes batches until the
stream ends; then again. The first batch of a stream says where it begins, so the follower has a position as soon as
the daemon has answered, even when nothing happens.

Rules:
- The position moves only with what was taken; a reconnect therefore loses nothing and repeats nothing (the hub drops
  what it has heard before).
- When the daemon says that something is gone (`gap_reason`), or comes back with another epoch, the hub begins anew and
  tells everyone.
- Ephemeral events come in the same batches, in an epoch that lasts as long as the daemon's process. They go to the
  `Receiver` of buses (`flx_api.events.bus`), and what is lost of them is told there.
- What is between daemon and gateways (`PRIVATE_TOPICS`) goes to its own listeners, before anything else of its batch,
  and never into the hub: no client can come to hear it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec
import structlog
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from flx_api.errors import Unavailable
from flx_api.events.ephemeral_log import EphemeralEvent
from flx_api.events.position import Position, execution_of_log
from flx_api.models.event import PRIVATE_TOPICS
from flx_api.models.tenant import tenant_of
from flx_api.proto.flx.v1.daemon_pb2 import EventBatch, LogPosition, WatchRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

    from flx_api._core import Hub
    from flx_api.events.bus import Receiver
    from flx_api.observability.metrics import Metrics
    from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
    from flx_api.proto.flx.v1.daemon_pb2 import Event

_LOSSES: Final = (GRPCError, StreamTerminatedError, ProtocolError, OSError, Unavailable)
_PAUSE_S: Final = 0.1
# Bounds of a batch; they are the daemon's own (`flx_api.daemon.watch`).
_FULL_EVENTS: Final = 256
_FULL_BYTES: Final = 64 * 1024
_OVER: Final = frozenset({"succeeded", "succeeded_with_warnings", "failed", "cancelled", "timed_out", "crashed"})


# Tenant, topic, number, number before it, microseconds since 1970, JSON: an event as a hub takes it.
Told = tuple[str, str, int, int, int, bytes]


class Past(NamedTuple):
    """A batch of history, read once for all who catch up with it.

    Attributes:
        is_last: it is not full, so it tells all that the daemon had at that moment.
    """

    epoch: str
    events: list[Told]
    journal_seq: int
    is_last: bool
    gap_reason: str
    size: int


class Source(Protocol):
    """What the follower needs of the upstream: the real one, or a test's."""

    connected: asyncio.Event

    @property
    def metadata(self) -> dict[str, str]:
        """What every call carries."""
        ...

    async def stub(self) -> DaemonStub:
        """The stub of the present connection."""
        ...


class Listener(Protocol):
    """Who is told that the hub has something new: the connection manager, or a test's list."""

    def news(self) -> None:
        """Something was heard."""
        ...


class _Status(msgspec.Struct):
    """The part of a status event that says whether an execution is over."""

    execution: str = ""
    status: str = ""


_status = msgspec.json.Decoder(_Status)


class PrivateListener(Protocol):
    """Who is told what no client may hear."""

    def batch(self, events: Iterable[Event], *, anew: bool) -> None:
        """A batch came, with these events of `PRIVATE_TOPICS`; `anew`: what was before them is lost."""
        ...

    def lost(self) -> None:
        """The stream ended."""
        ...


class Follower:
    """The follower of one process."""

    def __init__(
        self,
        source: Source,
        hub: Hub,
        listener: Listener,
        metrics: Metrics,
        private: Sequence[PrivateListener] = (),
        *,
        receiver: Receiver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._private = private
        self._receiver = receiver
        self._ephemeral = ("", 0)
        self._hub = hub
        self._clock = clock
        self._listener = listener
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self.reason = "has no position yet"

    def start(self) -> None:
        """Follow in the background."""
        self._task = asyncio.create_task(self._run(), name="follower")

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def history(self, topics: list[str], position: Position) -> AsyncGenerator[EventBatch, None]:
        """What the daemon has of these topics since a position, and on from there until the caller stops.

        Raises:
            Unavailable: the daemon is away, or went away.
        """
        stub = await self._source.stub()
        try:
            async with stub.Watch.open(metadata=self._source.metadata) as stream:
                await stream.send_message(_request(topics, position), end=True)
                async for batch in stream:
                    yield batch
        except (GRPCError, StreamTerminatedError, ProtocolError, OSError):
            raise Unavailable(retry_after_s=1) from None

    async def _run(self) -> None:
        while True:
            await self._source.connected.wait()
            try:
                await self._follow(await self._source.stub())
                self.reason = "the event stream ended"
            except _LOSSES as error:
                self.reason = f"the event stream broke ({type(error).__name__})"
            except Exception as error:  # noqa: BLE001 - said and logged; the task goes on
                # Whatever it is, without this task nobody would hear anything and readiness would not say so.
                self.reason = f"the event stream failed ({type(error).__name__})"
                structlog.get_logger("flx.events").exception("follower.unexpected")
            for private in self._private:
                private.lost()
            structlog.get_logger("flx.events").info("follower.lost", reason=self.reason)
            await asyncio.sleep(_PAUSE_S)

    async def _follow(self, stub: DaemonStub) -> None:
        position = Position(*self._hub.position())
        request = _request(["*"], position) if position.epoch else WatchRequest(topics=["*"])
        if self._receiver is not None:
            request.ephemeral = True
            request.ephemeral_epoch, request.ephemeral_after = self._ephemeral
        async with stub.Watch.open(metadata=self._source.metadata) as stream:
            await stream.send_message(request, end=True)
            async for batch in stream:
                self.take(batch)
                self.reason = ""

    def take(self, batch: EventBatch) -> None:
        """Pass a batch on."""
        hub, now_ms = self._hub, int(self._clock() * 1000)
        epoch = hub.epoch
        anew = epoch != batch.epoch or batch.gap_reason != ""
        if anew:
            reason = batch.gap_reason or "epoch"
            hub.restart(batch.epoch, start_of(batch), reason, now_ms)
        heard = hub.seq
        due = [event for event in batch.events if event.topic in PRIVATE_TOPICS and event.seq > heard]
        for private in self._private:
            private.batch(due, anew=anew)
        self._metrics.events_received += len(batch.events)
        hub.append(told(batch.events), now_ms)
        for event in batch.events:
            over = ended(event)
            if over is not None:
                hub.over(*over)
        hub.advance(batch.journal_seq)
        if self._receiver is not None and batch.ephemeral_epoch:
            self._take_ephemeral(batch, self._receiver)
        self._listener.news()

    def _take_ephemeral(self, batch: EventBatch, receiver: Receiver) -> None:
        if batch.ephemeral_gap_reason:
            receiver.lose(batch.ephemeral_gap_reason)
        events = [EphemeralEvent(tenant_of(event), event.topic, event.ts_us, event.data) for event in batch.ephemeral]
        if events:
            receiver.hear(events)
        self._ephemeral = (batch.ephemeral_epoch, batch.ephemeral_seq)


def ended(event: Event) -> tuple[str, str] | None:
    """Tenant and id of the execution that is over with this event, if one is."""
    if not event.topic.endswith(".status"):
        return None
    try:
        status = _status.decode(event.data)
    except msgspec.DecodeError:
        return None
    return (tenant_of(event), status.execution) if status.status in _OVER else None


def past(batch: EventBatch) -> Past:
    """A batch of history as a hub takes it."""
    size = batch.ByteSize()
    is_last = len(batch.events) < _FULL_EVENTS and size < _FULL_BYTES
    return Past(batch.epoch, told(batch.events), batch.journal_seq, is_last, batch.gap_reason, size)


def told(events: Iterable[Event]) -> list[Told]:
    """Events as the hub takes them, without those that no client may hear."""
    return [
        (tenant_of(event), event.topic, event.seq, event.prev, event.ts_us, event.data)
        for event in events
        if event.topic not in PRIVATE_TOPICS
    ]


def _request(topics: list[str], position: Position) -> WatchRequest:
    return WatchRequest(
        topics=topics,
        epoch=position.epoch,
        after_seq=position.seq,
        logs=[LogPosition(execution_id=execution, after_line=line) for execution, line in position.logs.items()],
    )


def start_of(batch: EventBatch) -> int:
    """The journal's sequence number before the first event of a batch."""
    journal = (event.seq for event in batch.events if execution_of_log(event.topic) is None)
    first = next(journal, None)
    return int(batch.journal_seq if first is None else first - 1)
