"""A group: commands of one request that share the stream, without a task or a future for each.

Strategy: a command that was begun is an entry in the upstream's table like any other, only that its reply goes to the
group. What came to its end gathers there until `ended` asks for it, so a message with many replies costs one waking.

Rules:
- What is begun within one tick leaves as one message (`flx_api.proto.outbox`).
- At most `width` commands are outstanding; `begin` is for when there is room.
- What does no harm twice is sent again when its connection broke, as often as a single command would be
  (`flx_api.upstream.channel`); all else that may have left is told as lost.
- After a command that could not be sent, others are not waited with for room, until a reply shows that there is some.
- `close` drops what is outstanding: the daemon may still finish it.
"""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from flx_api.errors import FlxError, Unavailable
from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
from flx_api.upstream.channel import (
    ASK_AGAIN_S,
    GROUPED,
    IN_PROGRESS,
    PATIENCE_S,
    RECONNECT_S,
    STOPPING,
)
from flx_api.upstream.pending import StreamLost, sends_of

if TYPE_CHECKING:
    from flx_api._core import PlainBatch, PlainCommand
    from flx_api.upstream.channel import Upstream
    from flx_api.upstream.pending import Frame

Ending = ReplyFrame | FlxError
"""How a command ended: the daemon's reply, whatever it says, or why there is none."""


class Ended(NamedTuple):
    """What has ended: plain results (place, result, whether that is an earlier one's), and the endings of others."""

    results: list[tuple[int, bytes, bool]]
    others: list[tuple[int, Ending]]


class _Member:
    """One command of a group; stands in the upstream's table where a single call has a future."""

    __slots__ = ("_group", "avoid", "frame", "index", "is_again", "is_done", "sends", "until")

    def __init__(self, group: Group, index: int, frame: Frame, *, sends: int, until: float) -> None:
        self._group = group
        self.index = index
        self.frame = frame
        # How often it may be sent, this time included; whether it was sent before.
        self.sends = sends
        self.is_again = False
        self.avoid: object = None
        self.until = until
        self.is_done = False

    def again(self, sends: int) -> _Member:
        """The same command for another time."""
        member = _Member(self._group, self.index, self.frame, sends=sends, until=self.until)
        member.is_again = True
        return member

    def done(self) -> bool:
        return self.is_done

    def set_result(self, reply: ReplyFrame, /) -> None:
        self._group.take(self, reply)

    def set_exception(self, error: FlxError, /) -> None:
        self._group.take(self, error)


