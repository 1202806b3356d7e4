"""The resource controller: one handler for all routes that stand for a command.

Strategy: a route's arguments are gathered from path, query and body into one JSON object and go the way of any command
(`flx_api.gateway.dispatch`); `_answer` turns the result into what its route promises.

Rules:
- Query parameters become numbers and truth values by the command's own struct; a body travels as it came, with the
  values of the path added, which it must not hold itself.
- A dry run is answered with its plan and 200, whatever the route promises otherwise.
- Results are not decoded beyond the fields that headers need.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from blacksheep import Content, Request, Response

from flx_api.commands import COMMANDS
from flx_api.errors import FlxError, InvalidRequest, ValidationFailed
from flx_api.gateway.options import OPTION_NAMES, convert, known, options_of, query
from flx_api.gateway.responses import JSON
from flx_api.models import strict_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api.commands import Command
    from flx_api.gateway.dispatch import Dispatcher
    from flx_api.gateway.exchange import Exchange
    from flx_api.gateway.responses import Headers
    from flx_api.models.envelope import CommandOptions
    from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
    from flx_api.routes.table import Resource

# Ours are small: a number of any length would be refused by `int` itself, as a fault.
_ETAG: Final = re.compile(rb'"[0-9]{1,18}"')
_OVER: Final = frozenset({"succeeded", "succeeded_with_warnings", "failed", "cancelled", "timed_out", "crashed"})


class _Glance(msgspec.Struct):
    """What headers and status are made from."""

    id: str = ""
    revision: int | None = None
    status: str = ""


_glance = msgspec.json.Decoder(_Glance)


class ResourceController:
    """Serves all of `flx_api.routes.table.RESOURCES`."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def handler(self, resource: Resource) -> Callable[[Request], Awaitable[Response]]:
        """The framework's handler of one route."""
        command = COMMANDS[resource.command]

        # A handler with the one parameter `request` is bound without a wrapper.
        async def handle(request: Request) -> Response:
            exchange = exchange_of(request)
            args, options = _arguments(exchange, resource, command)
            reply = await self._dispatcher.run(exchange, command, args, options)
            if options.dry_run:
                return Response(200, [], Content(JSON, reply.result))
            return _answer(exchange, resource, reply)

        return handle


def exchange_of(request: Request) -> Exchange:
    """What the edge knows about a request of the framework."""
    exchange: Exchange = request.scope["flx"]  # type: ignore[typeddict-item]
    return exchange


def _arguments(exchange: Exchange, resource: Resource, command: Command) -> tuple[bytes, CommandOptions]:
    """The command's arguments as JSON, and its options."""
    values = query(exchange)
    extra: dict[str, Any] = dict(exchange.values)
    # The command judges it together with what it does: nothing can come in between.
    if resource.guarded and (revision := _expected_revision(exchange)) is not None:
        extra["revision"] = revision
    if resource.body == "none":
        fields = {field.encode_name for field in msgspec.structs.fields(command.args)}
        known(values, (fields - set(extra)) | (OPTION_NAMES - fields))
        given: dict[str, Any] = {name: value for name, value in values.items() if name in fields}
        options = options_of(exchange, {name: value for name, value in values.items() if name not in fields})
        return msgspec.json.encode(convert({**given, **extra}, command.args)), options
    options = options_of(exchange, values)
    if not exchange.body:
        if resource.body == "required":
            raise InvalidRequest(code="invalid_json")
        return msgspec.json.encode(exchange.values), options
    body = strict_json.parse(exchange.body)
    if not isinstance(body, dict):
        detail = "The body is not an object"
        raise ValidationFailed(detail)
    for name in extra:
        if name in body:
            raise ValidationFailed.field(name, "is given by the path or a header")
    return (msgspec.json.encode({**body, **extra}) if extra else exchange.body), options


def _expected_revision(exchange: Exchange) -> int | None:
    """The revision of If-Match; None when any will do."""
    header = exchange.headers.get(b"if-match")
    if header is None or header.strip() == b"*":
        return None
    text = header.strip()
    if _ETAG.fullmatch(text):
        return int(text[1:-1])
    raise FlxError(code="precondition_failed")


def _answer(exchange: Exchange, resource: Resource, reply: ReplyFrame) -> Response:
    """The result as this route gives it."""
    headers: Headers = []
    status = 200
    if resource.after not in {"plain", "deleted"}:
        glance = _glance.decode(reply.result)
        match resource.after:
            case "created":
                status = 201
                headers.append((b"location", b"/v1/pipelines/" + glance.id.encode()))
            case "accepted":
                # With `wait_ms` it may be over by now.
                status = 202 if reply.accepted_id else 200
                headers.append((b"location", f"/v1/executions/{glance.id}".encode()))
            case "cancelled":
                status = 200 if glance.status in _OVER else 202
            case "waited" if glance.status not in _OVER:
                status = 202
                headers.append((b"location", f"/v1/executions/{glance.id}".encode()))
            case _:
                pass
        if glance.revision is not None:
            etag = b'"%d"' % glance.revision
            headers.append((b"etag", etag))
            if exchange.method in {"GET", "HEAD"} and exchange.headers.get(b"if-none-match") == etag:
                return Response(304, headers)
    return Response(status, headers, Content(JSON, reply.result))
