"""From a command frame to its reply: find, authorise, parse, handle. Knows frames, not connections.

Strategy: `prepare` does what needs no waiting and returns either a finished reply or an awaitable that will be one. So
a command that reads memory is answered within the call that read its frame, and only what waits costs a task: one.

Rules:
- A read ends with its deadline or its client. What changes something is never torn apart: its handler is a task of the
  dispatcher's own, goes on when nobody waits for it any more, and only the answer is given up.
- This is the one place that turns an error into a reply. A fault of ours is logged with its stack, told as `internal`.
- A request whose key is in use by one that is not committed waits for that one. When its deadline comes first it is
  told `idempotency_in_progress`, which says more than that the deadline has passed.
- The daemon believes nobody about permissions: the same function that decided in the gateway decides here again.
- With `dry_run` the same is rehearsed (`flx_api.daemon.plans`), and the answer is a plan.
- Arguments are parsed here only, strictly, and all fields at fault are named at once (`models.arguments`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from flx_api.commands import Command, find
from flx_api.commands.permissions import authorise
from flx_api.daemon.handlers.context import Accepted, Context, Replay
from flx_api.daemon.handlers.idempotency import Replayed
from flx_api.daemon.plans import plan
from flx_api.daemon.principal import ANONYMOUS
from flx_api.daemon.trust import Gateway
from flx_api.errors import (
    Conflict,
    DeadlineExceeded,
    FlxError,
    Internal,
    InvalidRequest,
    Unauthenticated,
)
from flx_api.models.arguments import arguments
from flx_api.models.envelope import KEY_PATTERN, MADE_KEY
from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from flx_api.daemon.handlers.context import Handler, Outcome, Services
    from flx_api.daemon.principal import Principal
    from flx_api.daemon.trust import Caller
    from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame

# Who asks with which key.
_Keyed = tuple[str, str, str]

# What a loop's clock cannot tell apart.
_CLOCK_S: Final = 0.001

_IS_KEY = re.compile(KEY_PATTERN).fullmatch

log = structlog.stdlib.get_logger("flx.daemon")
_encode = msgspec.json.Encoder().encode


class Dispatcher:
    """Carries out commands.

    Args:
        services: what handlers work with.
        handlers: the function of each command.
    """

    def __init__(self, services: Services, handlers: Mapping[str, Handler]) -> None:
        self._services = services
        self._handlers = handlers
        self._changing: set[asyncio.Future[Outcome]] = set()
        self._keys: dict[_Keyed, int] = {}
        self.ends = Ends()

    def prepare(self, frame: CommandFrame, caller: Caller) -> ReplyFrame | Coroutine[Any, Any, ReplyFrame] | Change:
        """Begin a command: the reply, or what must be awaited for it, or a change that will tell it.

        Cancelling, or leaving the change, is giving the answer up.
        """
        try:
            command = find(frame.command)
            principal = caller.principal(frame.principal)
            if principal is None:
                if not command.public:
                    raise Unauthenticated()  # noqa: TRY301, RSE102 - one way out for all refusals
                principal = ANONYMOUS
            if frame.dry_run:
                return self._rehearse(frame, command, self._context(frame, command, principal, caller))
            authorise(command, principal.roles)
            context = self._context(frame, command, principal, caller)
            outcome = self._begin(command, context)
        except Exception as error:  # noqa: BLE001 - the border: whatever it is becomes a reply
            return failure(frame, error)
        if isinstance(outcome, (bytes, msgspec.Struct)):
            return _success(frame, outcome)
        if command.idempotency == "read":
            return self._finish(frame, outcome, context.deadline_us)
        return self._change(frame, outcome, context)

    def _begin(self, command: Command, context: Context) -> Outcome | Awaitable[Outcome]:
        return self._handlers[command.name](context, arguments(command.args, context.raw_args))

    def _rehearse(self, frame: CommandFrame, command: Command, context: Context) -> Coroutine[Any, Any, ReplyFrame]:
        planned = plan(command, context, lambda: self._begin(command, context))
        # It changes nothing, so it may be torn apart like a read.
        return self._finish(frame, planned, context.deadline_us)

    async def carry_out(self, frame: CommandFrame, caller: Caller) -> ReplyFrame:
        """A command from beginning to end."""
        found = self.prepare(frame, caller)
        if isinstance(found, ReplyFrame):
            return found
        if not isinstance(found, Change):
            return await found
        answer: asyncio.Future[ReplyFrame] = asyncio.get_running_loop().create_future()
        found.tell = partial(_resolve, answer)
        try:
            return await answer
        finally:
            found.leave()

    async def close(self, within_s: float) -> None:
        """Let what is being changed come to its end."""
        if self._changing:
            await asyncio.wait(self._changing, timeout=within_s)

    def _context(self, frame: CommandFrame, command: Command, principal: Principal, caller: Caller) -> Context:
        key: str = frame.idempotency_key
        if key and not _IS_KEY(key) and not (isinstance(caller, Gateway) and key.startswith(MADE_KEY)):
            detail = "The idempotency key is not 1 to 255 printable ASCII characters without a blank"
            raise InvalidRequest(detail)
        deadline_us = frame.deadline_unix_ms * 1000 or None
        if deadline_us is not None and deadline_us <= self._services.clock():
            raise DeadlineExceeded
        raw_args: bytes = frame.args or b"{}"
        return Context(
            principal=principal,
            services=self._services,
            idempotency_key=key or None,
            deadline_us=deadline_us,
            request_id=frame.request_id,
            environment=frame.environment or None,
            dry_run=frame.dry_run,
            wait_ms=frame.wait_ms,
            body_hash=_body_hash(command.name, frame.environment, raw_args) if key else "",
            client_address=frame.client_address if caller.address is None else caller.address,
            raw_args=raw_args,
        )

    async def _finish(self, frame: CommandFrame, outcome: Awaitable[Outcome], deadline_us: int | None) -> ReplyFrame:
        """A read to its end, which is at the latest when nobody waits for it any more."""
        task = asyncio.ensure_future(outcome)
        try:
            await asyncio.wait((task,), timeout=self._left_s(deadline_us))
            return _told(frame, task) if task.done() else failure(frame, DeadlineExceeded())
        finally:
            task.cancel()

    def _change(self, frame: CommandFrame, outcome: Awaitable[Outcome], context: Context) -> Change:
        """A change under way."""
        task = asyncio.ensure_future(outcome)
        self._changing.add(task)
        keyed: _Keyed | None = None
        if context.idempotency_key is not None:
            keyed = (context.principal.tenant, context.principal.subject, context.idempotency_key)
            self._keys[keyed] = self._keys.get(keyed, 0) + 1
        change = Change(self, frame, keyed)
        left_s = self._left_s(context.deadline_us)
        if left_s is not None:
            self.ends.add(change, left_s)
        task.add_done_callback(change.over)
        return change

    def is_used_twice(self, keyed: _Keyed) -> bool:
        """Whether several requests with this key are under way."""
        return self._keys[keyed] > 1

    def forget(self, task: asyncio.Future[Outcome], keyed: _Keyed | None) -> None:
        """A change has come to its end."""
        self._changing.discard(task)
        if keyed is not None:
            left = self._keys.pop(keyed) - 1
            if left:
                self._keys[keyed] = left

    def _left_s(self, deadline_us: int | None) -> float | None:
        return None if deadline_us is None else (deadline_us - self._services.clock()) / 1_000_000


class Ends:
    """When those who wait for a change have waited long enough: one timer for all, at the first of these moments.

    Most changes are over long before, and a timer for each cost more than what else is done here for one.
    """

    def __init__(self) -> None:
        self._at_s: dict[Change, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, change: Change, left_s: float) -> None:
        """Give the change up by then, unless it is removed."""
        loop = asyncio.get_running_loop()
        at_s = self._at_s[change] = loop.time() + left_s
        if self._timer is not None and at_s < self._timer.when():
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_at(at_s, self._give_up)

    def remove(self, change: Change) -> None:
        """Nobody waits for it any more."""
        self._at_s.pop(change, None)

    def _give_up(self) -> None:
        loop = asyncio.get_running_loop()
        # A loop may call early, by as little as its clock can tell.
        now_s = loop.time() + _CLOCK_S
        for change in [change for change, at_s in self._at_s.items() if at_s <= now_s]:
            change.give_up()
        self._timer = loop.call_at(min(self._at_s.values()), self._give_up) if self._at_s else None


class Change:
    """A change under way, which goes on whoever waits for its answer.

    `tell` is called once, with the answer, or None when the change was torn apart after all; never within `prepare`.
    """

    __slots__ = ("_dispatcher", "_frame", "_keyed", "tell")

    def __init__(self, dispatcher: Dispatcher, frame: CommandFrame, keyed: _Keyed | None) -> None:
        self.tell: Callable[[ReplyFrame | None], None] | None = None
        self._dispatcher = dispatcher
        self._frame = frame
        self._keyed = keyed

    def leave(self) -> bool:
        """Give the answer up; whether it had not been told."""
        was_waited_for, self.tell = self.tell is not None, None
        self._dispatcher.ends.remove(self)
        return was_waited_for

    def over(self, task: asyncio.Future[Outcome]) -> None:
        """Its handler has come to its end."""
        self._dispatcher.forget(task, self._keyed)
        tell = self.tell
        if self.leave() and tell is not None:
            tell(None if task.cancelled() else _told(self._frame, task))
        elif not task.cancelled():
            # Looked at, so that an error which nobody waits for any more is not reported as forgotten.
            task.exception()

    def give_up(self) -> None:
        """Tell that the time is over, if nothing else was told."""
        tell = self.tell
        if self.leave() and tell is not None:
            waited = self._keyed is not None and self._dispatcher.is_used_twice(self._keyed)
            error = Conflict(code="idempotency_in_progress", retry_after_s=1) if waited else DeadlineExceeded()
            tell(failure(self._frame, error))


def _resolve(answer: asyncio.Future[ReplyFrame], reply: ReplyFrame | None) -> None:
    if answer.done():
        return
    if reply is None:
        answer.cancel()
    else:
        answer.set_result(reply)


def _told(frame: CommandFrame, task: asyncio.Future[Outcome]) -> ReplyFrame:
    """What came of a handler, as a reply."""
    try:
        return _success(frame, task.result())
    except Replayed as found:
        return _success(frame, Replay(*found.stored))
    except Exception as error:  # noqa: BLE001 - the border: whatever it is becomes a reply
        return failure(frame, error)


def _body_hash(command: str, environment: str, raw_args: bytes) -> str:
    """What a request asks, whatever its spaces and the order of its fields; other ways to it write them otherwise."""
    with contextlib.suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raw_args = msgspec.json.encode(msgspec.json.decode(raw_args), order="sorted")
    return hashlib.sha256(b"\0".join((command.encode(), environment.encode(), raw_args))).hexdigest()


def _success(frame: CommandFrame, outcome: Outcome) -> ReplyFrame:
    if isinstance(outcome, Accepted):
        return ReplyFrame(
            seq=frame.seq,
            result=_encode(outcome.result),
            accepted_id=outcome.execution_id,
            replayed=outcome.replayed,
        )
    if isinstance(outcome, Replay):
        return ReplyFrame(seq=frame.seq, result=outcome.result, accepted_id=outcome.execution_id or "", replayed=True)
    return ReplyFrame(seq=frame.seq, result=outcome if isinstance(outcome, bytes) else _encode(outcome))


def failure(frame: CommandFrame, error: Exception) -> ReplyFrame:
    """The reply to a command that failed; what is no `FlxError` is a fault of ours, and logged."""
    if not isinstance(error, FlxError):
        log.error(
            "a command failed by a fault of ours", command=frame.command, request_id=frame.request_id, exc_info=error
        )
        error = Internal()
    elif error.__cause__ is not None:
        log.warning("a command failed", command=frame.command, request_id=frame.request_id, exc_info=error.__cause__)
    return ReplyFrame(seq=frame.seq, code=error.code, problem=_encode(error.body))
