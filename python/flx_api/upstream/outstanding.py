"""What is outstanding: every command that was sent and has not come to its end, on all streams of an upstream.

Strategy: one table by `seq`. An entry stands for a caller, who is told how it ended, until `end`; or, once its caller
has left, for the credit that it still holds. There is no timer for a command: one sweep ends all whose time is over,
and it runs only while there is something to sweep.

Rules:
- A reply counts only on the stream that its command left on.
- A caller that goes away takes its entry with it, and the daemon is told: it ends what is only read. Its credit comes
  back with the reply, which is dropped, its deadline or the stream's end: until then the command is outstanding.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from flx_api.errors import DeadlineExceeded
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame
from flx_api.upstream.pending import Pending, StreamLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
    from flx_api.upstream.connection import Carrier
    from flx_api.upstream.pending import Kind

SWEEP_EVERY_S: Final = 0.1
# The daemon knows the deadline too and its answer is better than ours, so ours comes a little later.
DEADLINE_GRACE_S: Final = 0.25


class Outstanding:
    """Nothing is, at first.

    Args:
        freed: told when something is over, with the kind of what it held; None: it held nothing.
        jitter: a number in [0, 1) at each call.
    """

    def __init__(self, freed: Callable[[Kind | None], None], jitter: Callable[[], float]) -> None:
        self.pending: dict[int, Pending] = {}
        self.abandoned: dict[int, Pending] = {}
        # Replies on a stream where nobody had asked.
        self.foreign = 0
        self._freed = freed
        self._jitter = jitter
        self._sweeper: asyncio.TimerHandle | None = None
        # Asking for the running loop is a system call (Python 3.11), and this is on every command's way.
        self.loop: asyncio.AbstractEventLoop
        self.now: Callable[[], float] = lambda: asyncio.get_running_loop().time()

    def start(self) -> None:
        """Belong to the loop that runs."""
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time

    def close(self) -> None:
        """Sweep no more."""
        if self._sweeper is not None:
            self._sweeper.cancel()

    def put(self, seq: int, pending: Pending) -> None:
        """A command is about to leave."""
        self.pending[seq] = pending
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep)

    def end(self, seq: int) -> None:
        """A reply has come, or never will."""
        ended = self.pending.pop(seq)
        if ended.carrier is not None and ended.passage is not None and ended.passage.is_over:
            # The usual case of `_done`, without a call.
            ended.carrier.outstanding -= 1
            self._freed(ended.kind)
        else:
            self._done(ended)

    def abandon(self, seq: int) -> None:
        """Nobody waits for a reply any more, but the daemon works on the command, until it hears of that."""
        ended = self.pending.pop(seq)
        if ended.kind is None or ended.carrier is None:
            self._done(ended)
            return
        self.abandoned[seq] = ended
        if ended.carrier.is_ready and ended.carrier.outbox is not None:
            ended.carrier.outbox.put(CommandFrame(seq=seq, cancel=True))

    def replies(self, carrier: Carrier, frames: Iterable[ReplyFrame]) -> None:
        """These came on a stream."""
        now, table = self.now(), self.pending
        for reply in frames:
            seq = reply.seq
            pending = table.get(seq)
            if pending is None:
                self._forget(seq, carrier)
                continue
            if pending.carrier is not carrier:
                # An answer to what was not asked there is nobody's.
                self.foreign += 1
                continue
            if pending.passage is not None:
                pending.passage.answered(now)
            if not pending.reply.done():
                pending.reply.set_result(reply)
            else:
                # Its caller is just leaving: what it abandons is over.
                pending.deadline = 0.0

    def lost(self, carrier: Carrier, detail: str, code: str, *, broke: bool) -> None:
        """A stream has ended; no more replies come on it.

        Args:
            carrier: the stream.
            detail: what those who wait are told.
            code: the same as a code.
            broke: whether that says something about the daemon.
        """
        now, under_way = self.now(), (*self.pending.values(), *self.abandoned.values())
        passages = [one.passage for one in under_way if one.carrier is carrier and one.passage is not None]
        for passage in passages:
            passage.lost()
        if passages and broke:
            carrier.load.broke(now, self._jitter())
        for seq in [seq for seq, abandoned in self.abandoned.items() if abandoned.carrier is carrier]:
            self._forget(seq, carrier)
        # A copy: what has no task leaves the table as soon as it is told.
        for pending in [pending for pending in self.pending.values() if pending.carrier is carrier]:
            if not pending.reply.done():
                lost = StreamLost(detail, code=code, retry_after_s=1)
                lost.place = carrier.connection.place
                pending.reply.set_exception(lost)

    def _done(self, ended: Pending) -> None:
        """The daemon is done with a command, or it will never be known."""
        if ended.carrier is not None:
            ended.carrier.outstanding -= 1
        if ended.passage is not None and not ended.passage.is_over:
            ended.passage.unanswered(self.now(), self._jitter())
        self._freed(ended.kind)

    def _forget(self, seq: int, carrier: Carrier) -> None:
        """The daemon is done with a command that nobody waits for."""
        abandoned = self.abandoned.get(seq)
        if abandoned is not None and abandoned.carrier is carrier:
            del self.abandoned[seq]
            if abandoned.passage is not None:
                # It was cut short, and so says nothing about how long such a command takes.
                abandoned.passage.lost()
            self._done(abandoned)

    def _sweep(self) -> None:
        """End the calls whose time is over; runs only while something is pending."""
        self._sweeper = None
        now = self.now()
        # A copy: what has no task leaves the table as soon as it is told.
        for pending in list(self.pending.values()):
            if pending.deadline <= now and not pending.reply.done():
                pending.reply.set_exception(DeadlineExceeded())
        # The daemon gives up at the same deadline.
        for seq in [seq for seq, abandoned in self.abandoned.items() if abandoned.deadline <= now]:
            self._done(self.abandoned.pop(seq))
        if self.pending or self.abandoned:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep)
