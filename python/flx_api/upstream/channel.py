"""The upstream: one connection to the daemon and one long-lived stream that carries all commands of this worker.

Strategy: a call puts a frame into the outbox (`flx_api.proto.outbox`), which leaves with the loop's tick as one message
with all others, and waits for a future. The reader task matches replies by `seq`. One task (`_run`) owns the
connection: connect, probe, serve, and after a loss again with growing, jittered pauses.

Rules:
- Connected means that the daemon answered a probe. Probes go on: a daemon that hangs is a daemon that is away.
- A loss fails everything that is pending with `upstream_unavailable`. Whether the daemon had seen it is unknown, so
  only commands that change nothing are sent again, once.
- While there is no connection a call waits at most `PATIENCE_S` for one.
- A caller that goes away takes its pending entry with it; a late reply is dropped. Its credit comes back with that
  reply, its deadline or the connection's end: until then the command is outstanding at the daemon.
- When the service stops, whoever waits is told that, and not that the daemon is away.
- Commands that wait by nature never hold all credits, and neither do those of batches (`flx_api.upstream.group`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

import structlog
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from flx_api.errors import DeadlineExceeded, Unavailable
from flx_api.proto import http2
from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
from flx_api.proto.flx.v1.daemon_pb2 import CommandBatch, CommandFrame, Principal, ReplyBatch, ReplyFrame
from flx_api.proto.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpclib.client import Channel, Stream

    from flx_api.errors import FlxError
    from flx_api.observability.metrics import Metrics
    from flx_api.upstream.endpoints import Endpoint

PATIENCE_S: Final = 0.5
PROBE_EVERY_S: Final = 1.5
PROBE_TIMEOUT_S: Final = 2.0
# Short at first: at a start both sides come up together, and the daemon of this host is a few milliseconds away.
_BACKOFF_S: Final = (0.01, 2.0)
_BACKOFF_FACTOR: Final = 1.5
_SWEEP_EVERY_S: Final = 0.1
# The daemon knows the deadline too and its answer is better than ours, so ours comes a little later.
_DEADLINE_GRACE_S: Final = 0.25
# The daemon reads no further with 256 commands outstanding, probes included: beyond this calls wait here, briefly.
_CREDITS: Final = 240
# Of these, so many for commands that wait for an execution: they last for minutes, and others must get through.
_WAITS: Final = 160
_WAIT: Final = "execution.wait"
# And so many for all batches together: whoever calls a single command finds room beside them.
GROUPED: Final = 128
_QUEUE_S: Final = 1.0
_MAX_QUEUED: Final = 4096
_MAX_FRAMES: Final = 128
_MAX_BATCH_BYTES: Final = 262_144

# What grpclib raises when a connection cannot be made, breaks, or the daemon ends the stream.
LOSSES: Final = (GRPCError, StreamTerminatedError, ProtocolError, OSError, asyncio.TimeoutError)
_BROKE: Final = "The connection to the daemon broke"
_PROBE = Principal(subject="gateway", roles=["viewer"])

_log = structlog.get_logger("flx.upstream")


# What a credit was given for; a probe has none.
Kind = Literal["call", "wait", "grouped"]


class Reply(Protocol):
    """Where a reply goes: a future, or what is told as a future is."""

    def done(self) -> bool:
        """Whether there is nothing to come any more."""
        ...

    def set_result(self, reply: ReplyFrame, /) -> None:
        """The daemon answered."""
        ...

    def set_exception(self, error: FlxError, /) -> None:
        """There will be no answer."""
        ...


class Credits(asyncio.Semaphore):
    """How many commands may be outstanding; whoever has to wait for one gets it in turn."""

    def take(self) -> bool:
        """One without waiting, if nobody waits. The usual case, and several times cheaper than `acquire`."""
        if self._value <= 0 or self._waiters:
            return False
        self._value -= 1
        return True


class _Pending:
    """A command that is waited for."""

    __slots__ = ("deadline", "kind", "reply")

    def __init__(self, reply: Reply, deadline: float, kind: Kind | None) -> None:
        self.reply = reply
        self.deadline = deadline
        self.kind = kind


class _Abandoned(NamedTuple):
    """A command whose caller left while the daemon works on it."""

    deadline: float
    kind: Kind


class StreamLost(Unavailable):
    """The stream broke after the frame may have left; whether the command was carried out is unknown."""


class Upstream:
    """The connection of one worker to one daemon.

    Args:
        endpoint: where the daemon is.
        metrics: where what is in flight is counted.
        jitter: a number in [0, 1) at each call; tests pass their own.
    """

    def __init__(self, endpoint: Endpoint, metrics: Metrics, jitter: Callable[[], float] = random.random) -> None:
        self._endpoint = endpoint
        self._metrics = metrics
        self._jitter = jitter
        self._pending: dict[int, _Pending] = {}
        self._abandoned: dict[int, _Abandoned] = {}
        self._outbox: Outbox[CommandFrame] | None = None
        self._credits = Credits(_CREDITS)
        self._grouped = Credits(GROUPED)
        self._queued = 0
        self._waits = 0
        self._seq = 0
        self._stub: DaemonStub | None = None
        self._task: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._closing = False
        self.connected = asyncio.Event()
        # When the daemon last said anything, by the loop's clock: probes see to it that it does.
        self.heard_s = 0.0
        self.reason = "not connected yet"

    def start(self) -> None:
        """Connect in the background and stay connected."""
        http2.install()
        self._task = asyncio.create_task(self._run(), name="upstream")

    async def close(self) -> None:
        """Close the connection; what is pending fails."""
        # Before the cancel: the owner of the connection fails what is pending on its way out.
        self._closing = True
        self.reason = "closed"
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._fail_pending()

    @property
    def in_flight(self) -> int:
        """How many calls wait for a reply."""
        return len(self._pending)

    @property
    def metadata(self) -> dict[str, str]:
        """What every call carries."""
        return self._endpoint.metadata

    async def stub(self) -> DaemonStub:
        """The stub for streams of their own (Watch, Logs) on the present connection.

        Raises:
            Unavailable: there is no connection and none came within `PATIENCE_S`.
        """
        await self._connection()
        if self._stub is None:
            raise Unavailable(retry_after_s=1)
        return self._stub

    async def call(self, frame: CommandFrame, deadline_s: float, *, read: bool) -> ReplyFrame:
        """Send a command and wait for its reply, whatever it is.

        Args:
            frame: the command; `seq` is set here.
            deadline_s: seconds from now after which nobody waits any more.
            read: the command changes nothing, so that it may be sent twice.

        Raises:
            Unavailable: no connection, too much in flight, or (`StreamLost`) the connection broke.
            DeadlineExceeded: no reply in time; the command may still be carried out.
        """
        deadline = asyncio.get_running_loop().time() + deadline_s
        try:
            return await self._attempt(frame, deadline)
        except StreamLost:
            if not read or self._closing:
                raise
            return await self._attempt(frame, deadline)

    def begin_now(self, frame: CommandFrame, deadline_s: float, reply: Reply) -> bool:
        """Do what `begin` does, if nothing has to be waited for; else nothing, and say so."""
        if not self.connected.is_set() or _is_wait(frame) or not self._grouped.take():
            return False
        if not self._credits.take():
            self._grouped.release()
            return False
        self._put(frame, asyncio.get_running_loop().time() + deadline_s, reply, "grouped")
        return True

    async def begin(self, frame: CommandFrame, deadline_s: float, reply: Reply, *, patient: bool) -> None:
        """Send a command of a batch; its reply goes to `reply`, and then `end` or `abandon` has to be called.

        Args:
            frame: the command; `seq` is set here.
            deadline_s: seconds from now after which nobody waits any more.
            reply: told once, maybe before this returns.
            patient: whether to wait for a connection and for room.

        Raises:
            Unavailable: nothing was sent: no connection, or too much in flight.
        """
        deadline = asyncio.get_running_loop().time() + deadline_s
        self._put(frame, deadline, reply, await self._room(frame, grouped=True, patient=patient))

    def end(self, seq: int) -> None:
        """A reply has come, or never will."""
        kind = self._pending.pop(seq).kind
        if kind is not None:
            self._release(kind)
        self._metrics.upstream_in_flight = len(self._pending)

    def abandon(self, seq: int) -> None:
        """Nobody waits for a reply any more, but the daemon works on the command."""
        ended = self._pending.pop(seq)
        if ended.kind is not None:
            self._abandoned[seq] = _Abandoned(ended.deadline, ended.kind)
        self._metrics.upstream_in_flight = len(self._pending)

    @property
    def closing(self) -> bool:
        """Whether the service stops."""
        return self._closing

    async def _attempt(self, frame: CommandFrame, deadline: float) -> ReplyFrame:
        return await self._send(frame, deadline, await self._room(frame))

    async def _room(self, frame: CommandFrame, *, grouped: bool = False, patient: bool = True) -> Kind:
        """A connection, and a credit of the kind that is told."""
        if not self.connected.is_set():
            await self._connection(PATIENCE_S if patient else 0)
        if _is_wait(frame):
            if self._waits >= _WAITS:
                detail = "Too many callers wait for executions"
                raise Unavailable(detail, retry_after_s=1)
            self._waits += 1
            kind: Kind = "wait"
        elif grouped:
            await self._acquire(self._grouped, patient=patient)
            kind = "grouped"
        else:
            kind = "call"
        try:
            # First come, first served. A batch stands here once, so that single calls never wait for all of it.
            await self._acquire(self._credits, patient=patient)
        except BaseException:
            self._release_share(kind)
            raise
        return kind

    def _release(self, kind: Kind) -> None:
        self._release_share(kind)
        self._credits.release()

    def _release_share(self, kind: Kind) -> None:
        if kind == "wait":
            self._waits -= 1
        elif kind == "grouped":
            self._grouped.release()

    def _forget(self, seq: int) -> None:
        """The daemon is done with a command that nobody waits for."""
        abandoned = self._abandoned.pop(seq, None)
        if abandoned is not None:
            self._release(abandoned.kind)

    async def _acquire(self, credits_: Credits, *, patient: bool) -> None:
        """One of these credits, or `upstream_unavailable` when none becomes free in time."""
        if credits_.take():
            return
        detail = "Too many commands are waiting for the daemon"
        if not patient or self._queued >= _MAX_QUEUED:
            raise Unavailable(detail, retry_after_s=1)
        self._queued += 1
        try:
            async with asyncio.timeout(_QUEUE_S):
                await credits_.acquire()
        except TimeoutError:
            raise Unavailable(detail, retry_after_s=1) from None
        finally:
            self._queued -= 1

    def _put(self, frame: CommandFrame, deadline: float, reply: Reply, kind: Kind | None) -> int:
        """Let a frame leave with this tick; its number."""
        self._seq += 1
        frame.seq = seq = self._seq
        self._pending[seq] = _Pending(reply, deadline + _DEADLINE_GRACE_S, kind)
        self._metrics.upstream_in_flight = len(self._pending)
        if self._outbox is not None:
            self._outbox.put(frame)
        else:
            reply.set_exception(StreamLost(_BROKE, retry_after_s=1))
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_EVERY_S, self._sweep)
        return seq

    async def _send(self, frame: CommandFrame, deadline: float, kind: Kind | None = None) -> ReplyFrame:
        """Send a frame and wait for its reply. A probe holds no credit."""
        reply: asyncio.Future[ReplyFrame] = asyncio.get_running_loop().create_future()
        seq = self._put(frame, deadline, reply, kind)
        try:
            return await reply
        finally:
            if reply.cancelled():
                self.abandon(seq)
            else:
                self.end(seq)

    def _sweep(self) -> None:
        """End the calls whose time is over; runs only while something is pending."""
        self._sweeper = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        # A copy: what belongs to a batch leaves the table as soon as it is told.
        for pending in list(self._pending.values()):
            if pending.deadline <= now and not pending.reply.done():
                pending.reply.set_exception(DeadlineExceeded())
        # The daemon gives up at the same deadline.
        for seq in [seq for seq, abandoned in self._abandoned.items() if abandoned.deadline <= now]:
            self._forget(seq)
        if self._pending or self._abandoned:
            self._sweeper = loop.call_later(_SWEEP_EVERY_S, self._sweep)

    async def _connection(self, patience_s: float = PATIENCE_S) -> None:
        if self.connected.is_set():
            return
        try:
            async with asyncio.timeout(patience_s):
                await self.connected.wait()
        except TimeoutError:
            code = "shutting_down" if self._closing else "upstream_unavailable"
            raise Unavailable(code=code, retry_after_s=1) from None

    async def _run(self) -> None:
        shortest, longest = _BACKOFF_S
        pause = shortest
        while True:
            channel = self._endpoint.open()
            was_connected = False
            try:
                await self._serve(channel)
                self.reason = "the daemon closed the stream"
            except LOSSES as error:
                self.reason = f"the daemon {why_lost(error)}"
            except Exception as error:  # noqa: BLE001 - said and logged; the task goes on
                # Whatever it is, without this task the gateway would stay without a daemon and call itself ready.
                self.reason = f"the connection to the daemon failed ({type(error).__name__})"
                _log.exception("upstream.unexpected")
            finally:
                was_connected = self.connected.is_set()
                self.connected.clear()
                self._stub = None
                channel.close()
                self._outbox = None
                for seq in list(self._abandoned):
                    self._forget(seq)
                self._fail_pending()
            if was_connected:
                _log.warning("upstream.lost", reason=self.reason)
                pause = shortest
            await asyncio.sleep(pause * (0.5 + self._jitter() / 2))
            pause = min(pause * _BACKOFF_FACTOR, longest)

    async def _serve(self, channel: Channel) -> None:
        """Serve one connection until it ends. Raises one of LOSSES when it does not end by itself."""
        stub = DaemonStub(channel)
        async with stub.Channel.open(metadata=self._endpoint.metadata) as stream:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await stream.send_request()
            self._outbox = outbox = Outbox(stream, _batches)
            tasks = [
                asyncio.create_task(outbox.write(), name="upstream-writer"),
                asyncio.create_task(self._read(stream), name="upstream-reader"),
                asyncio.create_task(self._probe(stub), name="upstream-probe"),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                with contextlib.suppress(*LOSSES):
                    await stream.cancel()
            for task in done:
                task.result()

    async def _read(self, stream: Stream[CommandBatch, ReplyBatch]) -> None:
        loop = asyncio.get_running_loop()
        while (batch := await stream.recv_message()) is not None:
            self.heard_s = loop.time()
            for reply in batch.frames:
                pending = self._pending.get(reply.seq)
                if pending is None:
                    self._forget(reply.seq)
                elif not pending.reply.done():
                    pending.reply.set_result(reply)
                else:
                    # Its caller is just leaving: what it abandons is over.
                    pending.deadline = 0.0

    async def _probe(self, stub: DaemonStub) -> None:
        """Ask for an echo, again and again; the first answer makes the connection one."""
        loop = asyncio.get_running_loop()
        while True:
            frame = CommandFrame(command="system.echo", args=b"{}", principal=_PROBE)
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._send(frame, loop.time() + PROBE_TIMEOUT_S)
            if not self.connected.is_set():
                self._stub = stub
                self.reason = ""
                self.connected.set()
                _log.info("upstream.connected")
            await asyncio.sleep(PROBE_EVERY_S)

    def _fail_pending(self) -> None:
        detail, code = _BROKE, "upstream_unavailable"
        if self._closing:
            detail, code = "The service is shutting down", "shutting_down"
        for pending in list(self._pending.values()):
            if not pending.reply.done():
                pending.reply.set_exception(StreamLost(detail, code=code, retry_after_s=1))


def why_lost(error: Exception) -> str:
    """What one of LOSSES means, in words that name no place: everybody may read them."""
    match error:
        case GRPCError():
            return f"refuses the connection: {error.status.name}"
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


def _is_wait(frame: CommandFrame) -> bool:
    """Whether a command waits for an execution by nature."""
    return frame.wait_ms > 0 or frame.command == _WAIT


def _batches(frames: list[CommandFrame]) -> list[tuple[CommandBatch, int]]:
    """The frames in messages of a bearable size; one message in the usual case."""
    if len(frames) <= _MAX_FRAMES and sum(len(frame.args) for frame in frames) <= _MAX_BATCH_BYTES:
        return [(CommandBatch(frames=frames), len(frames))]
    batches: list[list[CommandFrame]] = [[]]
    size = 0
    for frame in frames:
        if batches[-1] and (len(batches[-1]) >= _MAX_FRAMES or size + len(frame.args) > _MAX_BATCH_BYTES):
            batches.append([])
            size = 0
        batches[-1].append(frame)
        size += len(frame.args)
    return [(CommandBatch(frames=batch), len(batch)) for batch in batches]
