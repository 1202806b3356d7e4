"""The upstream: all commands of this worker on their way to the daemons and back.

Strategy: a call puts a frame into the outbox (`flx_api.proto.outbox`) of a stream, which leaves with the loop's tick as
one message with all others, and waits for a future. Replies are matched by `seq`, in one table for all streams
(`flx_api.upstream.outstanding`). Which stream, and whether there is one that may take it: `flx_api.upstream.streams`.
Streams come and go with the connections of `flx_api.upstream.pool`; here it is known who may send what, and when.

Rules:
- A stream that is lost fails everything that is pending on it with `upstream_unavailable`. Whether the daemon had seen
  it is unknown, so only what does no harm twice is sent again, on another stream and within the caller's deadline: a
  read once; an idempotent command, or one with an idempotency key, `SENDS` times in all. It goes to another daemon if
  there is one: other streams of the same place are likely to be lost as well, and only have not said so yet.
- What a stopping daemon refuses for that reason is sent elsewhere, if there is another.
- Nothing is sent again beyond the budget for that (`flx_api.upstream.retry_budget`).
- Where load is shed, a single command waits `BURST_S` for room, since a burst is no overload; `MOMENT_S` if that is
  within `CALM_S` of a refusal (Maurer, Fail at Scale, ACM Queue 2015), and then only while there is hope: who stands
  behind more than the daemons end in that time is told at once. The commands of a batch wait `QUEUE_S`.
- While there is no connection a call waits at most `PATIENCE_S` for one; a command whose outcome is unknown, for a
  daemon that is just started again, `RECONNECT_S`.
- When the service stops, whoever waits is told that, and not that the daemon is away.
- Commands that wait by nature never hold all credits (`flx_api.upstream.waits`), and neither do those of batches
  (`flx_api.upstream.group`).
- Streams of their own (`stub`) all go to one connection for as long as it is there, whose last word is `heard_s`.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from flx_api.commands import VITAL
from flx_api.errors import FlxError, Unavailable
from flx_api.observability.metrics import UpstreamState
from flx_api.proto import http2
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, Principal, ReplyBatch
from flx_api.upstream.connection import PROBE_TIMEOUT_S
from flx_api.upstream.credits import Credits
from flx_api.upstream.endpoints import Endpoint
from flx_api.upstream.express import Express
from flx_api.upstream.outstanding import DEADLINE_GRACE_S, Outstanding
from flx_api.upstream.pace import Pace
from flx_api.upstream.pending import SORTS, Pending, StreamLost, is_wait, sends_of
from flx_api.upstream.pool import Pool, away, connected_of
from flx_api.upstream.queue import Queue
from flx_api.upstream.retry_budget import RetryBudget
from flx_api.upstream.streams import Overloaded, Streams
from flx_api.upstream.waits import Place, Waits

if TYPE_CHECKING:
    from collections.abc import Callable

    from flx_api.observability.metrics import Metrics
    from flx_api.proto.flx.v1.daemon_grpc import DaemonStub
    from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
    from flx_api.upstream.connection import Carrier, Connection
    from flx_api.upstream.endpoints import Daemons
    from flx_api.upstream.pending import Frame, Kind, Reply

PATIENCE_S: Final = 0.5
RECONNECT_S: Final = 5.0
# How long to wait before asking again for the outcome of a command that the daemon is still about.
ASK_AGAIN_S: Final = (0.05, 1.0)
IN_PROGRESS: Final = "idempotency_in_progress"
STOPPING: Final = "shutting_down"
# For the other streams of a place to be lost as well.
_LET_DIE_S: Final = 0.02
# The daemon reads no further with 256 commands outstanding on a stream, probes included: beyond this calls wait here,
# briefly. Both are for each stream.
_CREDITS: Final = 240
# Of these, so many for all batches together: whoever calls a single command finds room beside them.
GROUPED: Final = 128
QUEUE_S: Final = 1.0
_MAX_QUEUED: Final = 4096
BURST_S: Final = 0.1
MOMENT_S: Final = 0.004
CALM_S: Final = 1.0
# Of the time that one may wait, so much is counted on: ends do not come as evenly as that.
_HOPE: Final = 0.5

_BROKE: Final = "The connection to the daemon broke"
_PROBE = Principal(subject="gateway", roles=["viewer"])


class Upstream:
    """The way of one worker to its daemons.

    Args:
        endpoints: where they are.
        metrics: where what is in flight is told.
        jitter: a number in [0, 1) at each call; tests pass their own.
        width: connections to each address.
        sheds: whether load is shed.
    """

    def __init__(
        self,
        endpoints: Daemons,
        metrics: Metrics,
        jitter: Callable[[], float] = random.random,
        *,
        width: int = 1,
        sheds: bool = True,
    ) -> None:
        self._endpoints = (endpoints,) if isinstance(endpoints, Endpoint) else tuple(endpoints)
        self._jitter = jitter
        self._pools = [
            Pool(endpoint, number, width=width, table=self, jitter=jitter)
            for number, endpoint in enumerate(self._endpoints, 1)
        ]
        metrics.upstream = self.state
        self._outstanding = Outstanding(self._freed, jitter)
        self._pending, self._abandoned = self._outstanding.pending, self._outstanding.abandoned
        self._sheds = sheds
        self._streams = Streams(sheds=sheds)
        self._ready = self._streams.ready
        self._budget = RetryBudget(0.0)
        self._queue = Queue()
        self._waiting = self._queue.waiting
        self._now = self._outstanding.now
        self._primary: Connection | None = None
        self._credits = Credits()
        self._grouped = Credits()
        self._waits = Waits()
        self._queued = self._seq = 0
        self._sent_again = self._not_sent_again = 0
        self._shed, self._shed_s = 0, -CALM_S
        self._pace = Pace(0.0)
        self.express = Express(
            self._streams,
            self._outstanding,
            credits_=self._credits,
            grouped=self._grouped,
            waiting=self._waiting,
            budget=self._budget,
            freed=self._freed,
            jitter=jitter,
            sheds=sheds,
        )
        self._closing = False
        self.connected = asyncio.Event()

    def start(self) -> None:
        """Connect in the background and stay connected."""
        http2.install()
        self._outstanding.start()
        self._now = self._outstanding.now
        for pool in self._pools:
            pool.start()

    async def close(self) -> None:
        """Close the connections; what is pending fails."""
        # Before the streams end: they fail what is pending on their way out.
        self._closing = True
        await asyncio.gather(*(pool.close() for pool in self._pools))
        self._outstanding.close()
        self.express.close()

    @property
    def in_flight(self) -> int:
        """How many calls wait for a reply."""
        return len(self._pending) + self.express.waited_for

    def state(self) -> UpstreamState:
        """The upstream in numbers."""
        pools = [self._streams.told(pool.state, pool.number) for pool in self._pools]
        foreign = self._outstanding.foreign + self.express.foreign
        return UpstreamState(self.in_flight, self._sent_again, self._not_sent_again, foreign, self._shed, pools)

    @property
    def metadata(self) -> dict[str, str]:
        """What every call carries."""
        return self._endpoints[0].metadata

    @property
    def heard_s(self) -> float:
        """When the daemon of `stub` last said anything, by the loop's clock."""
        return self._primary.heard_s if self._primary is not None else 0.0

    @property
    def reason(self) -> str:
        """Why there is no connection at all; empty when there is one."""
        if self._ready:
            return ""
        if self._closing:
            return "closed"
        return self._pools[0].why_away if len(self._pools) == 1 else f"no daemon is connected ({away(self._pools)})"

    @property
    def note(self) -> str:
        """Which daemons are connected, where there are several."""
        return connected_of(self._pools) if len(self._pools) > 1 and self._ready else ""

    async def stub(self) -> DaemonStub:
        """The stub for streams of their own (Watch, Logs), on one connection for as long as that is there.

        Raises:
            Unavailable: there is no connection and none came within `PATIENCE_S`.
        """
        await self._connection()
        if self._primary is None or not self._primary.is_ready:
            if not self._ready:
                raise Unavailable(retry_after_s=1)
            self._primary = self._ready[0].connection
        return self._primary.stub

    async def call(self, frame: Frame, deadline_s: float, *, read: bool) -> ReplyFrame:
        """Send a command and wait for its reply, whatever it is.

        Args:
            frame: the command; `seq` is set here.
            deadline_s: seconds from now after which nobody waits any more.
            read: the command changes nothing, so that it may be sent twice.

        Raises:
            Unavailable: no connection, too much in flight, or (`StreamLost`) the connection broke.
            DeadlineExceeded: no reply in time; the command may still be carried out.
        """
        now = self._now()
        deadline = now + deadline_s
        self._budget.sent(now)
        ending: ReplyFrame | StreamLost
        try:
            # The usual case in as few steps as possible; `_attempt` is the same for all cases.
            if self._ready and not self._waiting and not is_wait(frame) and self._credits.take():
                ending = await self._send(frame, deadline, "call")
            else:
                ending = await self._attempt(frame, deadline)
        except StreamLost as lost:
            ending = lost
        else:
            if ending.code != STOPPING:
                return ending
        return await self.settled(frame, deadline, ending, read=read)

    async def settled(self, frame: Frame, deadline: float, ending: ReplyFrame | FlxError, *, read: bool) -> ReplyFrame:
        """The last word on a command that ended like this: its reply, sent again where that is allowed.

        Args:
            frame: the command.
            deadline: when nobody waits any more, by the loop's clock.
            ending: how it ended.
            read: it changes nothing.

        Raises:
            FlxError: there is no reply.
        """
        if isinstance(ending, StreamLost):
            sends = sends_of(frame, read=read)
            if sends == 1 or self._closing:
                raise ending
            return await self._again(frame, deadline, sends - 1, ending)
        if isinstance(ending, FlxError):
            raise ending
        if ending.code == STOPPING and self._ready and self.may_send_again():
            return await self._attempt(frame, deadline)
        return ending

    async def _again(self, frame: Frame, deadline: float, sends: int, lost: StreamLost) -> ReplyFrame:
        """Send a command again whose stream was lost, as often as that is allowed; `lost` when that is of no use."""
        pause, longest = ASK_AGAIN_S
        while True:
            left_s = deadline - self._now()
            if left_s <= 0 or self._closing or not self.may_send_again():
                raise lost
            patience_s = min(PATIENCE_S if sends == 1 else RECONNECT_S, left_s)
            try:
                reply = await self._attempt(frame, deadline, patience_s, lost.place)
            except StreamLost as error:
                sends, lost = sends - 1, error
                if sends == 0:
                    raise
                continue
            except Unavailable:
                # Not even sent; what is not known is what became of it before.
                raise lost from None
            if reply.code != IN_PROGRESS:
                return reply
            # Our own first attempt: the daemon is still about it, and will know the answer.
            await asyncio.sleep(pause * (0.5 + self._jitter() / 2))
            pause = min(pause * 2, longest)

    def may_send_again(self) -> bool:
        """Whether a command may be sent for another time; if so, it is counted."""
        if self._budget.take(self._now()):
            self._sent_again += 1
            return True
        self._not_sent_again += 1
        return False

    def begin_now(self, frame: Frame, deadline_s: float, reply: Reply) -> bool:
        """Do what `begin` does, if nothing has to be waited for; else nothing, and say so."""
        if not self._ready or self._waiting or is_wait(frame) or not self._grouped.take():
            return False
        if not self._credits.take():
            self._grouped.release()
            return False
        now = self._now()
        try:
            self._put(frame, now + deadline_s, reply, "grouped")
        except Overloaded:
            self._credits.release()
            self._grouped.release()
            return False
        self._budget.sent(now)
        return True

    async def begin(
        self,
        frame: Frame,
        deadline_s: float,
        reply: Reply,
        *,
        patient: bool,
        patience_s: float = PATIENCE_S,
        avoid: object = None,
    ) -> None:
        """Send a command of a batch; its reply goes to `reply`, and then `end` or `abandon` has to be called.

        Args:
            frame: the command; `seq` is set here.
            deadline_s: seconds from now after which nobody waits any more.
            reply: told once, maybe before this returns.
            patient: whether to wait for a connection and for room.
            patience_s: how long to wait for a connection.
            avoid: a place to keep away from, if there is another.

        Raises:
            Unavailable: nothing was sent: no connection, or too much in flight.
        """
        now = self._now()
        deadline = now + deadline_s
        self._budget.sent(now)
        if avoid is not None:
            await self._let_die(avoid)
        kind = await self._room(frame, grouped=True, patient=patient, patience_s=patience_s)
        await self._put_in_turn(frame, deadline, reply, kind, avoid=avoid, within_s=QUEUE_S if patient else 0.0)

    def end(self, seq: int) -> None:
        """A reply has come, or never will."""
        self._outstanding.end(seq)

    def abandon(self, seq: int) -> None:
        """Nobody waits for a reply any more, but the daemon works on the command, until it hears of that."""
        self._outstanding.abandon(seq)

    @property
    def grouped(self) -> int:
        """How many commands of one batch are worth being outstanding now."""
        grouped = self._streams.grouped
        return GROUPED if grouped is None else min(grouped, GROUPED)

    @property
    def largest_group(self) -> int:
        """How many commands of one request may leave together where no others are under way.

        0: no daemon takes any, or others wait for room, so there is no use in waiting for it.
        """
        largest = 0 if self._waiting else self._streams.largest_group
        return GROUPED if largest is None else min(largest, GROUPED)

    @property
    def closing(self) -> bool:
        """Whether the service stops."""
        return self._closing

    # --- what the connections tell ------------------------------------------------------------------------------------

    def joined(self, carrier: Carrier) -> None:
        """A stream takes commands from now on."""
        self._streams.add(carrier, self._now())
        self._credits.resize(_CREDITS)
        self._grouped.resize(GROUPED)
        self.connected.set()
        self.express.freed()

    def left(self, carrier: Carrier) -> None:
        """It takes no more; its replies still come."""
        if carrier not in self._ready:
            return
        self._ready.remove(carrier)
        carrier.is_ready = False
        self._credits.resize(-_CREDITS)
        self._grouped.resize(-GROUPED)
        if not self._ready:
            self.connected.clear()

    def received(self, carrier: Carrier, message: bytes) -> None:
        """This came on a stream: a `ReplyBatch`, as its bytes."""
        rest = self.express.settle(carrier, message)
        if rest is not None:
            self._outstanding.replies(carrier, ReplyBatch.FromString(rest).frames)

    def lost(self, carrier: Carrier) -> None:
        """A stream has ended; no more replies come on it."""
        self.left(carrier)
        detail, code = _BROKE, "upstream_unavailable"
        if self._closing:
            detail, code = "The service is shutting down", STOPPING
        told = self.express.lost(carrier, detail, code, broke=not self._closing)
        self._outstanding.lost(carrier, detail, code, broke=not told and not self._closing)

    async def ask(self, carrier: Carrier) -> None:
        """Wait for an echo on a stream."""
        frame = CommandFrame(command="system.echo", args=b"{}", principal=_PROBE)
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await self._send(frame, self._now() + PROBE_TIMEOUT_S, None, carrier)

    # --- one command --------------------------------------------------------------------------------------------------

    async def _attempt(
        self, frame: Frame, deadline: float, patience_s: float = PATIENCE_S, avoid: object = None
    ) -> ReplyFrame:
        if avoid is not None:
            await self._let_die(avoid)
        return await self._send(frame, deadline, await self._room(frame, patience_s=patience_s), avoid=avoid)

    async def _let_die(self, place: object) -> None:
        """When there are only streams of a place where one was lost, wait until the others would be lost as well."""
        if all(carrier.connection.place == place for carrier in self._ready):
            await asyncio.sleep(_LET_DIE_S)

    async def _room(
        self, frame: Frame, *, grouped: bool = False, patient: bool = True, patience_s: float = PATIENCE_S
    ) -> Kind:
        """A connection, and a credit of the kind that is told."""
        if not self._ready:
            await self._connection(patience_s if patient else 0)
        if is_wait(frame):
            kind: Kind = self._waits.take(frame.principal, len(self._ready))
        elif grouped:
            await self._acquire(self._grouped, patient=patient, within_s=QUEUE_S)
            kind = "grouped"
        else:
            kind = "call"
        try:
            # First come, first served. A batch stands here once, so that single calls never wait for all of it.
            if frame.command in VITAL:
                self._credits.resize(-1)  # a few more than there are: the daemon reads on for as many
            else:
                await self._acquire(self._credits, patient=patient, within_s=self._patience_s(kind))
        except BaseException:
            self._release_share(kind)
            raise
        return kind

    def _freed(self, kind: Kind | None, count: int = 1) -> None:
        """So many things are over, and what they held is free."""
        self._pace.ended += count
        if self._waiting:
            for _ in range(count):
                self._queue.wake()
        if kind is None:
            return
        if kind != "call":
            self._release_share(kind)
        self._credits.release(count)
        self.express.freed()

    def _release_share(self, kind: Kind) -> None:
        if isinstance(kind, Place):
            self._waits.release(kind)
        elif kind == "grouped":
            self._grouped.release()

    def _patience_s(self, kind: Kind) -> float:
        """For how long a command of this kind waits for room."""
        patience_s = BURST_S if self._now() - self._shed_s >= CALM_S else MOMENT_S
        return patience_s if self._sheds and kind == "call" else QUEUE_S

    async def _acquire(self, credits_: Credits, *, patient: bool, within_s: float) -> None:
        """One of these credits, or `overloaded` when none becomes free in time."""
        if credits_.take():
            return
        if patient and self._queued < _MAX_QUEUED:
            self._queued += 1
            try:
                if await credits_.acquire(within_s):
                    return
            finally:
                self._queued -= 1
        self._shed, self._shed_s = self._shed + 1, self._now()
        raise Overloaded(retry_after_s=1)

    def _put(
        self,
        frame: Frame,
        deadline: float,
        reply: Reply,
        kind: Kind | None,
        carrier: Carrier | None = None,
        *,
        avoid: object = None,
    ) -> int:
        """Let a frame leave with this tick, on this stream or one that is chosen; its number.

        Raises:
            Overloaded: no stream may take it, and nothing was done.
        """
        passage = None
        if carrier is None and self._ready:
            now = self._now()
            carrier, passage = self._streams.choose(frame.command, self._seq, now, sort=SORTS.get(kind), avoid=avoid)
        self._seq += 1
        frame.seq = seq = self._seq
        self._outstanding.put(seq, Pending(reply, deadline + DEADLINE_GRACE_S, kind, carrier, passage))
        if carrier is not None and carrier.outbox is not None:
            carrier.outstanding += 1
            carrier.outbox.put(frame)
        else:
            reply.set_exception(StreamLost(_BROKE, retry_after_s=1))
        return seq

    async def _put_in_turn(
        self, frame: Frame, deadline: float, reply: Reply, kind: Kind, *, avoid: object, within_s: float
    ) -> int:
        """Do what `_put` does as soon as there is room, within so many seconds; else the credit goes back."""
        refused, until = Overloaded(retry_after_s=1), 0.0
        has_credit = True
        may_put = not self._waiting or isinstance(kind, Place) or frame.command in VITAL
        try:
            while True:
                if may_put:
                    try:
                        return self._put(frame, deadline, reply, kind, avoid=avoid)
                    except Overloaded as error:
                        refused = error
                now = self._now()
                until = until or now + within_s
                if (
                    refused.code != "overloaded"
                    or now >= until
                    or len(self._waiting) >= self._hope(kind, within_s, now)
                ):
                    self._shed, self._shed_s = self._shed + 1, now
                    raise refused  # noqa: TRY301 - the credit goes back in one place
                if has_credit:
                    # Who waits holds none: it is for what is outstanding.
                    has_credit = False
                    self._credits.release()
                is_woken = await self._queue.wait(until - now)
                has_credit = may_put = is_woken and self._credits.take()
                until = until if is_woken else now
        except BaseException:
            self._release_share(kind)
            if has_credit:
                self._credits.release()
            raise
        finally:
            # An error that knows this frame, which knows the error: a circle for each command that is refused.
            del refused

    def _hope(self, kind: Kind, within_s: float, now: float) -> float:
        """Behind how many it makes sense to wait for so many seconds."""
        if kind == "call" and self._sheds and now - self._shed_s < CALM_S:
            return min(self._pace.within(within_s * _HOPE, now), _MAX_QUEUED)
        return _MAX_QUEUED

    async def _send(
        self,
        frame: Frame,
        deadline: float,
        kind: Kind | None = None,
        carrier: Carrier | None = None,
        *,
        avoid: object = None,
    ) -> ReplyFrame:
        """Send a frame, at once where nobody waits, and wait for its reply. A probe holds no credit."""
        reply: asyncio.Future[ReplyFrame] = self._outstanding.loop.create_future()
        seq = 0  # no number is
        if kind is None or not self._waiting:
            try:  # noqa: SIM105 - on every command's way, and three calls less
                seq = self._put(frame, deadline, reply, kind, carrier, avoid=avoid)
            except Overloaded:
                pass
        if not seq and kind is not None:
            within_s = self._patience_s(kind)
            seq = await self._put_in_turn(frame, deadline, reply, kind, avoid=avoid, within_s=within_s)
        try:
            return await reply
        finally:
            if reply.cancelled():
                self.abandon(seq)
            else:
                self.end(seq)

    async def _connection(self, patience_s: float = PATIENCE_S) -> None:
        if self._ready:
            return
        try:
            async with asyncio.timeout(patience_s):
                await self.connected.wait()
        except TimeoutError:
            code = STOPPING if self._closing else "upstream_unavailable"
            raise Unavailable(code=code, retry_after_s=1) from None
