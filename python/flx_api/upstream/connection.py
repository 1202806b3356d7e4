"""One connection to a daemon, and the streams on it that carry commands, from its opening to its end.

Strategy: a `Carrier` is one Channel stream. A connection has one that takes new commands; an earlier one may still wait
for its replies. The connection asks it for an echo again and again: the first answer makes it usable, and one that does
not come ends it. What is outstanding is not kept here but in the table of the upstream (`flx_api.upstream.channel`).

Rules:
- A stream is given up for a new one after `MAX_FRAMES` commands or `MAX_AGE_S`: the new one takes over when it has
  answered, the old one says that nothing more comes, and ends when its replies are in. Nothing is lost by it.
- A daemon that stops says so (GOAWAY), and its connection parts in the same way: at once it takes no new commands, and
  it ends with what is under way. So does one whose stream numbers run out.
- Other streams of a parting connection (events, logs) get `FAREWELL_S` to come to their end.
- The end waits for nothing of the daemon: its connection is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final, Protocol

from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from flx_api._core import PlainBatch, joined
from flx_api.errors import Unavailable
from flx_api.proto import http2
from flx_api.proto.buffer import Buffer
from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
from flx_api.proto.flx.v1.daemon_pb2 import CommandBatch
from flx_api.proto.outbox import Outbox
from flx_api.proto.tls import why_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from grpclib.client import Channel, Stream
    from grpclib.protocol import H2Protocol

    from flx_api.proto.flx.v1.daemon_pb2 import ReplyBatch
    from flx_api.upstream.pending import Frame, Sent
    from flx_api.upstream.shedding import Load, Place

CONNECT_S: Final = 5.0
PROBE_EVERY_S: Final = 1.5
PROBE_TIMEOUT_S: Final = 2.0
FAREWELL_S: Final = 10.0
MAX_FRAMES: Final = 10_000_000
MAX_AGE_S: Final = 3600.0
# HTTP/2 has 2**31 numbers, of which ours are the odd ones.
LAST_STREAM_ID: Final = 2**30
_LOOK_EVERY_S: Final = 0.1
_MAX_FRAMES_IN_BATCH: Final = 128
_MAX_BATCH_BYTES: Final = 262_144

# What grpclib raises when a connection cannot be made, breaks, or the daemon ends the stream.
LOSSES: Final = (GRPCError, StreamTerminatedError, ProtocolError, OSError, asyncio.TimeoutError)


class CertificateRefused(ConnectionError):
    """The daemon ended a connection with TLS before it said anything."""


class Carrier:
    """One Channel stream. `outstanding`: commands that the daemon is not done with; `is_ready`: it takes others."""

    __slots__ = ("connection", "frames", "is_ready", "load", "opened_s", "outbox", "outstanding", "task")

    task: asyncio.Task[None]
    load: Load

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.outbox: Outbox[Sent] | None = None
        self.outstanding = 0
        self.is_ready = False
        self.frames = 0
        self.opened_s = 0.0

    def sent(self, count: int) -> None:
        """So many frames have left."""
        self.frames += count


class Table(Protocol):
    """Where it is known what is outstanding: the upstream."""

    def joined(self, carrier: Carrier) -> None:
        """It takes commands from now on."""
        ...

    def left(self, carrier: Carrier) -> None:
        """It takes no more; its replies still come. May be told twice."""
        ...

    def received(self, carrier: Carrier, message: bytes) -> None:
        """This came: a `ReplyBatch`, as its bytes."""
        ...

    def lost(self, carrier: Carrier) -> None:
        """It has ended; no more replies come."""
        ...

    async def ask(self, carrier: Carrier) -> None:
        """Wait for an echo. Raises TimeoutError, or Unavailable when the stream ends."""
        ...


class Connection:
    """One connection.

    Args:
        place: names where it leads; connections of one place are lost together when the daemon there is.
        channel: not connected yet.
        metadata: what every call carries.
        table: told what happens.
        ready: called when it takes commands for the first time.
        renewed: called when another stream has taken over.
    """

    def __init__(
        self,
        place: Place,
        channel: Channel,
        metadata: dict[str, str],
        table: Table,
        *,
        ready: Callable[[], None],
        renewed: Callable[[], None],
    ) -> None:
        self.place = place
        self._channel = channel
        self._metadata = metadata
        self._table = table
        self._ready = ready
        self._renewed = renewed
        self._carrier: Carrier | None = None
        self._protocol: H2Protocol | None = None
        # The task of each stream that has not ended.
        self._carrying: set[asyncio.Task[None]] = set()
        self.stub = DaemonStub(channel)
        # When the daemon last said anything, by the loop's clock: probes see to it that it does.
        self.heard_s = 0.0
        self.was_ready = False
        self.parting = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether it takes commands."""
        return self._carrier is not None

    def part(self) -> None:
        """Take no new commands, and end when those under way have."""
        self.parting.set()
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            self._dismiss(carrier)

    async def run(self) -> None:
        """Live, until it is over: parted, or lost. Raises one of LOSSES when it is lost.

        Raises:
            StreamTerminatedError: the daemon ended the stream.
        """
        try:
            await self._connect()
            await self._renew()
            while not self.parting.is_set():
                await self._pause()
                if self._carrier is not None:
                    await self._ask(self._carrier)
                    await self._look_after(self._carrier)
            await self._finish()
        except StreamTerminatedError as error:
            is_over_tls = self._channel._ssl is not None  # noqa: SLF001 - grpclib has no public place for this
            if is_over_tls and not getattr(self._protocol, "was_heard", True):
                raise CertificateRefused from error
            raise
        finally:
            await self._cut()

    async def _connect(self) -> None:
        async with asyncio.timeout(CONNECT_S):
            self._protocol = protocol = await self._channel.__connect__()
        wire = protocol.connection._connection  # noqa: SLF001 - grpclib knows no farewell
        if isinstance(wire, http2.Connection):
            wire.on_parting = lambda _last: self.part()

    async def _renew(self) -> None:
        """Open a stream; when it has answered, it takes over."""
        carrier = Carrier(self)
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = carrier.task = asyncio.create_task(self._carry(carrier, opened), name="upstream-carrier")
        self._carrying.add(task)
        task.add_done_callback(self._carried)
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await asyncio.wait((opened, task), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        await self._ask(carrier)
        if self.parting.is_set():
            self._dismiss(carrier)
            return
        before, self._carrier = self._carrier, carrier
        self._table.joined(carrier)
        if before is None:
            self.was_ready = True
            self._ready()
        else:
            self._renewed()
            self._dismiss(before)

    def _dismiss(self, carrier: Carrier) -> None:
        """No new commands on this stream; it ends with its replies."""
        self._table.left(carrier)
        if carrier.outbox is not None:
            carrier.outbox.end()

    async def _pause(self) -> None:
        """Until the next probe, or until something happens. Raises what ended the present stream."""
        if self._carrier is None:
            return
        task = self._carrier.task
        parting = asyncio.ensure_future(self.parting.wait())
        try:
            await asyncio.wait((task, parting), timeout=PROBE_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            parting.cancel()
        if task.done() and not self.parting.is_set():
            task.result()

    async def _ask(self, carrier: Carrier) -> None:
        """Ask for a sign of life. Raises what ended the stream, or TimeoutError."""
        task = carrier.task
        asking = asyncio.ensure_future(self._table.ask(carrier))
        try:
            await asyncio.wait((asking, task), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                asking.result()
        except Unavailable:
            # The stream is just ending, and its task knows why.
            await asyncio.wait((task,))
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        if task.done() and not self.parting.is_set():
            task.result()

    async def _look_after(self, carrier: Carrier) -> None:
        """Give the stream or the connection up before its time is over."""
        age_s = asyncio.get_running_loop().time() - carrier.opened_s
        wire = self._protocol.connection._connection if self._protocol is not None else None  # noqa: SLF001 - as above
        if wire is not None and wire.get_next_available_stream_id() >= LAST_STREAM_ID:
            self.part()
        elif carrier.frames >= MAX_FRAMES or age_s >= MAX_AGE_S:
            await self._renew()

    async def _carry(self, carrier: Carrier, opened: asyncio.Future[None]) -> None:
        """One stream from beginning to end. Raises one of LOSSES, unless it was dismissed and has its replies."""
        try:
            async with self.stub.Channel.open(metadata=self._metadata) as stream:
                await stream.send_request()
                carrier.opened_s = asyncio.get_running_loop().time()
                carrier.outbox = outbox = Outbox(stream, _batches, carrier.sent, _batch)
                if not opened.done():
                    opened.set_result(None)
                writer = asyncio.create_task(outbox.write(), name="upstream-writer")
                reader = asyncio.create_task(self._read(carrier, stream), name="upstream-reader")
                try:
                    await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
                    if writer.done():
                        # It was dismissed and has said so, or it broke; the replies are all that is left.
                        writer.result()
                        await reader
                    else:
                        reader.result()
                        msg = "the daemon ended the stream"
                        raise StreamTerminatedError(msg)
                finally:
                    writer.cancel()
                    reader.cancel()
                    await asyncio.gather(writer, reader, return_exceptions=True)
        finally:
            self._table.lost(carrier)

    def _carried(self, task: asyncio.Task[None]) -> None:
        self._carrying.discard(task)
        # Looked at here, so that the end of a stream that was dismissed is not reported as forgotten.
        if not task.cancelled():
            task.exception()

    async def _read(self, carrier: Carrier, stream: Stream[CommandBatch, ReplyBatch]) -> None:
        loop = asyncio.get_running_loop()
        received = self._table.received

        def take(message: bytes) -> None:
            self.heard_s = loop.time()
            received(carrier, message)

        await stream.recv_initial_metadata()
        buffer: Any = stream._stream.buffer  # noqa: SLF001 - grpclib offers its messages only by a coroutine
        if isinstance(buffer, Buffer):
            with stream._wrapper:  # noqa: SLF001 - it tells of a connection that ends
                await buffer.messages(take)
        while (batch := await stream.recv_message()) is not None:
            take(batch.SerializeToString())

    async def _finish(self) -> None:
        """Wait for what is under way."""
        if self._carrying:
            await asyncio.wait(self._carrying)
        loop = asyncio.get_running_loop()
        until = loop.time() + FAREWELL_S
        while self._protocol is not None and self._protocol.processor.streams and loop.time() < until:  # noqa: ASYNC110 - grpclib's table is no event
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _cut(self) -> None:
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            self._table.left(carrier)
        tasks = list(self._carrying)
        if self._protocol is not None:
            # Not closed but cut: what a daemon that hangs has not read would be waited for.
            transport: Any = getattr(self._protocol.connection, "_transport", None)
            if transport is not None:
                transport.abort()
        with contextlib.suppress(Exception):
            self._channel.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def why_lost(error: BaseException) -> str:
    """What one of LOSSES means, in words that name no place: everybody may read them."""
    match error:
        case GRPCError():
            return f"refuses the connection: {error.status.name}"
        case CertificateRefused():
            why = "it does not accept our certificate, or wants one"
        case ssl.SSLError():
            why = why_refused(error)
        case socket.gaierror():
            why = "its host name cannot be resolved"
        case ConnectionRefusedError():
            why = "nothing listens there"
        case TimeoutError():
            why = "it does not answer in time"
        case OSError(errno=int(number)):
            why = os.strerror(number)
        case _:
            why = type(error).__name__
    return f"cannot be reached: {why}"


def _batch(frames: list[Sent]) -> bytes | None:
    """The frames as one message; None when that would be a large one."""
    message = joined(frames, _MAX_FRAMES_IN_BATCH)
    if message is None or len(message) <= _MAX_BATCH_BYTES:
        return message
    return message if len(frames) == 1 and type(frames[0]) is not PlainBatch else None


def _batches(frames: list[Sent]) -> list[tuple[CommandBatch, int]]:
    """The frames in messages of a bearable size."""
    batches: list[list[Frame]] = [[]]
    size = 0
    for frame in _each(frames):
        if batches[-1] and (len(batches[-1]) >= _MAX_FRAMES_IN_BATCH or size + len(frame.args) > _MAX_BATCH_BYTES):
            batches.append([])
            size = 0
        batches[-1].append(frame)
        size += len(frame.args)
    return [(CommandBatch.FromString(joined(batch)), len(batch)) for batch in batches]


def _each(frames: Iterable[Sent]) -> Iterator[Frame]:
    """The frames, each by itself: those of a batch too."""
    for frame in frames:
        if isinstance(frame, PlainBatch):
            for _, command in frame.commands():
                yield command
        else:
            yield frame
