"""Single flight: when many ask for the same at once, few commands travel, and each answer serves many.

Strategy: up to `WIDTH` reads of one kind travel as if there were no others. Whoever asks for the same while so many are
in the air waits for the first of them to land; then one command takes off for all who have come until then. So nobody
is answered with what was read before they asked, as would be who joins a flight in the air: a client that has just
changed something sees it. There is no task: of those who wait, the first one carries the command of all.

Rules:
- The same are two reads of one principal as the daemon sees it (its roles and its session included), with the same
  command, arguments and environment. Others never share anything.
- A flight that fails fails for those it was for. But the time and the patience of its leader are its own: when it
  leaves, or its deadline comes, another one leads.
- Each one waits until its own deadline.
- At most `MOST_WAITING` wait, and arguments are at most `LARGEST` bytes: what is beyond travels alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from flx_api.errors import DeadlineExceeded, FlxError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api._core import Principal
    from flx_api.observability.metrics import Metrics
    from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
    from flx_api.upstream.pending import Frame

WIDTH: Final = 4
MOST_WAITING: Final = 4096
LARGEST: Final = 4096


class Question(NamedTuple):
    """What makes two reads the same."""

    principal: Principal | None
    command: str
    args: bytes
    environment: str | None


class _Group(list["asyncio.Future[ReplyFrame | FlxError | _Group]"]):
    """Those who wait for one answer. Each of them is told the answer, or that it is to fly for the rest."""


class _Sky:
    """The flights of one question: how many are in the air, and who waits for the next."""

    __slots__ = ("flying", "waiting")

    def __init__(self) -> None:
        self.flying = 1
        self.waiting = _Group()


class Flights:
    """The reads under way.

    Args:
        call: sends a frame, with the seconds it has.
        metrics: where it is told how many got the answer of another one.
        width: how many of one kind may be in the air.
    """

    def __init__(
        self, call: Callable[[Frame, float], Awaitable[ReplyFrame]], metrics: Metrics, width: int = WIDTH
    ) -> None:
        self._call = call
        self._metrics = metrics
        self._width = width
        self._skies: dict[Question, _Sky] = {}
        self._waiting = 0

    async def read(self, question: Question, frame: Frame, deadline_s: float) -> ReplyFrame:
        """Send a command that changes nothing, or share the answer of another one.

        Args:
            question: what is the same for all who may share.
            frame: the command.
            deadline_s: seconds from now after which nobody waits any more.

        Raises:
            FlxError: whatever became of the command.
        """
        sky = self._skies.get(question)
        if sky is None:
            if len(question.args) > LARGEST:
                return await self._call(frame, deadline_s)
            sky = self._skies[question] = _Sky()
        elif sky.flying < self._width:
            sky.flying += 1
        elif self._waiting >= MOST_WAITING:
            return await self._call(frame, deadline_s)
        else:
            return await self._wait(question, sky, frame, deadline_s)
        return await self._fly(question, sky, _Group(), frame, deadline_s)

    def take_off(self, question: Question) -> bool:
        """Whether a read may fly at once, by itself; who is told so says `landed` when it is over, however it ended."""
        sky = self._skies.get(question)
        if sky is None:
            if len(question.args) > LARGEST:
                return False
            self._skies[question] = _Sky()
            return True
        if sky.flying >= self._width:
            return False
        sky.flying += 1
        return True

    def landed(self, question: Question) -> None:
        """A read that has taken off is over."""
        self._land(question, self._skies[question], _Group())

    async def _wait(self, question: Question, sky: _Sky, frame: Frame, deadline_s: float) -> ReplyFrame:
        """Wait for an answer that somebody else gets, or for the turn to get it."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + deadline_s
        turn: asyncio.Future[ReplyFrame | FlxError | _Group] = loop.create_future()
        timer = loop.call_later(deadline_s, _too_late, turn)
        sky.waiting.append(turn)
        self._waiting += 1
        try:
            told = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and isinstance(group := turn.result(), _Group):
                self._land(question, sky, group)
            raise
        finally:
            timer.cancel()
            self._waiting -= 1
        if isinstance(told, _Group):
            return await self._fly(question, sky, told, frame, until_s - loop.time())
        if isinstance(told, FlxError):
            # Each its own: an exception that is raised remembers where.
            raise FlxError.from_body(told.body)
        self._metrics.reads_shared += 1
        return told

    async def _fly(self, question: Question, sky: _Sky, group: _Group, frame: Frame, deadline_s: float) -> ReplyFrame:
        """Get the answer, for the group too."""
        try:
            answer = await self._call(frame, deadline_s)
        except DeadlineExceeded:
            raise
        except FlxError as error:
            group = _tell(group, error)
            raise
        else:
            # The daemon says so a little sooner than the gateway does.
            if answer.code != DeadlineExceeded.default_code:
                group = _tell(group, answer)
            return answer
        finally:
            self._land(question, sky, group)

    def _land(self, question: Question, sky: _Sky, unanswered: _Group) -> None:
        """A flight is over. The next one takes off, for those who were not answered and those who came meanwhile."""
        unanswered.extend(sky.waiting)
        sky.waiting = _Group()
        while unanswered:
            leader = unanswered.pop(0)
            if not leader.done():
                leader.set_result(unanswered)
                return
        sky.flying -= 1
        if not sky.flying:
            del self._skies[question]


def _tell(group: _Group, answer: ReplyFrame | FlxError) -> _Group:
    """Give an answer to all who wait for it; who is left then: nobody."""
    for turn in group:
        if not turn.done():
            turn.set_result(answer)
    return _Group()


def _too_late(turn: asyncio.Future[ReplyFrame | FlxError | _Group]) -> None:
    if not turn.done():
        turn.set_result(DeadlineExceeded())