class Group:
    """The commands of one request.

    Args:
        upstream: what they are sent by.
        width: how many may be outstanding at once.
    """

    def __init__(self, upstream: Upstream, width: int = GROUPED) -> None:
        self._upstream = upstream
        self._width = width
        self._outstanding: dict[int, _Member] = {}
        # What left by the express: how many are not over, and the numbers of all.
        self._travelling = 0
        self._numbers: list[range] = []
        self._lost: list[_Member] = []
        # Commands that the daemon is still about, until it is asked again.
        self._resting: dict[_Member, asyncio.TimerHandle] = {}
        self._ended = Ended([], [])
        self._patient = True
        self._wake = asyncio.Event()
        self._bound = min(width, upstream.grouped)
        # Asking for the running loop is a system call (Python 3.11).
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time

    @property
    def room(self) -> int:
        """How many commands may be begun; none before it was looked at what has ended."""
        if self._has_ended:
            return 0
        busy = self._travelling + len(self._outstanding) + len(self._lost) + len(self._resting)
        return max(self._bound - busy, 0)

    @property
    def has_room(self) -> bool:
        """Whether another command may be begun."""
        return self.room > 0

    @property
    def is_idle(self) -> bool:
        """Whether everything that was begun has ended and was told."""
        return not (self._travelling or self._outstanding or self._lost or self._resting or self._has_ended)

    @property
    def _has_ended(self) -> bool:
        return bool(self._ended.results or self._ended.others)

    def begin_now(self, index: int, frame: Frame, deadline_s: float, *, read: bool) -> bool:
        """Do what `begin` does, if nothing has to be waited for; else nothing, and say so."""
        sends = 2 if read else sends_of(frame, read=False)
        member = _Member(self, index, frame, sends=sends, until=self._now() + deadline_s)
        if not self._upstream.begin_now(frame, deadline_s, member):
            return False
        if not member.is_done:
            self._outstanding[frame.seq] = member
        return True

    @property
    def room_at_once(self) -> int:
        """How many plain commands may be begun together."""
        return min(self.room, self._upstream.express.room_of_many)

    def begin_many(self, commands: list[tuple[int, PlainCommand]]) -> None:
        """Send plain commands, no more than there is `room_at_once` for: as `begin` does with each."""
        numbers = self._upstream.express.depart_many(self, commands)
        self._travelling += len(numbers)
        self._numbers.append(numbers)
        now = self._now()
        for index, command in commands[len(numbers) :]:
            sends = sends_of(command, read=command.reads)
            self._lost.append(_Member(self, index, command, sends=sends, until=now + command.deadline_s))

    def take_over(self, batch: PlainBatch) -> None:
        """Wait for what is missing of a batch that has left without a group; what has come of it has ended here."""
        results, missing = batch.hand_over(self)
        self._travelling += missing
        self._numbers.append(range(batch.first, batch.first + len(batch)))
        self._ended.results.extend(results)

    async def begin(self, index: int, frame: Frame, deadline_s: float, *, read: bool) -> None:
        """Send a command.

        Args:
            index: names it in `ended`.
            frame: the command.
            deadline_s: seconds from now after which nobody waits any more.
            read: it changes nothing, so that it may be sent twice.
        """
        if not self.begin_now(index, frame, deadline_s, read=read):
            until = self._now() + deadline_s
            await self._send(_Member(self, index, frame, sends=sends_of(frame, read=read), until=until))

    async def ended(self) -> Ended:
        """What has ended since the last time, in that order. Waits for something, unless the group is idle."""
        while not self._has_ended and not self.is_idle:
            while self._lost:
                await self._send(self._lost.pop())
            if not self._has_ended:
                self._wake.clear()
                await self._wake.wait()
        ended, self._ended = self._ended, Ended([], [])
        # What the daemon bears changes with its replies.
        self._bound = min(self._width, self._upstream.grouped)
        return ended

    def close(self) -> None:
        """Wait for nothing any more."""
        for seq in self._outstanding:
            self._upstream.abandon(seq)
        if self._travelling:
            for seq in chain.from_iterable(self._numbers):
                self._upstream.express.abandon_number(seq)
            self._travelling = 0
        for handle in self._resting.values():
            handle.cancel()
        self._outstanding.clear()
        self._lost.clear()
        self._resting.clear()

    def took(self, results: list[tuple[int, bytes, bool]]) -> None:
        """So many have ended with results; for the express."""
        self._travelling -= len(results)
        self._ended.results.extend(results)
        self._patient = True
        self._wake.set()

    def ended_otherwise(self, place: int, command: PlainCommand, until_s: float, ending: ReplyFrame | FlxError) -> None:
        """One has ended otherwise; for the express."""
        self._travelling -= 1
        member = _Member(self, place, command, sends=sends_of(command, read=command.reads), until=until_s)
        self._over(member, ending)

    def take(self, member: _Member, ending: ReplyFrame | FlxError) -> None:
        """A command has ended; for the upstream's table."""
        seq = member.frame.seq
        self._outstanding.pop(seq, None)
        self._upstream.end(seq)
        self._over(member, ending)

    def _over(self, member: _Member, ending: ReplyFrame | FlxError) -> None:
        member.is_done = True
        if isinstance(ending, ReplyFrame) and not ending.code:
            self._ended.others.append((member.index, ending))
            self._patient = True
        elif self._upstream.closing or not self._goes_again(member, ending):
            self._ended.others.append((member.index, ending))
            self._patient = self._patient or isinstance(ending, ReplyFrame)
        self._wake.set()

    def _goes_again(self, member: _Member, ending: ReplyFrame | FlxError) -> bool:
        """Whether a command that ended like this is sent again; if so, it is on its way to that."""
        if isinstance(ending, StreamLost):
            if member.sends <= 1 or not self._upstream.may_send_again():
                return False
            again = member.again(member.sends - 1)
            again.avoid = ending.place
            self._lost.append(again)
            return True
        if isinstance(ending, FlxError) or not ending.code:
            return False
        if ending.code == STOPPING and self._upstream.connected.is_set() and not member.is_again:
            if self._upstream.may_send_again():
                self._lost.append(member.again(1))
                return True
        elif (
            ending.code == IN_PROGRESS
            and member.is_again
            and self._now() < member.until
            and self._upstream.may_send_again()
        ):
            # Our own first attempt: the daemon is still about it, and will know the answer.
            again = member.again(member.sends)
            self._resting[again] = self._loop.call_later(ASK_AGAIN_S[1], self._rested, again)
            return True
        return False

    def _rested(self, member: _Member) -> None:
        del self._resting[member]
        self._lost.append(member)
        self._wake.set()

    async def _send(self, member: _Member) -> None:
        left_s = member.until - self._now()
        try:
            patience_s = RECONNECT_S if member.is_again and member.sends > 1 else PATIENCE_S
            await self._upstream.begin(
                member.frame,
                left_s,
                member,
                patient=self._patient,
                patience_s=min(patience_s, max(left_s, 0)),
                avoid=member.avoid,
            )
        except Unavailable as error:
            self._patient = False
            member.is_done = True
            self._ended.others.append((member.index, error))
            return
        if not member.is_done:
            self._outstanding[member.frame.seq] = member
