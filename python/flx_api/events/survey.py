"""Questions to all gateways: each answers of what it alone knows, and the one that asks collects.

Strategy: a question goes to everybody by the bus, with a number of the asker's; answers come back by the bus and name
whom they are for. The asker waits until all gateways that it knows have answered, but no longer than `ANSWER_S`, and
then says which have not. Who is there, each says every few seconds (`flx_api.events.members`), and when somebody new
asks.

Rules:
- The question itself has to come back by the bus: otherwise nobody knows whom it reached, and the answer is not whole.
- A gateway that does not know a command does not answer; it is told as silent, as one that is cut off.
- What is only to be told, and not answered, is kept until the bus takes it: at most `MAX_KEPT` of it.
- Nothing of this is for clients, and whoever may ask was decided before.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import structlog

from flx_api.errors import FlxError, Unavailable
from flx_api.events.members import ALIVE_S, Members
from flx_api.models.connection import GatewayProcess
from flx_api.models.event import SURVEY_EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flx_api.events.bus import Bus

    Answerer = Callable[[str, msgspec.Raw], Any]
    """Takes tenant and JSON; what is to be answered, as anything that becomes JSON."""

ANSWER_S: Final = 0.5
MAX_OPEN: Final = 64
MAX_KEPT: Final = 256
_AGAIN_S: Final = 0.25
_BYE_S: Final = 0.5


class Message(msgspec.Struct, frozen=True, array_like=True):
    """What a gateway says to the others.

    `kind`: `here` and `bye` are about itself (with `asks` all others are to say that they are there); `ask`, `answer`
    and `tell` about a command. One of another kind, of a later version, says only that its gateway is there.
    """

    gateway: GatewayProcess
    kind: str
    asks: bool = False
    to: str = ""
    question: int = 0
    command: str = ""
    tenant: str = ""
    body: msgspec.Raw = msgspec.Raw(b"null")


class Answers(NamedTuple):
    """What came back: JSON by gateway, this one included; who did not answer; and whether all did, as far as known."""

    by_gateway: dict[str, bytes]
    silent: tuple[GatewayProcess, ...]
    is_whole: bool


class _Question:
    """A question that is under way."""

    __slots__ = ("answers", "came_back", "done")

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.came_back = False
        self.done = asyncio.Event()


_message = msgspec.json.Decoder(Message)
_encode = msgspec.json.Encoder().encode
_log = structlog.get_logger("flx.events")


class Survey:
    """Questions of one gateway, and its answers to those of others.

    Args:
        bus: carries what gateways tell one another.
        me: this gateway.
        answerers: by command; those of `tell` too.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        bus: Bus,
        me: GatewayProcess,
        answerers: Mapping[str, Answerer],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self.me = me
        self._answerers = answerers
        self._clock = clock
        self.members = Members(me.id)
        self._numbers = itertools.count(1)
        self._open: dict[int, _Question] = {}
        self._kept: deque[tuple[str, str, msgspec.Raw]] = deque(maxlen=MAX_KEPT)
        self._answering: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._must_ask = True
        self._task: asyncio.Task[None] | None = None
        self._is_over = False

    def start(self) -> None:
        """Be there for the others."""
        self._task = asyncio.create_task(self._run(), name="survey")

    async def close(self) -> None:
        """Say goodbye and stop."""
        if self._task is None:
            return
        # Whatever it said after its goodbye would make others wait for it.
        self._is_over = True
        tasks = [self._task, *self._answering]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The others find out by themselves, if they are not told.
        with contextlib.suppress(TimeoutError, FlxError):
            async with asyncio.timeout(_BYE_S):
                await self._say("bye")

    # --- asking ------------------------------------------------------------------------------------------------------

    async def ask(self, command: str, tenant: str, body: msgspec.Struct) -> Answers:
        """Ask all gateways; this one too, at once.

        Raises:
            Unavailable: too many questions are under way.
            FlxError: what this gateway itself has against the question.
        """
        if len(self._open) >= MAX_OPEN:
            raise Unavailable(code="overloaded", retry_after_s=1)
        raw = msgspec.Raw(_encode(body))
        number, question = next(self._numbers), _Question()
        question.answers[self.me.id] = bytes(self._answer(command, tenant, raw))
        self._open[number] = question
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._say("ask", question=number, command=command, tenant=tenant, body=raw)
                await question.done.wait()
        except (TimeoutError, FlxError):
            pass  # what is missing is in the answer
        finally:
            del self._open[number]
        silent = tuple(process for id_, process in self.members.others.items() if id_ not in question.answers)
        return Answers(question.answers, silent, question.came_back and not silent)

    def tell(self, command: str, tenant: str, body: msgspec.Struct) -> None:
        """Tell all other gateways, as soon as the bus takes it."""
        self._kept.append((command, tenant, msgspec.Raw(_encode(body))))
        self._wake.set()

    # --- hearing -----------------------------------------------------------------------------------------------------

    def take(self, data: bytes) -> None:
        """A gateway said something."""
        if self._is_over:
            return
        told = _message.decode(data)
        mine = told.gateway.id == self.me.id
        if told.kind == "bye":
            self.members.leave(told.gateway.id)
        else:
            self.members.hear(told.gateway, self._clock())
        if told.kind == "ask" and mine:
            question = self._open.get(told.question)
            if question is not None:
                question.came_back = True
        elif told.kind == "answer" and told.to == self.me.id:
            question = self._open.get(told.question)
            if question is not None:
                question.answers[told.gateway.id] = bytes(told.body)
        elif not mine:
            self._react(told)
        self._look()

    def lose(self) -> None:
        """What gateways said may be missing."""
        self.members.lose(self._clock())
        self._must_ask = True
        self._wake.set()

    def _look(self) -> None:
        """End what has all its answers."""
        if not self._open or not self.members.is_settled(self._clock()):
            return
        expected = self.members.others.keys()
        for question in self._open.values():
            if question.came_back and expected <= question.answers.keys():
                question.done.set()

    def _react(self, told: Message) -> None:
        if told.kind == "here" and told.asks:
            self._wake.set()
        elif told.kind in {"ask", "tell"} and told.command in self._answerers:
            try:
                body = self._answer(told.command, told.tenant, told.body)
            except Exception:  # noqa: BLE001 - said and logged; who hears the bus has to go on
                _log.exception("survey.no_answer", command=told.command)
                return
            if told.kind == "ask" and len(self._answering) < MAX_OPEN:
                answer = self._say_later(
                    "answer", to=told.gateway.id, question=told.question, command=told.command, body=body
                )
                task = asyncio.create_task(answer, name="survey-answer")
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)

    def _answer(self, command: str, tenant: str, body: msgspec.Raw) -> msgspec.Raw:
        return msgspec.Raw(_encode(self._answerers[command](tenant, body)))

    # --- saying ------------------------------------------------------------------------------------------------------

    async def _say(self, kind: str, **more: Any) -> None:  # noqa: ANN401 - the members of a message
        await self._bus.publish("", SURVEY_EVENTS, _encode(Message(self.me, kind, **more)))

    async def _say_later(self, kind: str, **more: Any) -> None:  # noqa: ANN401 - as above
        with contextlib.suppress(FlxError):
            # Who does not hear it says so.
            await self._say(kind, **more)

    async def _run(self) -> None:
        while True:
            pause_s = ALIVE_S
            try:
                await self._turn()
            except FlxError:
                pause_s = _AGAIN_S
            except Exception:  # noqa: BLE001 - said and logged; the task goes on
                _log.exception("survey.unexpected")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
                # Many that are new at once get one answer.
                await asyncio.sleep(0)
            self._wake.clear()

    async def _turn(self) -> None:
        while self._kept:
            kept = command, tenant, body = self._kept.popleft()
            try:
                await self._say("tell", command=command, tenant=tenant, body=body)
            except FlxError:
                self._kept.appendleft(kept)
                raise
        asks, self._must_ask = self._must_ask, False
        try:
            await self._say("here", asks=asks)
        except BaseException:
            self._must_ask |= asks
            raise
        self.members.expire(self._clock())
