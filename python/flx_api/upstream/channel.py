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
- Commands that wait by nature never hold all credits.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Final, NamedTuple

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
_QUEUE_S: Final = 1.0
_MAX_QUEUED: Final = 4096
_MAX_FRAMES: Final = 64
_MAX_BATCH_BYTES: Final = 262_144

# What grpclib raises when a connection cannot be made, breaks, or the daemon ends the stream.
LOSSES: Final = (GRPCError, StreamTerminatedError, ProtocolError, OSError, asyncio.TimeoutError)
_BROKE: Final = "The connection to the daemon broke"
_PROBE = Principal(subject="gateway", roles=["viewer"])

_log = structlog.get_logger("flx.upstream")


class _Pending:
    """A call that waits for its reply."""

    __slots__ = ("deadline", "reply")

    def __init__(self, reply: asyncio.Future[ReplyFrame], deadline: float) -> None:
        self.reply = reply
        self.deadline = deadline


class _Abandoned(NamedTuple):
    """A command whose caller left while the daemon works on it."""

    deadline: float
    waits: bool


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
        self._credits = asyncio.Semaphore(_CREDITS)
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

    async def _attempt(self, frame: CommandFrame, deadline: float) -> ReplyFrame:
        if not self.connected.is_set():
            await self._connection()
        waits = frame.wait_ms > 0 or frame.command == _WAIT
        if waits and self._waits >= _WAITS:
            detail = "Too many callers wait for executions"
            raise Unavailable(detail, retry_after_s=1)
        self._waits += waits
        try:
            await self._credit()
        except BaseException:
            self._waits -= waits
            raise
        return await self._send(frame, deadline, waits=waits)

    def _release(self, *, waits: bool) -> None:
        self._waits -= waits
        self._credits.release()

    def _forget(self, seq: int) -> None:
        """The daemon is done with a command that nobody waits for."""
        abandoned = self._abandoned.pop(seq, None)
        if abandoned is not None:
            self._release(waits=abandoned.waits)

    async def _credit(self) -> None:
        """One of the commands that may be outstanding, or `upstream_unavailable` when none becomes free in time."""
        if not self._credits.locked():
            await self._credits.acquire()
            return
        detail = "Too many commands are waiting for the daemon"
        if self._queued >= _MAX_QUEUED:
            raise Unavailable(detail, retry_after_s=1)
        self._queued += 1
        try:
            async with asyncio.timeout(_QUEUE_S):
                await self._credits.acquire()
        except TimeoutError:
            raise Unavailable(detail, retry_after_s=1) from None
        finally:
            self._queued -= 1

    async def _send(self, frame: CommandFrame, deadline: float, *, waits: bool | None = None) -> ReplyFrame:
        """Send a frame and wait for its reply. `waits` says which kind of credit it holds; a probe holds none."""
        loop = asyncio.get_running_loop()
        self._seq += 1
        frame.seq = seq = self._seq
        reply: asyncio.Future[ReplyFrame] = loop.create_future()
        self._pending[seq] = _Pending(reply, deadline + _DEADLINE_GRACE_S)
        self._metrics.upstream_in_flight = len(self._pending)
        if self._outbox is not None:
            self._outbox.put(frame)
        else:
            reply.set_exception(StreamLost(_BROKE, retry_after_s=1))
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_EVERY_S, self._sweep)
        try:
            return await reply
        finally:
            ended = self._pending.pop(seq)
            if waits is not None:
                if reply.cancelled():
                    self._abandoned[seq] = _Abandoned(ended.deadline, waits)
                else:
                    self._release(waits=waits)
            self._metrics.upstream_in_flight = len(self._pending)

    def _sweep(self) -> None:
        """End the calls whose time is over; runs only while something is pending."""
        self._sweeper = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for pending in self._pending.values():
            if pending.deadline <= now and not pending.reply.done():
                pending.reply.set_exception(DeadlineExceeded())
        # The daemon gives up at the same deadline.
        for seq in [seq for seq, abandoned in self._abandoned.items() if abandoned.deadline <= now]:
            self._forget(seq)
        if self._pending or self._abandoned:
            self._sweeper = loop.call_later(_SWEEP_EVERY_S, self._sweep)

    async def _connection(self) -> None:
        if self.connected.is_set():
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
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
                self.reason = f"the daemon cannot be reached ({type(error).__name__})"
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
        for pending in self._pending.values():
            if not pending.reply.done():
                pending.reply.set_exception(StreamLost(detail, code=code, retry_after_s=1))


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
