"""The edge: the one callable that the server calls, and the request path in its order.

    receive     who is speaking how: request id, Host, path, method; nothing is decided by a path that is in doubt
    admit       one call into the native core, for `receive` too: then token, all windows, and what the body is said to
                be; what is refused comes back as a whole answer; then the body, counted while it comes
                (in Granian's own thread, where it can: `flx_api.gateway.server_thread`)
    authorise   the permission of the command (in `flx_api.gateway.dispatch`)
    dispatch    the command route, without the framework; everything else goes to the framework
    upstream    the command travels to the daemon and its reply back
    respond     a result or a problem document, with the headers that every response carries
    record      always, whatever happened

Rules:
- What goes wrong in `receive` is answered after `admit`, so that nonsense is limited by address like anything else.
- What the core answers by itself, the core records.
- An exception that is no `FlxError` is a fault of ours: logged with its trace, answered with 500 and no word about it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from flx_api.errors import FlxError
from flx_api.gateway.alarms import Alarms
from flx_api.gateway.exchange import Exchange, StreamCut
from flx_api.gateway.intake import BODY_TIMEOUT_S, CLIENT_GONE, ClientGone, take_body
from flx_api.gateway.responses import origin_of, problem, unexpected
from flx_api.gateway.routes_fast import Response, Whole

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api._core import Admission, Admitted
    from flx_api.auth.revocations import RevocationFollower
    from flx_api.config import Settings
    from flx_api.gateway.cors import Cors
    from flx_api.gateway.exchange import Message, Scope
    from flx_api.gateway.paths import Paths
    from flx_api.gateway.patience import Patience
    from flx_api.gateway.responses import Headers
    from flx_api.observability.metrics import Metrics

DECIDED: Final = "flx.decided"
"""In a scope: what the server's thread has found out about its request."""
_BODY_FAULTS: Final = frozenset({"payload_too_large", "request_timeout"})
_NO_CONTENT: Final = frozenset({204, 304})
# So many parts has a whole response of RSGI.
_OF_RSGI: Final = 3

_log = structlog.get_logger("flx.edge")


class Framework(Protocol):
    """An ASGI application."""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        """Serve one request."""
        ...


