"""The realtime path of one connection: `/ws/{client_id}`.

    receive     request id, Host, path, handshake headers
    admit       token (Authorization, subprotocol `bearer.<token>`, or a ticket), windows, origin, client id, caps
    accept      or a problem document before it
    serve       a reader, a writer, and a reason to end
    record      always

Rules (each a trap of the server that was met):
- A reader that waits is cancelled before the Close frame is sent: Granian would hold the frame until the peer speaks.
- Headers of an accept are dropped by the server, so nothing is said in them.
- A message carries either `text` or `bytes`; sending after the end raises.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qs

import structlog

from flx_api._core import negotiate, origin_allowed, segments
from flx_api.errors import FlxError, Forbidden, InvalidRequest, NotFound, RateLimited, TokenRejected
from flx_api.gateway.exchange import Exchange
from flx_api.gateway.paths import Route
from flx_api.gateway.responses import problem, unexpected
from flx_api.observability.metrics import WEBSOCKET
from flx_api.websocket import protocol
from flx_api.websocket.close_codes import CloseCode
from flx_api.websocket.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from flx_api._core import Principal
    from flx_api.auth.revocations import RevocationFollower
    from flx_api.auth.tickets import Tickets
    from flx_api.config import Settings
    from flx_api.gateway.cors import Cors
    from flx_api.gateway.edge import Edge
    from flx_api.gateway.exchange import Message, Scope
    from flx_api.gateway.patience import Handshake, Patience
    from flx_api.gateway.responses import PolicyRefusals
    from flx_api.observability.metrics import Metrics
    from flx_api.websocket.connection_manager import ConnectionManager
    from flx_api.websocket.standing import Standing

_ROUTE: Final = Route(WEBSOCKET, ("client_id",), {}, {})
_PREFIX: Final = "ws"
_SEGMENTS: Final = 2
_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
_KEY_BYTES: Final = 16
_MESSAGES_PER_S: Final = 50
# What may be made good of the time in which a message was dealt with, and the next not read.
_MAX_ALLOWANCE: Final = 10.0 * _MESSAGES_PER_S
_MAX_OFFENCES: Final = 10
_CLOSE_TIMEOUT_S: Final = 2.0

T = TypeVar("T")

_log = structlog.get_logger("flx.websocket")


class Endpoint:
    """The WebSocket face of a gateway."""

    def __init__(
        self,
        settings: Settings,
        *,
        edge: Edge,
        patience: Patience,
        policies: PolicyRefusals,
        revocations: RevocationFollower,
        standing: Standing,
        tickets: Tickets,
        manager: ConnectionManager,
        cors: Cors,
        metrics: Metrics,
    ) -> None:
        self._origins = list(settings.cors_origins)
        self._edge = edge
        self._patience = patience
        self._policies = policies
        self._route = metrics.routes.index(WEBSOCKET)
        self._revocations = revocations
        self._standing = standing
        self._tickets = tickets
        self._manager = manager
        self._cors = cors
        self._metrics = metrics

    async def websocket(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Serve one connection: the realtime path from top to bottom."""
        if (await receive())["type"] != "websocket.connect":
            return
        found = await self.admit(scope, receive, send, self._seat)
        if found is None:
            return
        exchange, (connection, subprotocol) = found
        code = CloseCode.INTERNAL
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol})
            code = await self._serve(connection, receive, send)
        except (RuntimeError, OSError):
            code = CloseCode.GONE
        finally:
            self._manager.disconnect(connection, code)
            exchange.admitted.over(101)

    async def admit(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        seat: Callable[[Exchange, Offer, Principal], T],
    ) -> tuple[Exchange, T] | None:
        """Decide about a handshake, of whichever listener; None when it was refused, and `send` has the answer.

        Args:
            scope: the handshake as ASGI has it.
            receive: of no use before it is accepted.
            send: takes the answer.
            seat: lets in who may come in. What it raises is a refusal as well.
        """
        found = self.admit_at_once(scope, receive, send, seat)
        return found if isinstance(found, tuple) else await found

    def admit_at_once(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        seat: Callable[[Exchange, Offer, Principal], T],
    ) -> tuple[Exchange, T] | Coroutine[Any, Any, tuple[Exchange, T] | None]:
        """As `admit`, without a task for nearly all: what is left to do for who has to wait or is refused."""
        offer, fault = _offer_of(scope)
        needs_token = offer.needs_token and fault is None

        def judge(seen: Handshake) -> tuple[Exchange, T] | Coroutine[Any, Any, None]:
            reason, limited, admitted = seen
            exchange = Exchange(scope, receive, send, admitted, _ROUTE, self._metrics)
            refusal = fault if reason is None else self._policies.refusal(reason, limited)
            try:
                if refusal is not None:
                    raise refusal  # noqa: TRY301 - one place answers all errors
                return exchange, seat(exchange, offer, self._principal(exchange, offer))
            except FlxError as error:
                # What the core refused was counted by its own, more exact reason.
                if reason is None:
                    self._metrics.refusal(error.reason if isinstance(error, TokenRejected) else error.code)
                return self._refuse(exchange, error)
            except Exception:  # noqa: BLE001 - whatever it is, the handshake must get an answer
                _log.exception("websocket.unexpected", request_id=exchange.request_id)
                return self._refuse(exchange, unexpected())

        async def later() -> tuple[Exchange, T] | None:
            seen = await self._patience.handshake_later(scope, self._route, offer.token, needs_token=needs_token)
            found = judge(seen)
            if isinstance(found, tuple):
                return found
            await found
            return None

        seen = self._patience.handshake_at_once(scope, self._route, offer.token, needs_token=needs_token)
        return later() if seen is None else judge(seen)

    def _principal(self, exchange: Exchange, offer: Offer) -> Principal:
        """Who connects, if it may."""
        self._revocations.require()
        principal = exchange.principal
        if principal is None:
            principal = self._tickets.admit(offer.ticket, time.time())
        origin, host = _text(exchange.headers.get(b"origin")), _text(exchange.headers.get(b"host"))
        if not origin_allowed(origin, host, self._origins):
            raise Forbidden(code="origin_not_allowed")
        self._manager.check(offer.client_id, principal)
        return principal

    def _seat(self, exchange: Exchange, offer: Offer, principal: Principal) -> tuple[Connection, str | None]:
        """A connection for who connects, and the subprotocol to answer with."""
        chosen = chosen_of(exchange.scope, offer)
        dialect = dialect_of(chosen, offer)
        connection = Connection(offer.client_id, principal, exchange.send, time.monotonic(), dialect=dialect)
        self._manager.connect(connection)
        return connection, chosen

    async def _refuse(self, exchange: Exchange, error: FlxError) -> None:
        """A problem document in place of the upgrade; a bare 403 where the server cannot send one."""
        if "websocket.http.response" not in (exchange.scope.get("extensions") or {}):
            await exchange.send({"type": "websocket.close", "code": CloseCode.POLICY})
            return
        status, headers, body = problem(error, exchange.request_id)
        headers = self._edge.headers(exchange, headers, len(body))
        await exchange.send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await exchange.send({"type": "websocket.http.response.body", "body": body, "more_body": False})
        exchange.admitted.over(status)

    async def _serve(
        self,
        connection: Connection,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> CloseCode:
        """Read and write until there is a reason to end; the reason."""
        connection.send(protocol.frame("connected", message="connected", client_id=connection.client_id))
        reader = asyncio.create_task(self._read(connection, receive), name="ws-reader")
        writer = asyncio.create_task(connection.write(time.monotonic), name="ws-writer")
        try:
            ends: list[asyncio.Future[Any]] = [reader, writer, connection.closing]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reader.cancel()
            writer.cancel()
            results = await asyncio.gather(reader, writer, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, (RuntimeError, OSError)):
                _log.error("websocket.broken", exc_info=result)
                connection.end(CloseCode.INTERNAL)
        if not connection.closing.done():
            connection.end(CloseCode.GONE)
        code = connection.closing.result()
        if code is not CloseCode.GONE:
            await _close(send, code)
        return code

    async def _read(self, connection: Connection, receive: Callable[[], Awaitable[Message]]) -> None:
        """Take messages until the peer goes away or has offended too often."""
        allowance, free_s, offences = float(_MESSAGES_PER_S), time.monotonic(), 0
        while True:
            message = await receive()
            if message["type"] != "websocket.receive":
                connection.end(CloseCode.GONE)
                return
            text = message.get("text")
            payload = message.get("bytes") if text is None else text.encode("utf-8", "surrogatepass")
            if payload is None or len(payload) > protocol.MAX_MESSAGE_BYTES:
                connection.end(CloseCode.TOO_LARGE)
                return
            now_s = time.monotonic()
            allowance = max(allowance, 0.0)
            if allowance < _MESSAGES_PER_S:
                allowance = min(float(_MESSAGES_PER_S), allowance + (now_s - free_s) * _MESSAGES_PER_S)
            allowance -= 1
            try:
                complaint = await self._handle(connection, payload, limited=allowance < 0)
            except FlxError as error:
                complaint = protocol.error(error.code, error.detail)
            # One topic after the other catches up, and its client goes on speaking meanwhile, as fast as it may.
            free_s = time.monotonic()
            allowance = min(_MAX_ALLOWANCE, allowance + (free_s - now_s) * _MESSAGES_PER_S)
            if complaint is None:
                continue
            offences += 1
            connection.send(complaint)
            if offences > _MAX_OFFENCES:
                connection.end(CloseCode.POLICY)
                return

    async def _handle(self, connection: Connection, payload: bytes, *, limited: bool) -> str | None:
        """Do what one message asks for; the complaint, where it has a form of its own.

        Raises:
            FlxError: it cannot be done.
        """
        if limited:
            detail = "Too many messages"
            raise RateLimited(detail)
        message = protocol.parse(payload)
        match message.type:
            case "ping":
                # What was asked for before it is level when it is answered.
                await self._manager.level(connection)
                connection.send(protocol.frame("pong", timestamp=int(time.time() * 1_000_000)))
            case "subscribe" | "unsubscribe" if message.event is None:
                raise InvalidRequest.field("event", "is needed")
            case "subscribe" if message.event is not None:
                await self._manager.subscribe(connection, message.event, message.from_)
            case "unsubscribe" if message.event is not None:
                self._manager.unsubscribe(connection, message.event)
                connection.send(protocol.frame("unsubscribed", event=message.event))
            case "refresh" if message.token is None:
                raise InvalidRequest.field("token", "is needed")
            case "refresh" if message.token is not None:
                return self._renew(connection, message.token)
            case _:
                connection.send(protocol.echo(payload))
        return None

    def _renew(self, connection: Connection, token: str) -> str | None:
        """Let another token be in force for a connection; the complaint, when it may not be."""
        try:
            principal = self._standing.renewal(connection.principal, token.encode("utf-8", "replace"))
        except FlxError as error:
            return protocol.not_renewed(error)
        self._manager.renew(connection, principal)
        return None


class Offer:
    """What a handshake brings: who connects, and what it proves it with."""

    def __init__(self) -> None:
        self.client_id = ""
        self.protocols = b""
        # The protocol that the query names, for servers and clients that cannot tell a subprotocol.
        self.wanted: str | None = None
        self.token: bytes | None = None
        self.ticket: str | None = None
        self.needs_token = True


def chosen_of(scope: Scope, offer: Offer) -> str | None:
    """The subprotocol to answer with."""
    names = scope.get("subprotocols")
    if names is None:
        names = [name.strip().decode("latin-1") for name in offer.protocols.split(b",")]
    return next((name for name in (protocol.BATCHED, protocol.PLAIN) if name in names), None)


def dialect_of(chosen: str | None, offer: Offer) -> protocol.Dialect:
    """How events are written: as the query says, or else as the subprotocol that was chosen."""
    return "batched" if (offer.wanted or chosen) == protocol.BATCHED else "plain"


def _offer_of(scope: Scope) -> tuple[Offer, FlxError | None]:
    """What a handshake brings, as far as it can be read, and what is wrong with it."""
    offer = Offer()
    try:
        _read(scope, offer)
    except FlxError as error:
        return offer, error
    return offer, None


def _read(scope: Scope, offer: Offer) -> None:
    """Fill in what the scope says.

    Raises:
        FlxError: it says what cannot be.
    """
    headers = dict(scope["headers"])
    raw = scope.get("raw_path") or scope["path"].encode()
    values = segments(raw.split(b"?", 1)[0])
    if values is None or len(values) != _SEGMENTS or values[0] != _PREFIX:
        raise NotFound
    offer.client_id = values[1]
    if not _CLIENT_ID.fullmatch(offer.client_id):
        raise InvalidRequest.field("client_id", "is 1 to 128 letters, digits, or ._:@-")
    key = headers.get(b"sec-websocket-key")
    if key is not None and not _is_key(key):
        detail = "Sec-WebSocket-Key is not 16 bytes in base64"
        raise InvalidRequest(detail)
    offer.protocols = b",".join(value for key, value in scope["headers"] if key == b"sec-websocket-protocol")
    try:
        _, token = negotiate(offer.protocols.decode("latin-1") if offer.protocols else None)
    except ValueError:
        detail = "Sec-WebSocket-Protocol is malformed"
        raise InvalidRequest(detail) from None
    try:
        asked = scope.get("query_string", b"")
        # Mostly there is none, and this is dear.
        query = parse_qs(asked.decode("latin-1"), max_num_fields=16) if asked else {}
    except ValueError:
        detail = "The query parameters cannot be read"
        raise InvalidRequest(detail) from None
    wanted = query.get("protocol", [])
    if not {protocol.BATCHED, protocol.PLAIN}.issuperset(wanted):
        raise InvalidRequest.field("protocol", f"is {protocol.BATCHED} or {protocol.PLAIN}")
    offer.wanted = wanted[0] if wanted else None
    # `Authorization` is believed before anything else; a ticket only where there is no token.
    if b"authorization" not in headers:
        offer.token = token
        offer.ticket = query["ticket"][0] if token is None and "ticket" in query else None
        offer.needs_token = offer.ticket is None


async def _close(send: Callable[[Message], Awaitable[None]], code: CloseCode) -> None:
    """Send the Close frame; a peer that does not take it is left alone."""
    message: dict[str, Any] = {"type": "websocket.close", "code": int(code), "reason": code.reason}
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await send(message)
    except (RuntimeError, OSError, TimeoutError):
        return


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except binascii.Error:
        return False


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
