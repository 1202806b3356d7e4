"""The gRPC service: streams in, streams out; everything else is decided behind it.

Rules:
- `Execute` answers with gRPC status OK even when the command failed: the error is a code and a problem in the reply,
  as in `ExecuteBatch` and on the Channel, so that a client reads errors in one way and gets fields, suggestions and
  retry times, which a gRPC status cannot carry. Only what is wrong with the call itself is a status: a token that is
  not acceptable, a message that cannot be read or is too large.
- Every service stands behind the guard of `limits`.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.health.check import ServiceStatus
from grpclib.health.service import Health
from grpclib.reflection.service import ServerReflection

from flx_api.commands import COMMANDS
from flx_api.commands.permissions import authorise
from flx_api.daemon.batch import fault, replies
from flx_api.daemon.channel import CommandChannel, bearable
from flx_api.daemon.limits import Guarded
from flx_api.daemon.trust import Gateway, Nobody
from flx_api.daemon.watch import Pages, Watcher, log_batches
from flx_api.errors import FlxError, Unauthenticated
from flx_api.models.event import SUBJECT_PREFIX
from flx_api.models.topic_rules import rule_of
from flx_api.proto.buffer import MAX_MESSAGE_BYTES
from flx_api.proto.flx.v1.daemon_grpc import DaemonBase
from flx_api.proto.flx.v1.daemon_pb2 import Revocation, RevocationBatch, TellReply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from grpclib.server import Stream

    from flx_api.daemon.dispatch import Dispatcher
    from flx_api.daemon.handlers.context import Services
    from flx_api.daemon.principal import Principal
    from flx_api.daemon.trust import Caller, Trust
    from flx_api.models.auth import Revocation as KnownRevocation
    from flx_api.models.topic_rules import TopicRule
    from flx_api.proto.flx.v1.daemon_pb2 import (
        BatchFrame,
        CommandBatch,
        CommandFrame,
        EventBatch,
        LogBatch,
        LogRequest,
        ReplyBatch,
        ReplyFrame,
        RevocationsRequest,
        TellRequest,
        WatchRequest,
    )

_LOGS = COMMANDS["execution.logs"]
# How often a stream of a client with its own token looks whether that has ended.
_TOKEN_CHECK_S = 5.0


class DaemonService(DaemonBase):
    """The service `flx.v1.Daemon`.

    Args:
        services: journal, executions and revocations, for the streams.
        dispatcher: carries out commands.
        trust: decides who a caller is.
    """

    def __init__(self, services: Services, dispatcher: Dispatcher, trust: Trust) -> None:
        self._services = services
        self._dispatcher = dispatcher
        self._trust = trust
        self._pages = Pages()
        # Calls with commands that have not ended.
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self, within_s: float) -> None:
        """Wait until no command waits for its reply any more, but not longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._idle.wait()

    @contextlib.contextmanager
    def _commands(self) -> Iterator[None]:
        """A call with commands."""
        self._open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def Execute(self, stream: Stream[CommandFrame, ReplyFrame]) -> None:  # noqa: N802 - the contract's name
        """One command."""
        caller = self._caller(stream)
        frame = await stream.recv_message()
        if frame is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "A message is needed")
        with self._commands():
            reply = await self._dispatcher.carry_out(frame, caller)
            if reply.code in {"missing_token", "invalid_token"} and not isinstance(caller, Gateway):
                raise GRPCError(Status.UNAUTHENTICATED, "A token is needed")
            await stream.send_message(bearable(reply))

    async def ExecuteBatch(self, stream: Stream[BatchFrame, ReplyFrame]) -> None:  # noqa: N802 - the contract's name
        """Many commands that belong together."""
        caller = self._known(stream)
        batch = await stream.recv_message()
        if batch is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "A message is needed")
        if found := fault(batch):
            raise GRPCError(Status.INVALID_ARGUMENT, found)
        with self._commands():
            async with contextlib.aclosing(replies(batch, partial(self._dispatcher.carry_out, caller=caller))) as all_:
                async for reply in all_:
                    await stream.send_message(bearable(reply))

    async def Channel(self, stream: Stream[CommandBatch, ReplyBatch]) -> None:  # noqa: N802 - the contract's name
        """Many commands."""
        caller = self._known(stream)
        with self._commands():
            await CommandChannel(stream, self._dispatcher, caller).run()

    async def Watch(self, stream: Stream[WatchRequest, EventBatch]) -> None:  # noqa: N802 - the contract's name
        """Events from a position on. A client with its own token needs the permission to read logs."""
        caller = self._known(stream)
        request = await stream.recv_message()
        if request is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "A message is needed")
        may_see: Callable[[str], bool] | None = None
        with _as_status():
            if not isinstance(caller, Gateway):
                principal = _principal(caller)
                authorise(_LOGS, principal.roles)
                may_see = partial(_may_see, self._services.settings.topics, principal)
            watcher = Watcher(
                request,
                self._services.journal,
                self._services.executions,
                self._services.ephemeral,
                tenant=caller.tenant,
                may_see=may_see,
                clock=self._services.clock,
                pages=self._pages,
            )
        await _send_all(stream, watcher.batches(), caller)

    async def Logs(self, stream: Stream[LogRequest, LogBatch]) -> None:  # noqa: N802 - the contract's name
        """The log of one execution."""
        caller = self._known(stream)
        request = await stream.recv_message()
        if request is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "A message is needed")
        with _as_status():
            principal = _principal(caller, request.principal)
            authorise(_LOGS, principal.roles)
            self._services.executions.get(request.execution_id, principal.tenant)
            log = self._services.executions.log(request.execution_id)
        batches = log_batches(log, request.from_line, request.limit, follow=request.follow)
        await _send_all(stream, batches, caller)

    async def Tell(self, stream: Stream[TellRequest, TellReply]) -> None:  # noqa: N802 - the contract's name
        """Ephemeral events of a gateway."""
        if not isinstance(self._known(stream), Gateway):
            raise GRPCError(Status.PERMISSION_DENIED, "Only a gateway may ask for this")
        request = await stream.recv_message()
        for event in request.events if request is not None else ():
            self._services.ephemeral.append(event.tenant, event.topic, event.data)
        await stream.send_message(TellReply())

    async def Revocations(  # noqa: N802 - the contract's name
        self, stream: Stream[RevocationsRequest, RevocationBatch]
    ) -> None:
        """All revocations in force. They are of all tenants, so only gateways may ask."""
        if not isinstance(self._known(stream), Gateway):
            raise GRPCError(Status.PERMISSION_DENIED, "Only a gateway may ask for this")
        await stream.recv_message()
        journal = self._services.journal
        # Taken before the first row is read: what happens meanwhile is told again by Watch, which harms nothing.
        seq = journal.seq
        batch = RevocationBatch(epoch=journal.epoch, journal_seq=seq)
        for page in self._services.revocations.snapshot():
            batch.revocations.extend(_revocation(found) for found in page)
            await stream.send_message(batch)
            batch = RevocationBatch(epoch=journal.epoch, journal_seq=seq)
        # Also when there are none: the gateway learns at which number.
        await stream.send_message(batch)

    def _caller(self, stream: Stream[Any, Any]) -> Caller:
        with _as_status():
            return self._trust.caller(stream.metadata or {}, stream.peer)

    def _known(self, stream: Stream[Any, Any]) -> Caller:
        caller = self._caller(stream)
        if isinstance(caller, Nobody):
            raise GRPCError(Status.UNAUTHENTICATED, "A token is needed")
        return caller


