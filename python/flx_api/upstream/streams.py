"""Which stream a command leaves on, and whether it may leave at all.

Strategy: of the streams that take commands, the one with the fewest outstanding; those that have equally few take
turns. Where load is shed, its daemon must let the command in (`shedding`), or else another daemon that does; when none
does, the command is refused at once.

Rules:
- What keeps a connection alive, and what waits by nature, always leaves.
- A refusal says whether there is too much to do or nobody who answers, and when to come again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flx_api.commands import VITAL
from flx_api.errors import Unavailable
from flx_api.upstream.breaker import State
from flx_api.upstream.shedding import Loads

if TYPE_CHECKING:
    from flx_api.observability.metrics import PoolState
    from flx_api.upstream.concurrency import Sort
    from flx_api.upstream.connection import Carrier
    from flx_api.upstream.shedding import Passage

_RETRY_AFTER_S: Final = 1.0


class Overloaded(Unavailable):
    """Nothing was sent: no daemon lets the command in."""

    default_code = "overloaded"


class Streams:
    """The streams of one upstream that take commands.

    Args:
        sheds: whether load is shed.
    """

    def __init__(self, *, sheds: bool) -> None:
        self.ready: list[Carrier] = []
        self._sheds = sheds
        self._loads = Loads()

    def add(self, carrier: Carrier, now_s: float) -> None:
        """It takes commands from now on."""
        carrier.load = self._loads.of(carrier.connection.place, now_s)
        self.ready.append(carrier)
        carrier.is_ready = True

    def told(self, state: PoolState, daemon: int) -> PoolState:
        """The numbers of one daemon of the configuration, with what its addresses bear."""
        loads = self._loads.of_daemon(daemon)
        is_open = sum(load.state is not State.CLOSED for load in loads)
        return state._replace(limit=sum(load.limit for load in loads), open=is_open)

    @property
    def grouped(self) -> int | None:
        """How many commands of batches may be outstanding now; None: as many as like."""
        if not self._sheds or not self.ready:
            return None
        if len(self.ready) == 1:
            return self.ready[0].load.grouped
        return sum(load.grouped for load in {carrier.load for carrier in self.ready})

    @property
    def largest_group(self) -> int | None:
        """How many commands of batches one daemon may have, were nothing else; None: as many as like.

        0: none lets any in now.
        """
        if not self._sheds and self.ready:
            return None
        return max((it.load.grouped for it in self.ready if it.load.state is State.CLOSED), default=0)

    def with_room(self, count: int, turn: int) -> Carrier | None:
        """A stream on which so many commands of batches may leave together: that with the fewest outstanding, if it may
        be that; None when there is none.
        """
        able = [it for it in self.ready if it.outbox is not None and (not self._sheds or it.load.room >= count)]
        if not able:
            return None
        first = self.least(turn)
        return first if first in able else able[0]

    def choose(
        self, command: str, turn: int, now_s: float, *, sort: Sort | None, avoid: object = None
    ) -> tuple[Carrier, Passage | None]:
        """A stream, of which there is one at least.

        Args:
            command: the name of what is to be sent.
            turn: a number that grows.
            now_s: the moment.
            sort: what it is when it comes to room, but for being vital; None: it is none of what load is made of.
            avoid: a place to keep away from, if there is another.

        Raises:
            Overloaded: no daemon lets it in.
        """
        ready = self.ready
        first = ready[0] if len(ready) == 1 else self.least(turn, avoid)
        if sort is None or not self._sheds:
            return first, None
        if command in VITAL:
            sort = "vital"
        passage = first.load.enter(command, now_s, sort)
        if passage is not None:
            return first, passage
        for carrier in sorted(ready, key=lambda carrier: carrier.outstanding):
            if carrier.load is not first.load:
                passage = carrier.load.enter(command, now_s, sort)
                if passage is not None:
                    return carrier, passage
        raise self._refusal(now_s)

    def least(self, turn: int, avoid: object = None) -> Carrier:
        """The stream with the fewest outstanding, of which there is one at least."""
        ready = self.ready
        if avoid is not None:
            ready = [carrier for carrier in ready if carrier.connection.place != avoid] or ready
        least = ready[turn % len(ready)]
        for carrier in ready:
            if carrier.outstanding < least.outstanding:
                least = carrier
        return least

    def _refusal(self, now_s: float) -> Overloaded:
        loads = {carrier.load for carrier in self.ready}
        if any(load.state is State.CLOSED for load in loads):
            return Overloaded(retry_after_s=_RETRY_AFTER_S)
        detail = "The daemon did not answer lately"
        wait_s = min(load.retry_after_s(now_s) for load in loads)
        return Overloaded(detail, code="upstream_unavailable", retry_after_s=max(wait_s, _RETRY_AFTER_S))
