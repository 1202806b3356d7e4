"""The express: plain commands that leave together and whose replies are taken together, without a task for any.

Strategy: what is outstanding here is the native core's affair (`flx_api._core.Express`): it matches a whole message of
replies and answers those who wait, in one call. What limits, credits, the breaker and the budget have to know of it is
counted by message and not by command: one look at the room for all that leave, one reckoning for all that came back.

Rules:
- Whoever finds no room here, or finds others waiting for it, goes the general way (`flx_api.upstream.channel`); so does
  everything that ends otherwise than with a plain result.
- A reply counts only on the stream that its command left on, and numbers are none of the general way's.
- A caller that goes away: the daemon is told, and what the command held comes back with its reply, its deadline or the
  stream's end.
- What is vital has a part of the room for itself: alone it does not come here, in a batch only while there is room.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from flx_api import _core
from flx_api.errors import DeadlineExceeded
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, ReplyFrame
from flx_api.upstream.outstanding import DEADLINE_GRACE_S, SWEEP_EVERY_S
from flx_api.upstream.pending import StreamLost

if TYPE_CHECKING:
    import asyncio
    from collections import deque
    from collections.abc import Callable, Sequence

    from flx_api._core import PlainBatch, PlainCommand, Ride, Settled
    from flx_api.errors import FlxError
    from flx_api.upstream.connection import Carrier
    from flx_api.upstream.credits import Credits
    from flx_api.upstream.outstanding import Outstanding
    from flx_api.upstream.pending import Kind, Sent
    from flx_api.upstream.retry_budget import RetryBudget
    from flx_api.upstream.shedding import Together
    from flx_api.upstream.streams import Streams

LONG_S: Final = 0.25
# Above all numbers of the general way.
_FIRST: Final = 1 << 40


class Passengers(Protocol):
    """Whose rides these are. None of it raises."""

    own: Callable[[Any], list[tuple[bytes, bytes]]] | None
    """The headers that an answer to this scope has beside those of every response; None: there are none."""

    def ended(self, ride: Ride, ending: ReplyFrame | FlxError) -> None:
        """It has ended otherwise than with a plain result."""
        ...

    def over(self, ride: Ride) -> None:
        """One that was marked, or told that it takes long, is over."""
        ...

    def takes_long(self, ride: Ride) -> None:
        """It takes so long that it is worth looking whether its caller is still there."""
        ...

    def group_of(self, ride: Ride) -> Waiting:
        """Who waits from now on for what is missing of a batch, of which something has ended otherwise."""
        ...

    def counted(self, name: str, count: int) -> None:
        """So many operations of batches with this command were answered."""
        ...

    def freed(self) -> None:
        """There is room again for commands of batches."""
        ...


class Waiting(Protocol):
    """Who waits for many commands. None of it raises."""

    def took(self, results: list[tuple[int, bytes, bool]]) -> None:
        """So many have ended with results: the place of each, its result, and whether that is an earlier one's."""
        ...

    def ended_otherwise(self, place: int, command: PlainCommand, until_s: float, ending: ReplyFrame | FlxError) -> None:
        """One has ended otherwise. `until_s`: when nobody waits any more, by the loop's clock."""
        ...


