"""From a command's name and bytes to the daemon's reply: the phases authorise, dispatch and upstream, for every route.

Rules:
- The permission is checked before the command travels, and again by the daemon.
- A caller that goes away while the daemon works is noticed (after a moment, since watching costs more than most
  commands take), and its pending entry is dropped; the daemon may still finish.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import msgspec

from flx_api.commands.permissions import authorise
from flx_api.errors import ErrorBody, FlxError
from flx_api.gateway.intake import ClientGone
from flx_api.models.envelope import CommandOptions
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame
from flx_api.proto.flx.v1.daemon_pb2 import Principal as FramePrincipal

if TYPE_CHECKING:
    from flx_api._core import Principal
    from flx_api.commands import Command
    from flx_api.gateway.exchange import Exchange
    from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
    from flx_api.upstream.channel import Upstream

NO_OPTIONS: Final = CommandOptions()
_WATCH_AFTER_S: Final = 0.25
_WAIT_MARGIN_MS: Final = 5_000
_error_body = msgspec.json.Decoder(ErrorBody)


class _Patience(msgspec.Struct):
    """How long a command that waits by nature was asked to wait."""

    timeout_ms: int = 30_000


class Dispatcher:
    """The way of a command through this worker.

    Args:
        upstream: the daemon.
        deadline_ms: of a command that names none.
    """

    def __init__(self, upstream: Upstream, deadline_ms: int) -> None:
        self._upstream = upstream
        self._deadline_ms = deadline_ms

    async def run(
        self, exchange: Exchange, command: Command, args: bytes, options: CommandOptions = NO_OPTIONS
    ) -> ReplyFrame:
        """Carry a command out.

        Raises:
            FlxError: whatever the gateway or the daemon has against it.
            ClientGone: nobody waits any more.
        """
        principal = exchange.principal
        authorise(command, principal.roles if principal is not None else ())
        exchange.passed("authorise")
        deadline_ms = self._deadline_of(command, args, options)
        frame = CommandFrame(
            command=command.name,
            args=args,
            principal=frame_principal(principal),
            idempotency_key=options.idempotency_key or "",
            deadline_unix_ms=int(time.time() * 1000) + deadline_ms,
            request_id=exchange.request_id,
            traceparent=exchange.headers.get(b"traceparent", b"").decode("ascii", "replace"),
            environment=options.environment or "",
            dry_run=options.dry_run,
            wait_ms=options.wait_ms or 0,
            client_address=exchange.client,
        )
        exchange.passed("dispatch")
        reply = await self._watched(exchange, frame, deadline_ms / 1000, read=command.idempotency == "read")
        exchange.passed("upstream")
        if reply.code:
            raise _error(reply)
        return reply

    def _deadline_of(self, command: Command, args: bytes, options: CommandOptions) -> int:
        if options.deadline_ms is not None:
            return options.deadline_ms
        patience = options.wait_ms or 0
        if command.name == "execution.wait":
            try:
                patience = msgspec.json.decode(args, type=_Patience).timeout_ms
            except msgspec.DecodeError:
                patience = 0
        return max(self._deadline_ms, min(patience, 600_000) + _WAIT_MARGIN_MS)

    async def _watched(self, exchange: Exchange, frame: CommandFrame, deadline_s: float, *, read: bool) -> ReplyFrame:
        watch = _Watch(exchange)
        handle = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, watch.start)
        try:
            return await self._upstream.call(frame, deadline_s, read=read)
        except asyncio.CancelledError:
            if watch.gone:
                raise ClientGone from None
            raise
        finally:
            handle.cancel()
            watch.stop()


class _Watch:
    """Looks whether the client is still there, and cancels the request's task when it is not."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._caller = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        self.gone = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="disconnect-watch")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        if self._caller is not None:
            self.gone = True
            self._caller.cancel()


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


def _error(reply: ReplyFrame) -> FlxError:
    try:
        return FlxError.from_body(_error_body.decode(reply.problem))
    except msgspec.DecodeError:
        return FlxError.from_body(ErrorBody(reply.code, ""))
