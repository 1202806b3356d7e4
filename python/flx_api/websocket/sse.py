"""Events as a stream for those who only listen: `GET /v1/events?topics=a,b&from=POS` (WHATWG HTML section 9.2).

Strategy: a stream is a connection like any other, with the same rights, limits and hub; its messages are written as
events of a stream, whose id is the position. Who may listen, and to what, is decided before the answer begins, so that
a refusal is a problem document. On the main port the answer is written here; the native listener asks the same handler
and writes by itself (`NATIVE` in the scope).

Rules:
- What `Last-Event-ID` says comes before `from`: a browser that comes back repeats the address it began with.
- All topics of a stream catch up together, so that every id on the way covers all of them.
- A stream that was ended says why in its last event; one that took nothing is cut.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from flx_api.errors import InvalidRequest, TokenRejected, Unauthenticated
from flx_api.gateway.exchange import StreamCut
from flx_api.gateway.options import convert, known, query
from flx_api.websocket import protocol
from flx_api.websocket.close_codes import CloseCode
from flx_api.websocket.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from flx_api._core import Principal
    from flx_api.auth.revocations import RevocationFollower
    from flx_api.auth.tickets import Tickets
    from flx_api.events.position import Position
    from flx_api.gateway.cors import Cors
    from flx_api.gateway.exchange import Exchange
    from flx_api.gateway.responses import Headers
    from flx_api.websocket.connection_manager import ConnectionManager
    from flx_api.websocket.standing import Standing

MEDIA: Final = b"text/event-stream"
NATIVE: Final = "flx.stream"
"""Where a scope of the native listener has what takes a stream over."""
REVOKED: Final = "revoked"
"""Why a token is not acceptable, as the core says it."""
# A client that was lost comes back after this long: those who were lost together do not come together.
_RETRY_MS: Final = (500, 3_000)


class EventQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be heard."""

    topics: Annotated[str, Meta(min_length=1, description="topics and patterns, with commas between them")]
    from_: Annotated[str, Meta(description="a position: what happened since then comes first")] | None = msgspec.field(
        default=None, name="from"
    )
    ticket: Annotated[str, Meta(description="from `POST /v1/ws-ticket`, in place of a token")] | None = None


class Wanted(NamedTuple):
    """What a stream is to hear, and from where on."""

    topics: list[str]
    from_: str | None


class EventRoute:
    """The handler of the event stream."""

    def __init__(
        self,
        *,
        manager: ConnectionManager,
        tickets: Tickets,
        revocations: RevocationFollower,
        standing: Standing,
        cors: Cors,
    ) -> None:
        self._manager = manager
        self._tickets = tickets
        self._revocations = revocations
        self._standing = standing
        self._cors = cors

    async def serve(self, exchange: Exchange) -> None:
        """Answer with the stream."""
        values = query(exchange)
        known(values, {field.encode_name for field in msgspec.structs.fields(EventQuery)})
        asked = convert(values, EventQuery)
        principal = self._principal(exchange, asked.ticket)
        wanted = _wanted(exchange, asked)
        seat: Callable[[Principal, Wanted, Headers], None] | None = exchange.scope.get(NATIVE)
        if seat is not None and exchange.method != "HEAD":
            self._manager.check(None, principal)
            seat(principal, wanted, self._headers(exchange))
            exchange.status = 200
            return
        connection = Connection(None, principal, exchange.send, time.monotonic(), dialect="stream")
        self._manager.connect(connection)
        code = CloseCode.INTERNAL
        try:
            history = self._manager.begin(connection, wanted.topics, wanted.from_)
            await self._begin(exchange)
            if exchange.method == "HEAD":
                code = CloseCode.GONE
                await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            code = await self._stream(exchange, connection, wanted, history)
        finally:
            self._manager.disconnect(connection, code)

    def _principal(self, exchange: Exchange, ticket: str | None) -> Principal:
        """Who listens.

        Raises:
            Unauthenticated, TokenRejected: there is neither a token nor a ticket that is good.
            Unavailable: revocations are not known well enough to say so.
        """
        if exchange.principal is not None:
            # It was judged before the body, which may have been long in coming, and on the lane in another thread. Who
            # is not here yet is not judged again when something is revoked.
            if self._standing.is_revoked(exchange.principal):
                raise TokenRejected(REVOKED)
            return exchange.principal
        if ticket is None:
            raise Unauthenticated
        self._revocations.require()
        return self._tickets.admit(ticket, time.time())

    def _headers(self, exchange: Exchange) -> Headers:
        """Those of the answer. A proxy that collects a whole answer before it passes it on would never pass on this."""
        own: Headers = [(b"content-type", MEDIA), (b"x-accel-buffering", b"no")]
        if self._cors.active:
            own += self._cors.headers(exchange.headers.get(b"origin"))
        return exchange.admitted.headers(own, None)

    async def _begin(self, exchange: Exchange) -> None:
        await exchange.send({"type": "http.response.start", "status": 200, "headers": self._headers(exchange)})
        exchange.status = 200
        if exchange.method != "HEAD":
            retry = b"retry: %d\n\n" % random.randint(*_RETRY_MS)  # noqa: S311 - to spread them, not to guard a secret
            await exchange.send({"type": "http.response.body", "body": retry, "more_body": True})

    async def _stream(
        self, exchange: Exchange, connection: Connection, wanted: Wanted, history: Position | None
    ) -> CloseCode:
        """Write until there is a reason to end; the reason.

        Raises:
            StreamCut: the client takes nothing, so that it cannot be told either.
        """
        writer = asyncio.create_task(connection.write(time.monotonic), name="sse-writer")
        gone = asyncio.create_task(_gone(exchange), name="sse-reader")
        tasks: list[asyncio.Task[None]] = [writer, gone]
        if history is not None:
            tasks.append(asyncio.create_task(self._manager.catch_up(connection, wanted.topics, history)))
        try:
            ends: list[asyncio.Future[Any]] = [writer, gone, connection.closing]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, (RuntimeError, OSError)):
                raise result
        if not connection.closing.done():
            connection.end(CloseCode.GONE)
        code = connection.closing.result()
        if code is CloseCode.TOO_SLOW:
            raise StreamCut
        if code is not CloseCode.GONE:
            last = protocol.in_stream(protocol.frame("closed", code=int(code), reason=code.reason))
            await exchange.send({"type": "http.response.body", "body": last, "more_body": False})
        return code


def _wanted(exchange: Exchange, asked: EventQuery) -> Wanted:
    topics = list(dict.fromkeys(asked.topics.split(",")))
    last = exchange.headers.get(b"last-event-id")
    try:
        return Wanted(topics, last.decode("ascii") if last else asked.from_)
    except UnicodeDecodeError:
        detail = "Last-Event-ID is not a position that this service gave"
        raise InvalidRequest(detail) from None


async def _gone(exchange: Exchange) -> None:
    while (await exchange.receive())["type"] != "http.disconnect":
        pass