class Edge:
    """The HTTP face of a gateway.

    Args:
        settings: the limit of bodies.
        admission: paths, tokens and windows.
        patience: waits where a lease is not there yet.
        never_waits: no policy ever has to.
        revocations: whether tokens can be judged.
        paths: who serves which route.
        cors: who may ask from a page.
        metrics: where it is recorded.
        framework: what serves the routes without a handler of their own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        admission: Admission,
        patience: Patience,
        never_waits: bool,
        revocations: RevocationFollower,
        paths: Paths,
        cors: Cors,
        metrics: Metrics,
        framework: Framework,
    ) -> None:
        self._limit = settings.body_limit
        self._admission = admission
        self._patience = patience
        self.never_waits = never_waits
        self._revocations = revocations
        self._routes = paths.by_index
        self._cors = cors
        self._metrics = metrics
        self._framework = framework
        self._bodies = Alarms(BODY_TIMEOUT_S)

    async def http(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Serve one request: the request path from top to bottom."""
        # The server's thread may have decided about it already.
        seen = scope.pop(DECIDED, None) or self.admit(scope)
        if seen is None:
            seen = await self._patience.wait(lambda last: self.admit(scope, pages=False, last=last))
        if not isinstance(seen, tuple):
            await self.serve(scope, receive, send, seen)
            return
        try:
            for part in seen:
                await send(part)
        except (RuntimeError, OSError):
            # The server says that nobody takes it.
            return

    def admit(
        self, scope: Scope, *, pages: bool = True, last: bool | None = None
    ) -> Admitted | tuple[Message, Message] | None:
        """Decide about a request of ASGI: the two messages of a whole answer, or what was admitted.

        None when it has to be asked about again; never with `last`.
        """
        last = self.never_waits if last is None else last
        seen = self._admission.admit(scope, pages and not self._revocations.stale_refuses, last)
        if isinstance(seen, tuple) and self._cors.active:
            seen[0]["headers"] += self._cors.headers(origin_of(scope))
        return seen

    def decide(
        self,
        rsgi: Any,  # noqa: ANN401 - RSGI
        *,
        last: bool | None = None,
        bare: int | None = None,
        many: int | None = None,
    ) -> tuple[Any, ...] | None:
        """Decide about a request of RSGI: the three parts of a whole answer, or what was admitted and its scope.

        None when it has to be asked about again (`decide_later`); never with `last`. Requests of the routes `bare` and
        `many` that have a body of known length get no scope (None).
        """
        last = self.never_waits if last is None else last
        seen = self._admission.admit_rsgi(rsgi, not self._revocations.stale_refuses, last, bare, many)
        if seen is not None and self._cors.active and isinstance(seen[1], list):
            origin = rsgi.headers.get("origin")
            cors = self._cors.headers(None if origin is None else origin.encode())
            seen[1].extend((name.decode(), value.decode()) for name, value in cors)
        return seen

    async def decide_later(self, rsgi: Any) -> tuple[Any, ...]:  # noqa: ANN401 - RSGI
        """Decide about a request of RSGI that has to wait for a lease."""
        seen: tuple[Any, ...] = await self._patience.wait(lambda last: self.decide(rsgi, last=last))
        return seen

    def place_of(self, handler: Any) -> int | None:  # noqa: ANN401 - a handler
        """The index of the route whose POST this serves."""
        return next((index for index, route in enumerate(self._routes) if route.serve.get("POST") == handler), None)

    @property
    def is_stale(self) -> bool:
        """Whether tokens cannot be judged now, and are not believed then."""
        return self._revocations.stale_refuses

    async def serve(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        admitted: Admitted,
        rest: Callable[[Exchange], Awaitable[Response | Whole | None]] | None = None,
    ) -> None:
        """Serve a request that was admitted; or the `rest` of it, where it was begun elsewhere."""
        exchange = Exchange(scope, receive, send, admitted, self._routes[admitted.route], self._metrics)
        try:
            response = await (self._answer(exchange) if rest is None else rest(exchange))
            if response is not None:
                await self.respond(exchange, response)
        except FlxError as error:
            # Its trace holds frames that hold the request, and some of them the error: what is of the server in such a
            # circle would stay until the collector comes.
            error.__traceback__ = None
            await self.respond(exchange, self._refusal(exchange, error))
        except ClientGone:
            exchange.status = CLIENT_GONE
        except StreamCut:
            # Granian cuts a connection whose response has no end. It would do so for an exception too, but log that
            # with its trace, once for every follower of a log when the daemon goes away.
            _log.info("edge.stream_cut", request_id=exchange.request_id)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            # A panic of native code is a BaseException; it too must end as one 500 and not as a dead worker.
            _log.exception("edge.unexpected", request_id=exchange.request_id, kind=type(error).__name__)
            if exchange.status:
                raise
            error.__traceback__ = None
            await self.respond(exchange, Response(*problem(unexpected(), exchange.request_id)))
        finally:
            admitted.over(exchange.status or 500, exchange.mark_ns)

    async def _answer(self, exchange: Exchange) -> Response | Whole | None:
        """Take the body and let the route answer; None when it has responded by itself."""
        if exchange.principal is not None and self._revocations.stale_refuses:
            self._revocations.require()
        if exchange.admitted.length != 0:
            exchange.body = await take_body(exchange, self._limit, self._bodies)
        # A method of the route's own, as nearly all have; `_dispatch` is for whatever it may be.
        handler = exchange.route.serve.get(exchange.method)
        response: Response | Whole | None = await (self._dispatch(exchange) if handler is None else handler(exchange))
        return response

    async def _dispatch(self, exchange: Exchange) -> Response | Whole | None:
        """To the route's own handler, or to the framework; None when it has responded by itself."""
        if exchange.method == "OPTIONS":
            return self._options(exchange)
        method = "GET" if exchange.method == "HEAD" else exchange.method
        serve = exchange.route.serve.get(method)
        if serve is not None:
            response: Response | Whole | None = await serve(exchange)
            return response
        await self._frame(exchange, method)
        return None

    async def _frame(self, exchange: Exchange, method: str) -> None:
        """Let the framework serve: it gets a body that was read already, its responses get our headers."""
        scope = {**exchange.scope, "method": method, "flx": exchange}
        body: bytes | None = exchange.body

        async def receive() -> Message:
            nonlocal body
            if body is None:
                return await exchange.receive()
            message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = [pair for pair in message["headers"] if pair[0].lower() != b"server"]
                message = {**message, "headers": self.headers(exchange, headers, None)}
            elif exchange.method == "HEAD":
                message = {**message, "body": b""}
            await exchange.send(message)

        await self._framework(scope, receive, send)

    def _options(self, exchange: Exchange) -> Response:
        allow = exchange.route.allow
        headers: Headers = [(b"allow", allow.encode())]
        if b"access-control-request-method" in exchange.headers:
            headers += self._cors.preflight(exchange.headers.get(b"origin"), allow)
        return Response(204, headers, b"")

    def _refusal(self, exchange: Exchange, error: FlxError) -> Response:
        """The problem document of an error, and what it means for the connection."""
        status, headers, body = problem(error, exchange.request_id)
        self._metrics.refusal(error.code)
        if error.code in _BODY_FAULTS and _is_http1(exchange.scope):
            # The rest of the body is not worth reading.
            headers.append((b"connection", b"close"))
        return Response(status, headers, body)

    def headers(self, exchange: Exchange, own: Headers, length: int | None) -> Headers:
        """A response's own headers and those that every response carries."""
        if self._cors.active:
            own = [*own, *self._cors.headers(exchange.headers.get(b"origin"))]
        return exchange.admitted.headers(own, length)

    async def respond(self, exchange: Exchange, response: Response | Whole) -> None:
        """Send a whole response."""
        if isinstance(response, Whole):
            await self._pass_on(exchange, response)
            return
        status, own, body = response
        headers = self.headers(exchange, own, None if status in _NO_CONTENT else len(body))
        exchange.status = status
        if exchange.method == "HEAD":
            body = b""
        try:
            await exchange.send({"type": "http.response.start", "status": status, "headers": headers})
            await exchange.send({"type": "http.response.body", "body": body, "more_body": False})
        except (RuntimeError, OSError):
            # The client left before its answer; Granian says so by raising.
            exchange.status = CLIENT_GONE

    @staticmethod
    async def _pass_on(exchange: Exchange, response: Whole) -> None:
        """Send what is ready to be sent."""
        parts = response.parts
        if len(parts) == _OF_RSGI:
            status, headers, body = parts
            start: Message = {"type": "http.response.start", "status": status, "headers": headers}
            parts = (start, {"type": "http.response.body", "body": body})
        exchange.status = parts[0]["status"]
        try:
            for message in parts:
                await exchange.send(message)
        except (RuntimeError, OSError):
            exchange.status = CLIENT_GONE


def _is_http1(scope: Scope) -> bool:
    return str(scope.get("http_version", "1.1")).startswith("1")
