"""The native listener's side in Python: who comes in, and what the daemon has of the past.

Strategy: the listener (`flx_api._core.RealtimeListener`) has threads of its own, takes what happens from the process's
hub, and speaks the protocol without Python. A handshake is decided by the same steps as one of the ASGI face, on the
same scope, and a request for a stream of events takes the request path of the main port. History comes from the daemon,
a batch at a time, as fast as the connection takes it.

Rules:
- One process of a host listens: where the port is taken, it is asked for again every second, so that another worker
  takes over from one that died.
- A listener that has lost a thread is of no use, since nobody may be accepting: it is ended, with who is left at it,
  and the port asked for in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import structlog

from flx_api._core import RealtimeListener
from flx_api.errors import Conflict, FlxError, InvalidRequest, NotFound, StartupError, Unavailable
from flx_api.events.position import Position
from flx_api.gateway.certificate import certificate
from flx_api.gateway.responses import problem
from flx_api.websocket import protocol
from flx_api.websocket.connection_manager import MAX_CONNECTIONS, MAX_PER_SUBJECT, held_by_nobody, too_many
from flx_api.websocket.endpoint import chosen_of, dialect_of
from flx_api.websocket.history import catch_up, caught_up
from flx_api.websocket.sse import NATIVE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api._core import Hub, Principal
    from flx_api.config import Settings
    from flx_api.events.follower import Past
    from flx_api.gateway.edge import Edge
    from flx_api.gateway.exchange import Exchange, Message, Scope
    from flx_api.gateway.responses import Headers
    from flx_api.websocket.close_codes import CloseCode
    from flx_api.websocket.connection_manager import ConnectionManager
    from flx_api.websocket.endpoint import Endpoint, Offer
    from flx_api.websocket.history import History
    from flx_api.websocket.sse import Wanted
    from flx_api.websocket.standing import Standing

_AGAIN_S: Final = 1.0
_LOOK_S: Final = 0.01
_ID_GAP: Final = "0" * 16
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

_log = structlog.get_logger("flx.websocket")


class NativeFace:
    """The native listener of one gateway process, when this is the one that has it.

    `history` asks for what happened since a position, `known` says what it would give at once.

    Raises:
        StartupError: its certificate or key cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        hub: Hub,
        edge: Edge,
        endpoint: Endpoint,
        manager: ConnectionManager,
        standing: Standing,
        history: History,
        known: Callable[[list[str], Position], list[Past]],
    ) -> None:
        self._host = settings.api_host
        self._port = settings.realtime_port
        self._threads = settings.realtime_threads
        self._heartbeat_s = settings.heartbeat_s
        self._deflate = settings.realtime_deflate
        self._io_uring = settings.realtime_io_uring == "auto"
        self._tls = certificate(settings)
        self._hub = hub
        self._rules = settings.topics
        self._edge = edge
        self._endpoint = endpoint
        self._manager = manager
        self._standing = standing
        self._history = history
        self._known = known
        # Thousands who come at once have few sets of roles. Bounded, since names of roles come from tokens.
        self._classes = lru_cache(maxsize=256)(lambda roles: protocol.allowed_classes(roles, settings.topics))
        self._tasks: set[asyncio.Task[None]] = set()
        self._rooms: dict[int, asyncio.Event] = {}
        self._care: asyncio.Task[None] | None = None
        self.listener: RealtimeListener | None = None

    @property
    def is_listening(self) -> bool:
        """Whether this process is the one that listens."""
        return self.listener is not None

    def closed(self) -> dict[int, int]:
        """Its connections that have ended, by close code."""
        return {} if self.listener is None else self.listener.closed()

    def deflated(self) -> tuple[int, int, int]:
        """Frames that it compressed, their bytes times connections that got them so, and what these were sent."""
        return (0, 0, 0) if self.listener is None else self.listener.deflated()

    def rings(self) -> int:
        """How many of its threads send by io_uring."""
        return 0 if self.listener is None else self.listener.rings()

    # --- lifecycle ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, or go on trying to.

        Raises:
            StartupError: it cannot listen, and will not be able to.
        """
        if self._port is None:
            return
        if not self._listen():
            _log.info("realtime.port_taken", port=self._port)
        self._care = asyncio.create_task(self._go_on(), name="realtime-port")

    async def drain(self, within_s: float) -> None:
        """Send everybody away, one after the other; return when they are gone or the time is up."""
        if self._care is not None:
            self._care.cancel()
        listener = self.listener
        if listener is None:
            return
        listener.drain(int(within_s * 1000))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while len(listener):  # noqa: ASYNC110 - its thread tells nobody
                    await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """End the listener, and what is done for it."""
        if self._care is not None:
            self._care.cancel()
            await asyncio.gather(self._care, return_exceptions=True)
        await self._end()

    async def _end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listener = self.listener
        if listener is None:
            return
        self.listener = None
        self._manager.is_free = held_by_nobody
        asyncio.get_running_loop().remove_reader(listener.fileno())
        await asyncio.to_thread(listener.stop)

    async def _go_on(self) -> None:
        """Listen again when it has ceased, and go on asking for the port where it is taken."""
        cannot = ""
        while True:
            await asyncio.sleep(_AGAIN_S)
            if self.listener is not None:
                if self.listener.is_alive():
                    continue
                _log.error("realtime.ended", port=self.listener.port)
                await self._end()
            try:
                self._listen()
            except (OSError, StartupError) as error:
                # Said once; it may pass.
                if cannot != str(error):
                    cannot = str(error)
                    _log.error("realtime.cannot_listen", reason=cannot)

    def _listen(self) -> bool:
        address = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4]
        try:
            listener = RealtimeListener(
                self._hub,
                str(address[0]),
                int(address[1]),
                threads=self._threads,
                clock=time.monotonic,
                roster=self._standing.roster,
                refusals=_refusals(),
                connections=MAX_CONNECTIONS,
                per_subject=MAX_PER_SUBJECT,
                ping_ms=int(self._heartbeat_s * 1000),
                tls=self._tls,
                deflate=self._deflate,
                io_uring=self._io_uring,
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            detail = f"FLX_REALTIME_PORT: cannot listen: {error.strerror}"
            raise StartupError(detail) from None
        except ValueError as error:
            detail = f"FLX_SSL_CERT_FILE, FLX_SSL_KEY_FILE: {error}"
            raise StartupError(detail) from None
        self.listener, self._port = listener, listener.port
        self._manager.is_free = listener.is_free
        asyncio.get_running_loop().add_reader(listener.fileno(), self._asked)
        _log.info("realtime.listening", port=listener.port)
        return True

    def end(self, handles: list[int], code: CloseCode) -> None:
        """End connections."""
        if self.listener is not None:
            self.listener.close(handles, code, code.reason)

    # --- what is asked -----------------------------------------------------------------------------------------------

    def _asked(self) -> None:
        listener = self.listener
        if listener is None:
            return
        for kind, conn, *rest in listener.questions():
            match kind:
                case "handshake":
                    method, *request = rest
                    scope = self._scope(*request)
                    if method is None:
                        self._decide(listener, conn, scope)
                    else:
                        self._spawn(self._serve(listener, conn, {**scope, "type": "http", "method": method}))
                case "history":
                    self._tell(listener, conn, *rest)
                case "refresh":
                    self._renew(listener, conn, *rest)
                case _:
                    if conn in self._rooms:
                        self._rooms[conn].set()

    def _spawn(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _scope(self, peer: tuple[str, int], path: str, query: str, headers: list[tuple[bytes, bytes]]) -> Scope:
        """A handshake or a request as ASGI has it."""
        return {
            "type": "websocket",
            "http_version": "1.1",
            "scheme": "ws" if self._tls is None else "wss",
            "path": path,
            "raw_path": path.encode("utf-8", "surrogatepass"),
            "query_string": query.encode("utf-8", "surrogatepass"),
            "headers": headers,
            "client": peer,
            "extensions": {"websocket.http.response": {}},
        }

    async def _serve(self, listener: RealtimeListener, conn: int, scope: Scope) -> None:
        """Answer a request for a stream, as the main port would, but let the listener write the stream."""
        answer = _Answer()

        def seat(principal: Principal, wanted: Wanted, headers: Headers) -> None:
            refused = listener.accept_stream(
                conn,
                _head(200, [*headers, (b"transfer-encoding", b"chunked"), (b"connection", b"close")]),
                principal=principal,
                classes=protocol.allowed_classes(principal.roles, self._rules),
                topics=wanted.topics,
                from_=wanted.from_,
                ends_in_s=principal.expires_at - time.time(),
                since_us=time.time_ns() // 1000,
            )
            answer.is_given = refused is None or refused == "gone"
            if refused == "full":
                raise too_many()
            if not answer.is_given:
                raise protocol.refused(refused or "unknown")

        scope |= {"scheme": "http" if self._tls is None else "https", NATIVE: seat}
        await self._edge.http(scope, _nothing, answer.send)
        if not answer.is_given:
            listener.refuse(conn, answer.whole())

    def _decide(self, listener: RealtimeListener, conn: int, scope: Scope) -> None:
        """Let a handshake in or send it away, as the ASGI face would."""
        answer = _Answer()

        def seat(_: Exchange, offer: Offer, principal: Principal) -> None:
            chosen = chosen_of(scope, offer)
            refused = listener.accept(
                conn,
                offer.client_id,
                principal=principal,
                classes=self._classes(tuple(principal.roles)),
                subprotocol=chosen,
                dialect=dialect_of(chosen, offer),
                ends_in_s=principal.expires_at - time.time(),
                since_us=time.time_ns() // 1000,
            )
            if refused == "taken":
                raise Conflict(code="client_id_taken")
            if refused == "full":
                raise too_many()

        try:
            found = self._endpoint.admit_at_once(scope, _nothing, answer.send, seat)
        except Exception:  # noqa: BLE001 - said and logged; those behind it must not wait for ever
            _log.exception("handshake.unexpected")
            listener.refuse(conn, answer.whole())
            return
        if isinstance(found, tuple):
            found[0].admitted.over(101)
        else:
            self._spawn(_finish(listener, conn, answer, found))

    def _renew(self, listener: RealtimeListener, conn: int, key: int, seat: int, token: bytes) -> None:
        """Let another token be in force for a connection, if it may be."""
        current = self._standing.roster.principal(seat)
        if current is None:
            return
        try:
            principal = self._standing.renewal(current, token)
        except FlxError as error:
            listener.say(conn, [protocol.not_renewed(error)], is_complaint=True)
            return
        now_s = time.time()
        self._standing.roster.renew(seat, principal)
        classes = protocol.allowed_classes(principal.roles, self._rules)
        lost = listener.renew(conn, key, principal.subject, classes, principal.expires_at - now_s)
        listener.say(conn, protocol.renewed(principal, lost, now_s))

    def _tell(
        self,
        listener: RealtimeListener,
        conn: int,
        key: int,
        patterns: list[str],
        since: tuple[str, int, dict[str, int]],
    ) -> None:
        """Give a connection what the daemon has of some patterns since a position."""
        position, held = Position(*since), _Held(listener, conn, key)
        # Thousands come back at the same place: the daemon was asked for the first, and what it has is mostly little.
        if not caught_up(self._known(patterns, position), position, held):
            self._spawn(self._catch_up(conn, patterns, position, held))

    async def _catch_up(self, conn: int, patterns: list[str], position: Position, held: _Held) -> None:
        self._rooms[conn] = held.has_room
        try:
            await catch_up(self._history, patterns, position, held)
        finally:
            # It may have asked for another pattern meanwhile, and have that already.
            if self._rooms.get(conn) is held.has_room:
                del self._rooms[conn]


async def _finish(
    listener: RealtimeListener, conn: int, answer: _Answer, rest: Awaitable[tuple[Exchange, None] | None]
) -> None:
    """Do what is left to do for a handshake."""
    found = await rest
    if found is None:
        listener.refuse(conn, answer.whole())
    else:
        found[0].admitted.over(101)


class _Held:
    """A connection that is catching up."""

    def __init__(self, listener: RealtimeListener, conn: int, key: int) -> None:
        self._listener = listener
        self._conn = conn
        self._key = key
        self.has_room = asyncio.Event()

    def backfill(self, past: Past) -> bool | None:
        """Give it a batch."""
        self.has_room.clear()
        return self._listener.backfill(
            self._conn, self._key, past.epoch, past.events, past.journal_seq, is_last=past.is_last
        )

    async def room(self) -> None:
        """Wait until it has taken the batch."""
        await self.has_room.wait()

    def give_up(self, reason: str) -> None:
        """Let it go on with a gap."""
        self._listener.give_up(self._conn, self._key, reason)


class _Answer:
    """The answer to a handshake or a request that is refused, put together as HTTP/1.1.

    `is_given` says that the listener has answered by itself.
    """

    def __init__(self) -> None:
        self.is_given = False
        self._status = 500
        self._headers: Headers = []
        self._body = b""

    async def send(self, message: Message) -> None:
        """Take what an ASGI server would send."""
        if message["type"].endswith("start"):
            self._status, self._headers = message["status"], message["headers"]
        else:
            self._body += message["body"]

    def whole(self) -> bytes:
        """All of it."""
        return _http(self._status, self._headers, self._body)


async def _nothing() -> Message:
    """What comes of a connection that is not accepted."""
    return {"type": "websocket.disconnect"}


def _http(status: int, headers: Headers, body: bytes) -> bytes:
    own = [line for line in headers if line[0] not in {b"content-length", b"connection"}]
    if status != HTTPStatus.NO_CONTENT:
        own.append((b"content-length", b"%d" % len(body)))
    return _head(status, [*own, (b"connection", b"close")]) + body


def _head(status: int, headers: Headers) -> bytes:
    lines = [b"HTTP/1.1 %d %s" % (status, _REASONS.get(status, "").encode())]
    lines += [b"%s: %s" % line for line in headers]
    return b"\r\n".join([*lines, b"", b""])


def _refusals() -> dict[str, bytes]:
    """What is answered to what is no handshake."""
    found: dict[str, tuple[FlxError, Headers]] = {
        "malformed": (InvalidRequest("The request is not HTTP/1.1 as it is to be written"), []),
        "body": (InvalidRequest("A handshake has no body"), []),
        "too_large": (InvalidRequest("The head of the request is too large"), []),
        "timeout": (Unavailable("The handshake took too long", code="request_timeout"), []),
        "method": (NotFound(code="method_not_allowed"), [(b"allow", b"GET, HEAD, OPTIONS")]),
        "host": (InvalidRequest(code="invalid_host"), []),
        "no_upgrade": (
            InvalidRequest("This port speaks WebSocket and serves /v1/events: the request must ask for an upgrade"),
            [],
        ),
        "version": (InvalidRequest("Sec-WebSocket-Version must be 13"), [(b"sec-websocket-version", b"13")]),
        "key": (InvalidRequest("Sec-WebSocket-Key is not 16 bytes in base64"), []),
        "extensions": (InvalidRequest("Sec-WebSocket-Extensions is not a list of extensions"), []),
        "full": (too_many(), []),
        "draining": (Unavailable(code="shutting_down", retry_after_s=1), []),
    }
    answers = {}
    for fault, (error, own) in found.items():
        status, headers, body = problem(error, _ID_GAP)
        answers[fault] = _http(status, [*headers, *own], body)
    return answers
