"""From a command's name and bytes to the daemon's reply: the phases authorise, dispatch and upstream, for every route.

Rules:
- The permission is checked before the command travels, and again by the daemon. A dry run travels whoever asks: the
  daemon's plan says whether it is permitted. What a gateway answers by itself it plans by itself.
- A command that changes something travels with a key: the client's, or one that is made here for this request alone.
- Reads of one principal that are the same may share an answer (`flx_api.upstream.flights`), those of a batch never.
- A caller that goes away while the daemon works is noticed (after a moment, since watching costs more than most
  commands take), and its pending entry is dropped; the daemon may still finish.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from flx_api.commands import COMMANDS
from flx_api.commands.permissions import authorise, decide, needed
from flx_api.commands.publishing import PUBLISH
from flx_api.errors import ErrorBody, FlxError
from flx_api.gateway.alarms import Alarms
from flx_api.gateway.intake import ClientGone
from flx_api.models.arguments import arguments
from flx_api.models.envelope import MADE_KEY, CommandOptions
from flx_api.models.plan import Plan, refused
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, ReplyFrame
from flx_api.proto.flx.v1.daemon_pb2 import Principal as FramePrincipal
from flx_api.upstream.flights import Flights, Question

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from flx_api._core import PlainCommand, Principal
    from flx_api.commands import Command
    from flx_api.gateway.costs import Costs
    from flx_api.gateway.exchange import Exchange
    from flx_api.observability.metrics import Metrics
    from flx_api.upstream.channel import Upstream

NO_OPTIONS: Final = CommandOptions()
_WATCH_AFTER_S: Final = 0.25
_WAIT_MARGIN_MS: Final = 5_000
_KEYED: Final = frozenset({"key", "idempotent"})
WAIT: Final = "execution.wait"
# An echo is asked for to see the way there and back, so it always goes it. What waits by nature waits for one caller.
SHARED: Final = frozenset(
    command.name
    for command in COMMANDS.values()
    if command.idempotency == "read" and command.name not in {"system.echo", WAIT}
)
_error_body = msgspec.json.Decoder(ErrorBody)


class _Patience(msgspec.Struct):
    """How long a command that waits by nature was asked to wait."""

    timeout_ms: int = 30_000


class Publisher(Protocol):
    """What answers `event.publish` for some topics in the daemon's place."""

    def has(self, args: bytes) -> bool:
        """Whether it does for these arguments."""
        ...

    async def publish(self, principal: Principal | None, args: bytes) -> bytes:
        """Publish; the result. Raises FlxError."""
        ...


class Dispatcher:
    """The way of a command through this worker.

    Args:
        upstream: the daemon.
        deadline_ms: of a command that names none.
        costs: what commands cost, for plans.
        metrics: where it is told what was shared.
        publishers: what publishes in the daemon's place; the first that has the event does.
        own: commands that a gateway answers by itself, out of the arguments as the command's struct.
        completes: commands whose result of the daemon a gateway completes, out of the same and that result.
    """

    def __init__(
        self,
        upstream: Upstream,
        deadline_ms: int,
        costs: Costs,
        metrics: Metrics,
        *,
        publishers: Sequence[Publisher] = (),
        own: Mapping[str, Callable[[Principal | None, Any], Awaitable[msgspec.Struct]]] | None = None,
        completes: Mapping[str, Callable[[Principal | None, Any, bytes], Awaitable[msgspec.Struct]]] | None = None,
    ) -> None:
        self._upstream = upstream
        self.flights = Flights(partial(upstream.call, read=True), metrics)
        self._deadline_ms = deadline_ms
        self.alarms = Alarms(_WATCH_AFTER_S)
        self._publishers = publishers
        self._own = own or {}
        self._completes = completes or {}
        self.costs = costs

    @property
    def special(self) -> frozenset[str]:
        """The commands that a gateway has a part in, beyond passing them on."""
        return frozenset(self._own) | frozenset(self._completes)

    async def run(
        self, exchange: Exchange, command: Command, args: bytes, options: CommandOptions = NO_OPTIONS
    ) -> ReplyFrame:
        """Carry a command out.

        Raises:
            FlxError: whatever the gateway or the daemon has against it.
            ClientGone: nobody waits any more.
        """
        principal = exchange.principal
        if not options.dry_run:
            authorise(command, principal.roles if principal is not None else ())
        exchange.passed("authorise")
        if command.name == PUBLISH and not options.dry_run:
            publisher = next((publisher for publisher in self._publishers if publisher.has(args)), None)
            if publisher is not None:
                exchange.passed("dispatch")
                with self.watch(exchange):
                    return ReplyFrame(result=await publisher.publish(principal, args))
        own = self._own.get(command.name)
        if own is not None:
            exchange.passed("dispatch")
            with self.watch(exchange):
                answer = partial(_answer, own, principal, command, args)
                found = await (self._planned(exchange, command, answer) if options.dry_run else answer())
            return ReplyFrame(result=msgspec.json.encode(found))
        frame, deadline_s = self.frame(frame_of(exchange), command, args, options)
        exchange.passed("dispatch")
        with self.watch(exchange):
            if command.name in SHARED and not options.dry_run and not options.wait_ms:
                question = Question(principal, command.name, args, options.environment)
                reply = await self.flights.read(question, frame, deadline_s)
            else:
                reply = await self._upstream.call(frame, deadline_s, read=reads(command, options))
        exchange.passed("upstream")
        if reply.code:
            raise error_of(reply)
        complete = self._completes.get(command.name)
        if options.dry_run:
            reply.result = self.costs.told(reply.result, exchange.admitted.route, command.name)
        elif complete is not None:
            whole = await complete(principal, arguments(command.args, args or b"{}"), reply.result)
            reply.result = msgspec.json.encode(whole)
        return reply

    async def _planned(
        self, exchange: Exchange, command: Command, answer: Callable[[], Awaitable[msgspec.Struct]]
    ) -> Plan:
        """The plan of a command that is answered here: all of them are reads, so it is answered, and that dropped."""
        principal = exchange.principal
        permission = decide(command, principal.roles if principal is not None else ())
        limits = self.costs.of(exchange.admitted.route, command.name)
        try:
            if not permission.allowed:
                raise needed(command)
            await answer()
        except FlxError as error:
            return msgspec.structs.replace(refused(command.name, permission, error), limits=limits)
        return Plan(command=command.name, outcome="ok", permission=permission, limits=limits)

    async def send(self, exchange: Exchange, command: PlainCommand) -> ReplyFrame:
        """Carry out a command that was found to be plain and permitted.

        Raises:
            FlxError: whatever the gateway or the daemon has against it.
            ClientGone: nobody waits any more.
        """
        with self.watch(exchange):
            if command.shared:
                question = question_of(exchange.principal, command)
                reply = await self.flights.read(question, command, command.deadline_s)
            else:
                reply = await self._upstream.call(command, command.deadline_s, read=command.reads)
        return reply

    def watch(self, exchange: Exchange) -> Watch:
        """What ends the body of a `with` when the client goes away meanwhile."""
        return Watch(exchange, self.alarms)

    def frame(
        self, frame: CommandFrame, command: Command, args: bytes, options: CommandOptions
    ) -> tuple[CommandFrame, float]:
        """A frame that knows its request gets its command; and the seconds after which nobody waits for its reply."""
        deadline_ms = self._deadline_of(command, args, options)
        frame.command = command.name
        frame.args = args
        frame.deadline_unix_ms = int(time.time() * 1000) + deadline_ms
        # Most commands come without options, and a field that is not set costs nothing.
        if options.idempotency_key is not None:
            frame.idempotency_key = options.idempotency_key
        elif command.idempotency in _KEYED and not options.dry_run:
            # What may leave twice, because a connection broke, must not happen twice.
            frame.idempotency_key = MADE_KEY + os.urandom(16).hex()
        if options.environment is not None:
            frame.environment = options.environment
        if options.dry_run:
            frame.dry_run = True
        if options.wait_ms:
            frame.wait_ms = options.wait_ms
        return frame, deadline_ms / 1000

    def _deadline_of(self, command: Command, args: bytes, options: CommandOptions) -> int:
        if options.deadline_ms is not None:
            return options.deadline_ms
        patience = options.wait_ms or 0
        if command.name != WAIT and not patience:
            return self._deadline_ms
        if command.name == WAIT:
            try:
                patience = msgspec.json.decode(args, type=_Patience).timeout_ms
            except msgspec.DecodeError:
                patience = 0
        return max(self._deadline_ms, min(patience, 600_000) + _WAIT_MARGIN_MS)


