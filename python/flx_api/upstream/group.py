"""A group: commands of one request that share the stream, without a task or a future for each.

Strategy: a command that was begun is an entry in the upstream's table like any other, only that its reply goes to the
group. What came to its end gathers there until `ended` asks for it, so a message with many replies costs one waking.

Rules:
- What is begun within one tick leaves as one message (`flx_api.proto.outbox`).
- At most `width` commands are outstanding; `begin` is for when there is room.
- A read whose connection broke is sent again, once; all else that may have left is told as lost.
- After a command that could not be sent, others are not waited with for room, until a reply shows that there is some.
- `close` drops what is outstanding: the daemon may still finish it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from flx_api.errors import FlxError, Unavailable
from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
from flx_api.upstream.channel import GROUPED, StreamLost

if TYPE_CHECKING:
    from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame
    from flx_api.upstream.channel import Upstream

Ending = ReplyFrame | FlxError
"""How a command ended: the daemon's reply, whatever it says, or why there is none."""


class _Member:
    """One command of a group; stands in the upstream's table where a single call has a future."""

    __slots__ = ("_group", "frame", "index", "is_done", "read", "until")

    def __init__(self, group: Group, index: int, frame: CommandFrame, *, read: bool, until: float) -> None:
        self._group = group
        self.index = index
        self.frame = frame
        self.read = read
        self.until = until
        self.is_done = False

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
        self._lost: list[_Member] = []
        self._endings: list[tuple[int, Ending]] = []
        self._patient = True
        self._wake = asyncio.Event()

    @property
    def has_room(self) -> bool:
        """Whether another command may be begun; never before it was looked at what has ended."""
        return not self._endings and len(self._outstanding) + len(self._lost) < self._width

    @property
    def is_idle(self) -> bool:
        """Whether everything that was begun has ended and was told."""
        return not self._outstanding and not self._lost and not self._endings

    async def begin(self, index: int, frame: CommandFrame, deadline_s: float, *, read: bool) -> None:
        """Send a command.

        Args:
            index: names it in `ended`.
            frame: the command.
            deadline_s: seconds from now after which nobody waits any more.
            read: it changes nothing, so that it may be sent twice.
        """
        until = asyncio.get_running_loop().time() + deadline_s
        member = _Member(self, index, frame, read=read, until=until)
        if not self._upstream.begin_now(frame, deadline_s, member):
            await self._send(member)
        elif not member.is_done:
            self._outstanding[frame.seq] = member

    async def ended(self) -> list[tuple[int, Ending]]:
        """What has ended since the last time, in that order. Waits for something, unless the group is idle."""
        while not self._endings and not self.is_idle:
            while self._lost:
                await self._send(self._lost.pop())
            if not self._endings:
                self._wake.clear()
                await self._wake.wait()
        endings, self._endings = self._endings, []
        return endings

    def close(self) -> None:
        """Wait for nothing any more."""
        for seq in self._outstanding:
            self._upstream.abandon(seq)
        self._outstanding.clear()
        self._lost.clear()

    def take(self, member: _Member, ending: Ending) -> None:
        """A command has ended; for the upstream's table."""
        member.is_done = True
        seq = member.frame.seq
        self._outstanding.pop(seq, None)
        self._upstream.end(seq)
        if isinstance(ending, StreamLost) and member.read and not self._upstream.closing:
            again = _Member(self, member.index, member.frame, read=False, until=member.until)
            self._lost.append(again)
        else:
            self._endings.append((member.index, ending))
            self._patient = self._patient or isinstance(ending, ReplyFrame)
        self._wake.set()

    async def _send(self, member: _Member) -> None:
        left_s = member.until - asyncio.get_running_loop().time()
        try:
            await self._upstream.begin(member.frame, left_s, member, patient=self._patient)
        except Unavailable as error:
            self._patient = False
            member.is_done = True
            self._endings.append((member.index, error))
            return
        if not member.is_done:
            self._outstanding[member.frame.seq] = member