def services_of(daemon: DaemonService, *, max_bytes: int = MAX_MESSAGE_BYTES) -> tuple[list[Guarded], ServiceStatus]:
    """All gRPC services, with health and reflection, behind the guard; and the switch of their health."""
    health = ServiceStatus()
    health.set(True)
    # The collection of checks has the service's name only in its keys; grpclib reads it from the mapping.
    all_services = ServerReflection.extend([daemon, Health({daemon: [health]})])
    return [Guarded(service, max_bytes) for service in all_services], health


async def _send_all(stream: Stream[Any, Any], batches: AsyncIterator[Any], caller: Caller) -> None:
    """Send batches until there are no more; a client's own token must last as long."""
    sending = asyncio.ensure_future(_send(stream, batches))
    try:
        while not sending.done():
            patience = None if isinstance(caller, Gateway) else _TOKEN_CHECK_S
            await asyncio.wait((sending,), timeout=patience)
            with _as_status():
                if not isinstance(caller, Gateway):
                    caller.principal(None)
        with _as_status():
            sending.result()
    finally:
        sending.cancel()
        await asyncio.wait((sending,))


def _may_see(rules: Iterable[TopicRule], principal: Principal, topic: str) -> bool:
    """Whether a principal may hear a topic: what is told to a subject is its own, the rest is open by the rules."""
    if topic.startswith(SUBJECT_PREFIX):
        return topic == SUBJECT_PREFIX + principal.subject
    rule = rule_of(rules, topic)
    return rule is None or not rule.is_closed_to(frozenset(principal.roles))


def _revocation(found: KnownRevocation) -> Revocation:
    return Revocation(
        kind=found.kind,
        value=found.value,
        tenant=found.tenant,
        issued_before=found.issued_before,
        expires_at=found.expires_at,
    )


async def _send(stream: Stream[Any, Any], batches: AsyncIterator[Any]) -> None:
    async for batch in batches:
        await stream.send_message(batch)


def _principal(caller: Caller, named: Any = None) -> Principal:  # noqa: ANN401 - the generated message
    principal = caller.principal(named)
    if principal is None:
        raise Unauthenticated
    return principal


class _as_status:  # noqa: N801 - used as a statement: with _as_status()
    """Turns an error of ours into a gRPC status, for calls whose replies have no place for it."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FlxError):
            raise GRPCError(Status(error.spec.grpc), error.detail) from error
