"""The universal command endpoint, beside the framework: `/v1/execute`, `/v1/commands/{name}` and `/{name}`.

Strategy: arguments and result travel as the bytes they are. The body is checked to be strict JSON, the envelope around
the arguments is decoded, nothing else. For plain commands (`flx_api.gateway.plain`) the native core does all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from flx_api.commands import COMMANDS, find
from flx_api.errors import ValidationFailed
from flx_api.gateway.costs import payer
from flx_api.gateway.dispatch import error_of
from flx_api.gateway.options import decoded, no_query, options_of, query, with_key
from flx_api.gateway.patience import AWAITED
from flx_api.gateway.responses import JSON
from flx_api.models import strict_json
from flx_api.models.envelope import CommandReply, ExecuteRequest, ReplyMeta

if TYPE_CHECKING:
    from flx_api._core import PlainCommand, PlainCommands
    from flx_api.commands import Command
    from flx_api.gateway.cors import Cors
    from flx_api.gateway.dispatch import Dispatcher, Watch
    from flx_api.gateway.exchange import Exchange
    from flx_api.gateway.patience import Patience
    from flx_api.gateway.responses import Headers, PolicyRefusals
    from flx_api.gateway.ride import Rides
    from flx_api.models.envelope import CommandOptions
    from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame

_execute = msgspec.json.Decoder(ExecuteRequest)
_encode = msgspec.json.Encoder().encode


class Response(NamedTuple):
    """A whole response."""

    status: int
    headers: Headers
    body: bytes


class Whole(NamedTuple):
    """A whole response that is ready to be sent: the two messages of ASGI, or the three arguments of RSGI."""

    parts: tuple[Any, ...]


class CommandRoutes:
    """The handlers of the universal endpoint.

    Args:
        dispatcher: carries commands out.
        plain: reads those that are plain.
        patience: waits for leases.
        policies: the words of refusals.
        cors: who may ask from a page.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        plain: PlainCommands,
        patience: Patience,
        *,
        policies: PolicyRefusals,
        cors: Cors,
    ) -> None:
        self._dispatcher = dispatcher
        self.plain = plain
        self._patience = patience
        self._policies = policies
        self._cors = cors
        # Where commands leave together; without it each leaves alone.
        self.rides: Rides | None = None

    async def execute(self, exchange: Exchange) -> Response | Whole:
        """`POST /v1/execute`: everything in the body."""
        if not exchange.scope.get("query_string"):
            command = self.plain.read(exchange.admitted, exchange.body, exchange.mark_ns)
            if command is not None:
                exchange.passed_until(command.mark_ns)
                return await self.send(exchange, command)
        return await self.execute_generally(exchange)

    async def send(self, exchange: Exchange, command: PlainCommand) -> Response | Whole:
        """Carry a plain command out and answer it."""
        if self.rides is not None:
            return await self.rides.carry(exchange, command)
        return await self.send_alone(exchange, command)

    async def send_alone(self, exchange: Exchange, command: PlainCommand) -> Response | Whole:
        """The same, where it has to wait for its turn."""
        return self.answer(exchange, command, await self._dispatcher.send(exchange, command))

    def answer(self, exchange: Exchange, command: PlainCommand, reply: ReplyFrame) -> Response | Whole:
        """The answer to a plain command.

        Raises:
            FlxError: what the daemon has against it.
        """
        if reply.code or reply.accepted_id:
            exchange.passed("upstream")
            if reply.code:
                raise error_of(reply)
            return envelope(exchange, COMMANDS[command.command], reply)
        return self.plain_answer(exchange, command, reply.result, reply.replayed)

    def plain_answer(self, exchange: Exchange, command: PlainCommand, result: bytes, replayed: bool) -> Whole:  # noqa: FBT001 - as it travels
        """The answer to a plain command that was carried out."""
        own = self._cors.headers(exchange.headers.get(b"origin")) if self._cors.active else []
        parts = command.answer(result, replayed, own)
        exchange.passed_until(command.mark_ns)
        return Whole(parts)

    def watch(self, exchange: Exchange) -> Watch:
        """What ends the body of a `with` when the client goes away meanwhile."""
        return self._dispatcher.watch(exchange)

    async def execute_generally(self, exchange: Exchange) -> Response:
        """Carry out whatever the body asks for, or say what is wrong with it."""
        no_query(exchange)
        request = decoded(exchange, _execute)
        command = find(request.command)
        # Only now it is known which command's limits apply.
        paying = payer(command, dry_run=request.dry_run)
        refused = self._patience.at_once(exchange.admitted, paying)
        if refused is not None and refused[0] == AWAITED:
            refused = await self._patience.command(exchange.admitted, paying)
        if refused is not None:
            reason, policy, retry_after_s = refused
            raise self._policies.refusal(reason, (policy, retry_after_s))
        options = with_key(request, exchange.headers.get(b"idempotency-key"))
        return await self._answer(exchange, command, bytes(request.args), options)

    async def named(self, exchange: Exchange) -> Response:
        """`POST /v1/commands/{name}` and `POST /{name}`: the body is the arguments, options are parameters."""
        command = find(exchange.values["name"])
        options = options_of(exchange, query(exchange))
        if exchange.body:
            strict_json.check(exchange.body)
        return await self._answer(exchange, command, exchange.body, options)

    async def _answer(self, exchange: Exchange, command: Command, args: bytes, options: CommandOptions) -> Response:
        if args and not strict_json.is_object(args):
            raise ValidationFailed.field("args", "is not an object")
        reply = await self._dispatcher.run(exchange, command, args, options)
        return envelope(exchange, command, reply, dry_run=options.dry_run)


def envelope(exchange: Exchange, command: Command, reply: ReplyFrame, *, dry_run: bool = False) -> Response:
    """A reply of the daemon as the universal endpoint gives it."""
    accepted = reply.accepted_id != ""
    body = _encode(
        CommandReply(
            id=reply.accepted_id or exchange.request_id,
            command=command.name,
            status="accepted" if accepted else "ok",
            result=msgspec.Raw(reply.result or b"null"),
            meta=ReplyMeta(exchange.request_id, exchange.duration_us, reply.replayed, dry_run),
        )
    )
    if accepted:
        location = (b"location", f"/v1/executions/{reply.accepted_id}".encode())
        return Response(202, [(b"content-type", JSON), location], body)
    return Response(200, [(b"content-type", JSON)], body)
