"""The native listener's side in Python: who comes in, what the daemon has of the past, and what happens.

Strategy: the listener (`flx_api._core.RealtimeListener`) has a thread and a hub of its own and speaks the protocol
without Python. A handshake is decided by the same steps as one of the ASGI face, on the same scope; history comes from
the daemon, a batch at a time, as fast as the connection takes it.

Rules:
- One process of a host listens: where the port is taken, it is asked for again every second, so that another worker
  takes over from one that died.
- What is told to the listener's hub is what the follower takes, in its order.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from flx_api._core import RealtimeListener
from flx_api.errors import Conflict, InvalidRequest, NotFound, RateLimited, StartupError, Unavailable
from flx_api.events.follower import DEFAULT_TENANT, ended, start_of, tells_all, told
from flx_api.events.position import Position
from flx_api.gateway.responses import problem
from flx_api.websocket import protocol
from flx_api.websocket.connection_manager import MAX_CONNECTIONS, MAX_PER_SUBJECT
from flx_api.websocket.endpoint import chosen_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from flx_api._core import Principal
    from flx_api.config import Settings
    from flx_api.errors import FlxError
    from flx_api.gateway.exchange import Exchange, Message, Scope
    from flx_api.gateway.responses import Headers
    from flx_api.proto.flx.v1.daemon_pb2 import EventBatch
    from flx_api.websocket.connection_manager import ConnectionManager
    from flx_api.websocket.endpoint import Endpoint, Offer

_AGAIN_S: Final = 1.0
_HISTORY_S: Final = 30.0
# Within the time that a gateway has to say goodbye.
_DRAIN_MS: Final = 200
_ID_GAP: Final = "0" * 16
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

_log = structlog.get_logger("flx.websocket")


class NativeFace:
    """The native listener of one gateway process, when this is the one that has it.

    Raises:
        StartupError: its certificate or key cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        endpoint: Endpoint,
        manager: ConnectionManager,
        history: Callable[[list[str], Position], AsyncGenerator[EventBatch, None]],
        now: Callable[[], Position],
    ) -> None:
        self._host = settings.api_host
        self._port = settings.realtime_port
        self._tls = _tls(settings)
        self._endpoint = endpoint
        self._manager = manager
        self._history = history
        self._now = now
        self._epoch = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._rooms: dict[int, asyncio.Event] = {}
        self._start: asyncio.Task[None] | None = None
        self.listener: RealtimeListener | None = None

    @property
    def is_listening(self) -> bool:
        """Whether this process is the one that listens."""
        return self.listener is not None

    def connections(self) -> int:
        """How many WebSockets it has."""
        return 0 if self.listener is None else len(self.listener)

    # --- lifecycle ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, or go on trying to.

        Raises:
            StartupError: it cannot listen, and will not be able to.
        """
        if self._port is not None and not self._listen():
            self._start = asyncio.create_task(self._wait_for_port(), name="realtime-port")

    async def drain(self) -> None:
        """Send everybody away."""
        if self.listener is not None:
            self.listener.drain(_DRAIN_MS)

    async def close(self) -> None:
        """End the listener, and what is done for it."""
        tasks = [*self._tasks, *([self._start] if self._start is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.listener is not None:
            asyncio.get_running_loop().remove_reader(self.listener.fileno())
            await asyncio.to_thread(self.listener.stop)

    async def _wait_for_port(self) -> None:
        _log.info("realtime.port_taken", port=self._port)
        while not self._listen():  # noqa: ASYNC110 - nothing tells when a port becomes free
            await asyncio.sleep(_AGAIN_S)

    def _listen(self) -> bool:
        address = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4]
        try:
            listener = RealtimeListener(
                str(address[0]),
                int(address[1]),
                refusals=_refusals(),
                connections=MAX_CONNECTIONS,
                per_subject=MAX_PER_SUBJECT,
                tls=self._tls,
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            detail = f"FLX_REALTIME_PORT: cannot listen: {error.strerror}"
            raise StartupError(detail) from None
        except ValueError as error:
            detail = f"FLX_SSL_CERT_FILE, FLX_SSL_KEY_FILE: {error}"
            raise StartupError(detail) from None
        self.listener = listener
        position = self._now()
        if position.epoch:
            self._begin(listener, position.epoch, position.seq, "")
        self._manager.is_free = listener.is_free
        asyncio.get_running_loop().add_reader(listener.fileno(), self._asked)
        _log.info("realtime.listening", port=listener.port)
        return True

    # --- what happens ------------------------------------------------------------------------------------------------

    def take(self, batch: EventBatch) -> None:
        """Tell the hub what the follower took."""
        listener = self.listener
        if listener is None:
            return
        if self._epoch != batch.epoch or batch.gap_reason:
            self._begin(listener, batch.epoch, start_of(batch), batch.gap_reason or "epoch")
        listener.append(told(batch.events))
        for event in batch.events:
            over = ended(event)
            if over is not None:
                listener.over(*over)
        listener.advance(batch.journal_seq)

    def publish(self, tenant: str, topic: str, ts_us: int, data: bytes) -> None:
        """Tell an event that this process alone knows."""
        if self.listener is not None:
            self.listener.publish(tenant, topic, ts_us, data)

    def _begin(self, listener: RealtimeListener, epoch: str, seq: int, reason: str) -> None:
        self._epoch = epoch
        listener.restart(epoch, seq, reason)

    # --- what is asked -----------------------------------------------------------------------------------------------

    def _asked(self) -> None:
        listener = self.listener
        if listener is None:
            return
        for kind, conn, *rest in listener.questions():
            match kind:
                case "handshake":
                    self._spawn(self._decide(listener, conn, *rest))
                case "history":
                    self._spawn(self._tell(listener, conn, *rest))
                case _:
                    if conn in self._rooms:
                        self._rooms[conn].set()

    def _spawn(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _decide(  # noqa: PLR0917 - what is asked, in its order
        self,
        listener: RealtimeListener,
        conn: int,
        peer: tuple[str, int],
        path: str,
        query: str,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        """Let a handshake in or send it away, as the ASGI face would."""
        answer = _Answer()
        scope: Scope = {
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

        def seat(_: Exchange, offer: Offer, principal: Principal) -> None:
            refused = listener.accept(
                conn,
                offer.client_id,
                tenant=principal.tenant or DEFAULT_TENANT,
                subject=principal.subject,
                classes=list(protocol.allowed_classes(principal.roles)),
                subprotocol=chosen_of(scope, offer),
                ends_in_s=principal.expires_at - time.time(),
            )
            if refused == "taken":
                raise Conflict(code="client_id_taken")
            if refused == "too_many":
                detail = "There are too many connections"
                raise RateLimited(detail, retry_after_s=5)

        found = await self._endpoint.admit(scope, _nothing, answer.send, seat)
        if found is None:
            listener.refuse(conn, answer.whole())
        else:
            found[0].admitted.over(101)

    async def _tell(
        self, listener: RealtimeListener, conn: int, key: int, pattern: str, since: tuple[str, int, dict[str, int]]
    ) -> None:
        """Give a connection what the daemon has of a pattern since a position."""
        room = self._rooms[conn] = asyncio.Event()
        reason = "upstream_unavailable"
        batches = self._history([pattern], Position(*since))
        try:
            async with asyncio.timeout(_HISTORY_S):
                async for batch in batches:
                    if batch.gap_reason or batch.epoch != since[0]:
                        reason = batch.gap_reason or "epoch"
                        break
                    events = told(batch.events)
                    is_last = tells_all(batch)
                    room.clear()
                    done = listener.backfill(conn, key, batch.epoch, events, batch.journal_seq, is_last=is_last)
                    if done is None:
                        reason = "epoch"
                        break
                    if done:
                        return
                    await room.wait()
        except (TimeoutError, Unavailable):
            pass
        finally:
            del self._rooms[conn]
            # Left early, it would hold its stream until it is collected.
            await batches.aclose()
        listener.give_up(conn, key, reason)


class _Answer:
    """The answer to a handshake that is refused, put together as HTTP/1.1."""

    def __init__(self) -> None:
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
    lines = [b"HTTP/1.1 %d %s" % (status, _REASONS.get(status, "").encode())]
    lines += [b"%s: %s" % line for line in headers if line[0] not in {b"content-length", b"connection"}]
    lines += [b"content-length: %d" % len(body), b"connection: close", b"", body]
    return b"\r\n".join(lines)


def _refusals() -> dict[str, bytes]:
    """What is answered to what is no handshake."""
    found: dict[str, tuple[FlxError, Headers]] = {
        "malformed": (InvalidRequest("The request is not HTTP/1.1 as it is to be written"), []),
        "body": (InvalidRequest("A handshake has no body"), []),
        "too_large": (InvalidRequest("The head of the request is too large"), []),
        "timeout": (Unavailable("The handshake took too long", code="request_timeout"), []),
        "method": (NotFound(code="method_not_allowed"), [(b"allow", b"GET")]),
        "host": (InvalidRequest(code="invalid_host"), []),
        "no_upgrade": (InvalidRequest("This port speaks WebSocket: the request must ask for an upgrade"), []),
        "version": (InvalidRequest("Sec-WebSocket-Version must be 13"), [(b"sec-websocket-version", b"13")]),
        "key": (InvalidRequest("Sec-WebSocket-Key is not 16 bytes in base64"), []),
        "full": (RateLimited("There are too many connections", retry_after_s=5), []),
        "draining": (Unavailable(code="shutting_down", retry_after_s=1), []),
    }
    answers = {}
    for fault, (error, own) in found.items():
        status, headers, body = problem(error, _ID_GAP)
        answers[fault] = _http(status, [*headers, *own], body)
    return answers


def _tls(settings: Settings) -> tuple[bytes, bytes] | None:
    if not (settings.enable_ssl and settings.ssl_cert_file and settings.ssl_key_file):
        return None
    try:
        return Path(settings.ssl_cert_file).read_bytes(), Path(settings.ssl_key_file).read_bytes()
    except OSError as error:
        detail = f"FLX_SSL_CERT_FILE, FLX_SSL_KEY_FILE: cannot be read: {error.strerror}"
        raise StartupError(detail) from None
