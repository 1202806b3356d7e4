"""The edge: the one callable that the server calls, and the request path in its order.

    receive     who is speaking how: request id, Host, path, method; nothing is decided by a path that is in doubt
    admit       one call into the native core: token, then all windows; then the body, counted while it comes
    authorise   the permission of the command (in `flx_api.gateway.dispatch`)
    dispatch    the command route, without the framework; everything else goes to the framework
    upstream    the command travels to the daemon and its reply back
    respond     a result or a problem document, with the headers that every response carries
    record      always, whatever happened

Rules:
- What goes wrong in `receive` is answered after `admit`, so that nonsense is limited by address like anything else.
- An exception that is no `FlxError` is a fault of ours: logged with its trace, answered with 500 and no word about it.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from flx_api.errors import FlxError, InvalidRequest, NotFound, Unavailable
from flx_api.gateway.exchange import Exchange, RequestIds, StreamCut
from flx_api.gateway.intake import CLIENT_GONE, ClientGone, has_two_lengths, take_body
from flx_api.gateway.responses import finish, problem, refused, unexpected
from flx_api.gateway.routes_fast import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api._core import Admission
    from flx_api.auth.revocations import RevocationFollower
    from flx_api.config import Settings
    from flx_api.gateway.cors import Cors
    from flx_api.gateway.exchange import Message, Scope
    from flx_api.gateway.paths import Paths, Route
    from flx_api.gateway.responses import Headers
    from flx_api.observability.metrics import Metrics

_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")
# Names of commands hold a dot; every other path at the root is none of ours, whatever the method.
_ROOT_COMMAND: Final = "/{name}"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_log = structlog.get_logger("flx.edge")


class Framework(Protocol):
    """An ASGI application."""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        """Serve one request."""
        ...


class MethodNotAllowed(NotFound):
    """The path is known, the method is not one of its own."""

    default_code = "method_not_allowed"

    def __init__(self, allow: str) -> None:
        self.allow = allow
        super().__init__()


class Edge:
    """The HTTP face of a gateway.

    Args:
        settings: limits, hosts, who may read /metrics.
        admission: tokens and windows.
        revocations: whether tokens can be judged.
        paths: what is served where.
        cors: who may ask from a page.
        metrics: where it is recorded.
        framework: what serves the paths without a handler of their own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        admission: Admission,
        revocations: RevocationFollower,
        paths: Paths,
        cors: Cors,
        metrics: Metrics,
        framework: Framework,
    ) -> None:
        self._limit = settings.body_limit
        self._metrics_access = settings.metrics
        self._hosts = frozenset(host.lower().encode() for host in settings.trusted_hosts)
        self._admission = admission
        self._revocations = revocations
        self._paths = paths
        self._cors = cors
        self._metrics = metrics
        self._framework = framework
        self.request_ids = RequestIds()

    async def http(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Serve one request: the request path from top to bottom."""
        exchange = Exchange(scope, receive, send, self.request_ids.of(_request_id(scope)))
        try:
            fault = self._receive(exchange)
            exchange.passed("receive")
            self._admit(exchange, needs_token=fault is None and self._needs_token(exchange))
            if fault is not None:
                raise fault  # noqa: TRY301 - one place answers all errors, this function
            exchange.body = await take_body(exchange, self._limit)
            exchange.passed("admit")
            response = await self._dispatch(exchange)
            if response is not None:
                await self.respond(exchange, response)
        except FlxError as error:
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
            await self.respond(exchange, Response(*problem(unexpected(), exchange.request_id)))
        finally:
            exchange.passed("respond")
            self._record(exchange)

    def _receive(self, exchange: Exchange) -> FlxError | None:
        """Host, path and method; what is wrong with them."""
        try:
            self.check_host(exchange)
            scope = exchange.scope
            raw = scope.get("raw_path") or scope["path"].encode()
            exchange.path, route, exchange.values = self._paths.find(raw.split(b"?", 1)[0])
            if route.template == _ROOT_COMMAND and "." not in exchange.values["name"]:
                return NotFound()
            exchange.route = route
            method = "GET" if exchange.method == "HEAD" else exchange.method
            if method not in route.access and method != "OPTIONS":
                return MethodNotAllowed(route.allow)
        except FlxError as error:
            return error
        return None

    def check_host(self, exchange: Exchange) -> None:
        """One acceptable Host header.

        Raises:
            InvalidRequest: invalid_host.
        """
        host = exchange.host
        headers = exchange.scope["headers"]
        twice = len(headers) != len(exchange.headers) and sum(key == b"host" for key, _ in headers) > 1
        found = None if host is None or twice else _HOST.fullmatch(host)
        if found is None or (self._hosts and found[1].lower() not in self._hosts):
            raise InvalidRequest(code="invalid_host")

    def _needs_token(self, exchange: Exchange) -> bool | None:
        """Whether the route asks for a principal; None for probes, which nothing limits."""
        route = exchange.route
        method = "GET" if exchange.method == "HEAD" else exchange.method
        if route is None or method == "OPTIONS":
            return False
        access = route.access[method]
        if access == "probe":
            return None
        if access == "metrics":
            return self._metrics_access == "token"
        return access == "token"

    def _admit(self, exchange: Exchange, *, needs_token: bool | None) -> None:
        """Token and windows in one call.

        Raises:
            FlxError: the core refuses.
        """
        if needs_token is None:
            return
        if needs_token and self._revocations.stale_refuses:
            raise Unavailable(self._revocations.reason, retry_after_s=1)
        decision = self._admission.admit(
            exchange.scope["headers"], exchange.client, needs_token, time.time(), time.monotonic_ns()
        )
        exchange.decision = decision
        if decision.status != 200:  # noqa: PLR2004 - the core speaks HTTP
            self._metrics.refusal(decision.reason or "unknown")
            raise refused(decision)
        exchange.principal = decision.principal

    async def _dispatch(self, exchange: Exchange) -> Response | None:
        """To the route's own handler, or to the framework; None when it has responded by itself."""
        route = exchange.route
        if route is None:
            raise NotFound
        if exchange.method == "OPTIONS":
            return self._options(exchange, route)
        method = "GET" if exchange.method == "HEAD" else exchange.method
        serve = route.serve.get(method)
        if serve is not None:
            response: Response | None = await serve(exchange)
            return response
        await self._frame(exchange, method)
        return None

    async def _frame(self, exchange: Exchange, method: str) -> None:
        """Let the framework serve: it gets a body that was read already, its responses get our headers."""
        scope = {**exchange.scope, "method": method, "raw_path": exchange.path.encode(), "flx": exchange}
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
                message = {**message, "headers": finish(exchange, headers, self._cors)}
            elif exchange.method == "HEAD":
                message = {**message, "body": b""}
            await exchange.send(message)

        await self._framework(scope, receive, send)

    def _options(self, exchange: Exchange, route: Route) -> Response:
        headers: Headers = [(b"allow", route.allow.encode())]
        if b"access-control-request-method" in exchange.headers:
            headers += self._cors.preflight(exchange.origin, route.allow)
        return Response(204, headers, b"")

    def _refusal(self, exchange: Exchange, error: FlxError) -> Response:
        """The problem document of an error, and what it means for the connection."""
        status, headers, body = problem(error, exchange.request_id)
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", error.allow.encode()))
        if exchange.decision is None or exchange.decision.reason is None:
            self._metrics.refusal(error.code)
        done_for = error.code in {"payload_too_large", "invalid_host", "request_timeout"} or has_two_lengths(exchange)
        if done_for and _is_http1(exchange.scope):
            # The rest of the body, or whatever follows on the connection, is not worth reading, or to be believed.
            headers.append((b"connection", b"close"))
        return Response(status, headers, body)

    async def respond(self, exchange: Exchange, response: Response) -> None:
        """Send a whole response."""
        status, own, body = response
        headers = finish(exchange, own, self._cors)
        if status not in {204, 304}:
            headers.append((b"content-length", b"%d" % len(body)))
        exchange.status = status
        if exchange.method == "HEAD":
            body = b""
        try:
            await exchange.send({"type": "http.response.start", "status": status, "headers": headers})
            await exchange.send({"type": "http.response.body", "body": body, "more_body": False})
        except (RuntimeError, OSError):
            # The client left before its answer; Granian says so by raising.
            exchange.status = CLIENT_GONE

    def _record(self, exchange: Exchange) -> None:
        """Count the request; this runs whatever happened."""
        metrics = self._metrics
        for phase, nanoseconds in exchange.phases:
            metrics.phases[phase].observe(nanoseconds / 1e9)
        started = time.perf_counter_ns()
        route = exchange.route.template if exchange.route is not None else "unmatched"
        method = exchange.method if exchange.method in _METHODS else "other"
        metrics.request(route, method, exchange.status or 500, (started - exchange.started_ns) / 1e9)
        metrics.phases["record"].observe((time.perf_counter_ns() - started) / 1e9)


def _request_id(scope: Scope) -> bytes | None:
    for key, value in scope["headers"]:
        if key == b"x-request-id":
            return bytes(value)
    return None


def _is_http1(scope: Scope) -> bool:
    return str(scope.get("http_version", "1.1")).startswith("1")