class Express:
    """Nothing is under way at first.

    Args:
        streams: those that take commands.
        outstanding: the table of the general way.
        credits_: what is outstanding holds them.
        grouped: what is outstanding of batches holds these as well.
        waiting: who waits for room.
        budget: what was sent earns.
        freed: told when commands are over, and how many.
        jitter: a number in [0, 1) at each call.
        sheds: whether load is shed.
    """

    def __init__(
        self,
        streams: Streams,
        outstanding: Outstanding,
        *,
        credits_: Credits,
        grouped: Credits,
        waiting: deque[asyncio.Future[bool]],
        budget: RetryBudget,
        freed: Callable[[Kind | None, int], None],
        jitter: Callable[[], float],
        sheds: bool,
    ) -> None:
        # Whose rides leave here; None: there are none.
        self.passengers: Passengers | None = None
        self.foreign = 0
        self._native = _core.Express()
        self._streams = streams
        self._credits = credits_
        self._grouped = grouped
        self._waiting = waiting
        self._budget = budget
        self._outstanding = outstanding
        self._freed = freed
        self._jitter = jitter
        self._sheds = sheds
        self._next = _FIRST
        # Streams that something has left on, by what names them natively.
        self._carriers: dict[int, Carrier] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def waited_for(self) -> int:
        """How many commands are waited for."""
        return self._native.waited_for

    @property
    def abandoned(self) -> int:
        """How many are not, and are not over yet."""
        return len(self._native) - self._native.waited_for

    def close(self) -> None:
        """Sweep no more."""
        if self._sweeper is not None:
            self._sweeper.cancel()

    def depart(self, rides: list[Ride]) -> int:
        """Let rides leave with this tick, the first ones, as many as there is room for; how many do."""
        return self._leave(len(rides), "ordinary", partial(self._depart, rides))

    def _depart(self, rides: list[Ride], count: int, **how: Any) -> list[PlainCommand]:  # noqa: ANN401 - the native keywords
        return self._native.depart(rides[:count], self._next, **how)

    @property
    def room_of_many(self) -> int:
        """How many commands of batches may leave together now; none of what is vital."""
        carrier = self._carrier
        if carrier is None:
            return 0
        room = min(self._grouped.free, self._credits.free)
        return min(room, carrier.load.room) if self._sheds else room

    def depart_many(self, group: Waiting, members: list[tuple[int, PlainCommand]]) -> range:
        """Let commands of one request leave with this tick, each with its place there, no more than there is room for;
        their numbers.
        """
        first = self._next
        count = self._leave(len(members), "grouped", partial(self._depart_many, group, members))
        self._grouped.resize(-count)
        return range(first, first + count)

    def _depart_many(
        self,
        group: Waiting,
        members: list[tuple[int, PlainCommand]],
        count: int,
        **how: Any,  # noqa: ANN401 - the native keywords
    ) -> list[PlainCommand]:
        return self._native.depart_many(group, members[:count], self._next, **how)

    def depart_batch(self, ride: Ride) -> bool:
        """Let a batch leave with this tick, if there is room for all of it, and no limit against it."""
        batch = ride.batch
        count = len(batch) if batch is not None else 0
        if batch is None or self._waiting or min(self._grouped.free, self._credits.free) < count:
            return False
        carrier = self._streams.with_room(count, self._next)
        if carrier is None or not batch.pay():
            return False
        self._leave(count, "grouped", partial(self._depart_batch, ride), carrier)
        self._grouped.resize(-count)
        return True

    def _depart_batch(self, ride: Ride, _count: int, **how: Any) -> list[PlainBatch]:  # noqa: ANN401 - the native keywords
        return self._native.depart_batch(ride, self._next, **how)

    @property
    def _carrier(self) -> Carrier | None:
        """Whom something may leave on; None when others wait for room, or nobody is there."""
        ready = self._streams.ready
        if not ready or self._waiting:
            return None
        carrier = ready[0] if len(ready) == 1 else self._streams.least(self._next)
        return carrier if carrier.outbox is not None else None

    def _leave(
        self, count: int, sort: Together, depart: Callable[..., Sequence[Sent]], carrier: Carrier | None = None
    ) -> int:
        carrier = carrier or self._carrier
        if carrier is None or carrier.outbox is None:
            return 0
        count, life = min(count, self._credits.free), 0
        if self._sheds:
            count, life = carrier.load.enter_many(count, sort)
        if not count:
            return 0
        now = self._outstanding.now()
        commands = depart(count, stream=id(carrier), life=life, now_s=now, grace_s=DEADLINE_GRACE_S)
        self._next += count
        self._credits.resize(-count)
        self._budget.sent(now, count)
        self._carriers[id(carrier)] = carrier
        carrier.outstanding += count
        # A batch stands for all of it.
        carrier.sent(count - len(commands))
        carrier.outbox.put_many(commands)
        if self._sweeper is None:
            self._sweeper = self._outstanding.loop.call_later(SWEEP_EVERY_S, self._sweep)
        return count

    def settle(self, carrier: Carrier, message: bytes) -> bytes | None:
        """Take what came on a stream; what of it is none of ours, as a message of the same kind."""
        stream = id(carrier)
        if stream not in self._carriers:
            return message
        load, passengers = carrier.load, self.passengers
        now = self._outstanding.now()
        try:
            settled = self._native.settle(
                message,
                stream=stream,
                life=load.life,
                now_s=now,
                since_s=load.since_s,
                own=None if passengers is None else passengers.own,
            )
        except ValueError:
            # No message at all; protobuf has the words for it.
            return message
        grouped = settled.of_many
        ordinary = settled.answered - grouped
        if settled.answered:
            if self._sheds:
                load.answered_many(settled.took, ordinary, grouped, settled.of_life, now)
            self._come_free(carrier, ordinary, grouped)
        forgotten, of_many = settled.forgotten
        if forgotten:
            # They were cut short, and so say nothing about how long such a command takes.
            self._cut_short(carrier, forgotten - of_many, of_many)
        self.foreign += settled.foreign
        self._tell(settled)
        return settled.rest

    def _tell(self, settled: Settled) -> None:
        """Let those know what came who were not answered natively."""
        if self.passengers is not None:
            for ride in settled.marked:
                self.passengers.over(ride)
            for name, count in settled.counted:
                self.passengers.counted(name, count)
        for group, results in settled.results:
            group.took(results)
        for ride, frame in settled.others:
            self._ended(ride, ReplyFrame.FromString(frame))

    def _ended(self, ride: Ride, ending: ReplyFrame | FlxError) -> None:
        """A command has ended otherwise than with a plain result: whoever waits for it is told."""
        group: Waiting | None = ride.group
        if self.passengers is not None and group is None:
            if ride.of is None:
                self.passengers.ended(ride, ending)
                return
            group = ride.of.batch.group or self.passengers.group_of(ride.of)
        if group is not None and ride.command is not None:
            group.ended_otherwise(ride.place, ride.command, ride.until_s, ending)

    def abandon(self, ride: Ride) -> bool:
        """Nobody waits for a reply any more, and the daemon is told; False when there was nothing to wait for."""
        if ride.batch is None:
            return ride.command is not None and self.abandon_number(ride.command.seq)
        numbers = range(ride.batch.first, ride.batch.first + len(ride.batch))
        return sum(self.abandon_number(seq) for seq in numbers) > 0

    def abandon_number(self, seq: int) -> bool:
        """The same, by the command's number."""
        stream = self._native.abandon(seq)
        if stream is None:
            return False
        carrier = self._carriers[stream]
        if carrier.is_ready and carrier.outbox is not None:
            carrier.outbox.put(CommandFrame(seq=seq, cancel=True))
        return True

    def lost(self, carrier: Carrier, detail: str, code: str, *, broke: bool) -> bool:
        """A stream has ended; whether anything was under way on it. What that means is as elsewhere
        (`flx_api.upstream.outstanding`).
        """
        if self._carriers.pop(id(carrier), None) is None:
            return False
        rides, ordinary, grouped = self._native.lost(id(carrier))
        if not ordinary + grouped:
            return False
        self._cut_short(carrier, ordinary, grouped)
        if self._sheds and broke:
            carrier.load.broke(self._outstanding.now(), self._jitter())
        for ride in rides:
            lost = StreamLost(detail, code=code, retry_after_s=1)
            lost.place = carrier.connection.place
            self._ended(ride, lost)
        return True

    def _cut_short(self, carrier: Carrier, ordinary: int, grouped: int) -> None:
        if self._sheds:
            carrier.load.lost_many(ordinary, grouped)
        self._come_free(carrier, ordinary, grouped)

    def _come_free(self, carrier: Carrier, ordinary: int, grouped: int) -> None:
        carrier.outstanding -= ordinary + grouped
        if grouped:
            self._grouped.release(grouped)
        self._freed("call", ordinary + grouped)

    def freed(self) -> None:
        """Something is over, or a daemon is there: who waits for room is told."""
        if self.passengers is not None:
            self.passengers.freed()

    def _sweep(self) -> None:
        """End what has no time left; runs only while something is under way."""
        self._sweeper = None
        now = self._outstanding.now()
        late, long = self._native.sweep(now, now - LONG_S)
        for ride, stream, began_s, life, is_waited_for, is_of_many in late:
            carrier = self._carriers[stream]
            if self._sheds:
                sort: Together = "grouped" if is_of_many else "ordinary"
                carrier.load.unanswered_one(began_s, life, now, self._jitter(), sort)
            self._come_free(carrier, int(not is_of_many), int(is_of_many))
            if is_waited_for:
                self._ended(ride, DeadlineExceeded())
        if self.passengers is not None:
            for ride in long:
                self.passengers.takes_long(ride)
        if len(self._native):
            self._sweeper = self._outstanding.loop.call_later(SWEEP_EVERY_S, self._sweep)
