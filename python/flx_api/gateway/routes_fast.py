"""The universal command endpoint, beside the framework: `/v1/execute`, `/v1/commands/{name}` and `/{name}`.

Strategy: arguments and result travel as the bytes they are. The body is checked to be strict JSON, the envelope around
the arguments is decoded, nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from flx_api.commands import find
from flx_api.errors import ValidationFailed
from flx_api.gateway.costs import payer
from flx_api.gateway.options import decoded, no_query, options_of, query, with_key
from flx_api.gateway.patience import AWAITED
from flx_api.gateway.responses import JSON
from flx_api.models import strict_json
from flx_api.models.envelope import CommandReply, ExecuteRequest, ReplyMeta

if TYPE_CHECKING:
    from flx_api.commands import Command
    from flx_api.gateway.dispatch import Dispatcher
    from flx_api.gateway.exchange import Exchange
    from flx_api.gateway.patience import Patience
    from flx_api.gateway.responses import Headers, PolicyRefusals
    from flx_api.models.envelope import CommandOptions
    from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame

_execute = msgspec.json.Decoder(ExecuteRequest)
_encode = msgspec.json.Encoder().encode


class Response(NamedTuple):
    """A whole response."""

    status: int
    headers: Headers
    body: bytes


class CommandRoutes:
    """The handlers of the universal endpoint."""

    def __init__(self, dispatcher: Dispatcher, patience: Patience, policies: PolicyRefusals) -> None:
        self._dispatcher = dispatcher
        self._patience = patience
        self._policies = policies

    async def execute(self, exchange: Exchange) -> Response:
        """`POST /v1/execute`: everything in the body."""
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