async def _answer(
    own: Callable[[Principal | None, Any], Awaitable[msgspec.Struct]],
    principal: Principal | None,
    command: Command,
    args: bytes,
) -> msgspec.Struct:
    return await own(principal, arguments(command.args, args or b"{}"))


def reads(command: Command, options: CommandOptions) -> bool:
    """Whether the command changes nothing, so that it may be sent again and given up at any time."""
    return options.dry_run or command.idempotency == "read"


class Watch:
    """Looks whether the client is still there, and ends what is done within it when it is not: raises ClientGone."""

    __slots__ = ("_alarms", "_caller", "_exchange", "_is_gone", "_task")

    def __init__(self, exchange: Exchange, alarms: Alarms) -> None:
        self._exchange = exchange
        self._alarms = alarms
        self._caller = alarms.task()
        self._task: asyncio.Task[None] | None = None
        self._is_gone = False

    def __enter__(self) -> None:
        """Begin to look, after a moment."""
        self._alarms.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look no more."""
        self._alarms.clear(self)
        if self._task is not None:
            self._task.cancel()
        if self._is_gone and isinstance(error, asyncio.CancelledError):
            raise ClientGone from None

    def ring(self) -> None:
        """Now it takes long enough to look."""
        self._task = asyncio.create_task(self._run(), name="disconnect-watch")

    async def _run(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        if self._caller is not None:
            self._is_gone = True
            self._caller.cancel()


def question_of(principal: Principal | None, command: PlainCommand) -> Question:
    """What a plain command asks, for those that ask the same."""
    return Question(principal, command.command, command.args, command.environment)


def frame_of(exchange: Exchange) -> CommandFrame:
    """What every frame of a request says: who asks, from where, and in which request."""
    return CommandFrame(
        principal=frame_principal(exchange.principal),
        request_id=exchange.request_id,
        traceparent=exchange.headers.get(b"traceparent", b"").decode("ascii", "replace"),
        client_address=exchange.client,
    )


# There is one object for each token that is remembered. A frame takes a copy of what is made of it.
@lru_cache(maxsize=4096)
def frame_principal(principal: Principal | None) -> FramePrincipal | None:
    """A principal as a frame names it; None for a public command."""
    if principal is None:
        return None
    return FramePrincipal(
        subject=principal.subject,
        tenant=principal.tenant or "",
        roles=principal.roles,
        token_id=principal.token_id or "",
        session=principal.session or "",
        expires_at=max(principal.expires_at, 0),
    )


def error_of(reply: ReplyFrame) -> FlxError:
    """What the daemon has against a command."""
    try:
        return FlxError.from_body(_error_body.decode(reply.problem))
    except msgspec.DecodeError:
        return FlxError.from_body(ErrorBody(reply.code, ""))
