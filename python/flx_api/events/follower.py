"""One Watch stream per process: everything the daemon tells, into the memory and on to whoever listens.

Strategy: a task waits for a connection, asks for everything after the position it has, and takes batches until the
stream ends; then again. The first batch of a stream says where it begins, so the follower has a position as soon as
the daemon has answered, even when nothing happens.

Rules:
- The position moves only with what was taken; a reconnect therefore loses nothing and repeats nothing (the memory
  drops what it has heard before).
- When the daemon says that something is gone (`gap_reason`), or comes back with another epoch, listeners are told so,
  and the memory begins anew.
- What is between daemon and gateways (`PRIVATE_TOPICS`) goes to its own listener, before anything else of its batch,
  and never into the memory: no client can come to hear it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from flx_api.errors import Unavailable
from flx_api.events.position import execution_of_log
from flx_api.models.event import PRIVATE_TOPICS
from flx_api.proto.flx.v1.daemon_pb2 import EventBatch, LogPosition, WatchRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from flx_api.events.memory import Heard, Memory
    from flx_api.events.position import Position
    from flx_api.observability.metrics import Metrics
    from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
    from flx_api.proto.flx.v1.daemon_pb2 import Event

_LOSSES: Final = (GRPCError, StreamTerminatedError, ProtocolError, OSError, Unavailable)
_PAUSE_S: Final = 0.1


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
    """Who is told: the connection manager, or a test's list."""

    def event(self, heard: Heard) -> None:
        """Something happened."""
        ...

    def gap(self, reason: str) -> None:
        """Events were lost for everyone who follows."""
        ...


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
        memory: Memory,
        listener: Listener,
        metrics: Metrics,
        private: PrivateListener | None = None,
    ) -> None:
        self._source = source
        self._private = private
        self._memory = memory
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
            if self._private is not None:
                self._private.lost()
            structlog.get_logger("flx.events").info("follower.lost", reason=self.reason)
            await asyncio.sleep(_PAUSE_S)

    async def _follow(self, stub: DaemonStub) -> None:
        request = _request(["*"], self._memory.position) if self._memory.epoch else WatchRequest(topics=["*"])
        async with stub.Watch.open(metadata=self._source.metadata) as stream:
            await stream.send_message(request, end=True)
            async for batch in stream:
                self.take(batch)
                self.reason = ""

    def take(self, batch: EventBatch) -> None:
        """Remember a batch and pass it on."""
        memory = self._memory
        anew = memory.epoch != batch.epoch or batch.gap_reason != ""
        if anew:
            reason = batch.gap_reason or "epoch"
            known = memory.epoch != ""
            memory.restart(batch.epoch, _start_of(batch))
            if known:
                self._listener.gap(reason)
        if self._private is not None:
            due = (event for event in batch.events if event.topic in PRIVATE_TOPICS and event.seq > memory.seq)
            self._private.batch(due, anew=anew)
        for event in batch.events:
            self._metrics.events_received += 1
            if event.topic in PRIVATE_TOPICS:
                memory.advance(event.seq)
                continue
            heard = memory.add(event)
            if heard is not None:
                self._listener.event(heard)
        memory.advance(batch.journal_seq)


def _request(topics: list[str], position: Position) -> WatchRequest:
    return WatchRequest(
        topics=topics,
        epoch=position.epoch,
        after_seq=position.seq,
        logs=[LogPosition(execution_id=execution, after_line=line) for execution, line in position.logs.items()],
    )


def _start_of(batch: EventBatch) -> int:
    """The journal's sequence number before the first event of a batch."""
    journal = (event.seq for event in batch.events if execution_of_log(event.topic) is None)
    first = next(journal, None)
    return int(batch.journal_seq if first is None else first - 1)
