"""The events of some topics as one stream, over as many connections as it takes.

Strategy: `Progress` decides; this shell connects, sends what it asks for, and hands out what it finds. A connection
that ends is made again from the last position after a pause that grows with failures. Before a token ends, a new one is
asked for and offered on the connection; where that is refused the connection is made again with it.

Rules:
- `receive` may be cancelled at any moment: what came is handed out at the next call.
- Nothing is read before what was read last is handed out: a reader that is too slow is told so by the service, and
  resumes.
- Positions move with what was handed out, never ahead of it.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self, get_args

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from flx_api.client.backoff import Backoff
from flx_api.client.errors import Ended, EventsSkipped, Refused, TokenEnded, Unreachable
from flx_api.client.progress import Gap, Progress
from flx_api.client.tokens import expiry_of, renewal_in_s
from flx_api.models.message import ClientMessage, Error, Event, Expiring, Pong, Refresh, Refreshed, ServerMessage
from flx_api.websocket.close_codes import advice

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

_OPEN_TIMEOUT_S: Final = 10.0
# A log line has no bound of its own; the gateway sends it whole.
_MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
# The service takes 50 messages a second of a connection, and says so to the 51st.
_BURST: Final = 40
_BURST_S: Final = 1.0
_LOST: Final = 1006
_UNAUTHORIZED: Final = 401
# Statuses that say "not now": of the service, or of a proxy before it.
_NOT_NOW: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_ASKED_S: Final = 60.0
# For the answer to a token that was offered.
_REFRESH_S: Final = 10.0
_REFRESH: Final = "refresh"

_read = msgspec.json.Decoder(ServerMessage)
_KNOWN: Final = frozenset(kind.__struct_config__.tag for kind in get_args(ServerMessage))


class _Kind(msgspec.Struct):
    type: str = ""


_kind = msgspec.json.Decoder(_Kind)


class EventStream:
    """Events of topics, each once and in order; gaps are told.

    Args:
        url: the service's base URL: http, https, ws or wss.
        topics: exact names, `*`, or a beginning and `.*`.
        token: an access token, or a function (plain or async) that gives one; it is asked at every connection, and
            before the token it gave last ends.
        start: from where on: `positions` of an earlier stream, or one position for all topics.
        on_gap: told of each gap (plain or async). Without it a gap is raised as `EventsSkipped`.
        client_id: the connection's name, 1 to 128 letters, digits, or `._:@-`; made up when None.
        attempts: after so many failures in a row it gives up; None: never.
        backoff: the pauses between attempts.
        tls: how to check the service's certificate; None: as Python does by default.
    """

    def __init__(
        self,
        url: str,
        topics: Sequence[str],
        *,
        token: str | Callable[[], str | Awaitable[str]] | None = None,
        start: str | Mapping[str, str] | None = None,
        on_gap: Callable[[Gap], Awaitable[None] | None] | None = None,
        client_id: str | None = None,
        attempts: int | None = None,
        backoff: Backoff | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.client_id = client_id or f"py-{uuid.uuid4().hex[:12]}"
        self._url = f"{_websocket_url(url)}/ws/{self.client_id}"
        self._token = token
        self._on_gap = on_gap
        self._attempts = attempts
        self._backoff = backoff or Backoff()
        self._options: dict[str, Any] = {"ssl": tls} if tls is not None else {}
        self._progress = Progress(topics, start)
        self._positions = self._progress.positions
        self._due: deque[Event | Gap] = deque()
        self._socket: ClientConnection | None = None
        self._sender: asyncio.Task[None] | None = None
        self._outbox: asyncio.Queue[ClientMessage] = asyncio.Queue()
        self._pause_s = 0.0
        self._expiry_s: float | None = None
        self._renew_at: float | None = None
        self._refreshing = False
        self._refused_token = False

    async def __aenter__(self) -> Self:
        """The stream itself; it connects with the first event that is asked for."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events until the loop is left or something is raised (see `receive`)."""
        while True:
            yield await self.receive()

    @property
    def positions(self) -> dict[str, str]:
        """From where each topic goes on behind the last event that was handed out: `start` of a later stream."""
        return dict(self._positions if self._due else self._progress.positions)

    def subscribe(self, topic: str, start: str | None = None) -> None:
        """Hear another topic, from now or from a position on."""
        requests = self._progress.subscribe(topic, start)
        if self._socket is not None:
            self._post(requests)

    def unsubscribe(self, topic: str) -> None:
        """Hear a topic no more. Events of it that are on their way still come."""
        requests = self._progress.unsubscribe(topic)
        if self._socket is not None:
            self._post(requests)

    async def receive(self) -> Event:
        """The next event.

        Raises:
            Refused, TokenEnded, Ended, Unreachable: the stream is over.
            SubscriptionRefused: a topic may not be heard; the others go on.
            EventsSkipped: there was a gap, and no `on_gap`; the stream goes on behind it.
        """
        while True:
            while self._due:
                found = self._due[0]
                if not isinstance(found, Event) and self._on_gap is not None:
                    await _settled(self._on_gap(found))
                self._due.popleft()
                if isinstance(found, Event):
                    return found
                if self._on_gap is None:
                    raise EventsSkipped(found)
            socket = self._socket or await self._connected()
            try:
                async with asyncio.timeout_at(self._renew_at):
                    text = await socket.recv()
            except TimeoutError:
                await self._renew()
            except ConnectionClosed as closed:
                await self.close()
                self._take_end(closed)
            else:
                await self._take(text)

    async def close(self) -> None:
        """Close the connection; the next `receive` opens a new one and goes on."""
        socket, self._socket = self._socket, None
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        if socket is not None:
            await socket.close()

    # --- messages ----------------------------------------------------------------------------------------------------

    async def _take(self, text: str | bytes) -> None:
        # A later version may send what this one does not know.
        if _kind.decode(text).type not in _KNOWN:
            return
        message = _read.decode(text)
        match message:
            case Pong():
                # It answered everything that was asked of it, so the connection is a good one.
                self._backoff.reset()
            case Expiring() if callable(self._token) and not self._refreshing:
                await self._renew()
            case Refreshed():
                self._refreshing = False
                self._renew_at = self._renewal_at()
            case Error(of=of) if of == _REFRESH:
                # Perhaps it ended on its way: come again with another one, and go on where this connection was.
                await self.close()
            case _:
                pass
        self._positions = self._progress.positions
        self._due.extend(self._progress.take(message))

    def _take_end(self, closed: ConnectionClosed) -> None:
        """Decide what the end of a connection means.

        Raises:
            TokenEnded, Ended, Unreachable: the end of the stream.
        """
        code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (_LOST, "")
        match advice(code):
            case "resume":
                self._failed(closed)
            case "new_token" if callable(self._token):
                self._pause_s = 0.0
            case "new_token":
                raise TokenEnded
            case "stop":
                raise Ended(code, reason)

    def _post(self, messages: Sequence[ClientMessage]) -> None:
        for message in messages:
            self._outbox.put_nowait(message)

    async def _send(self, socket: ClientConnection, outbox: asyncio.Queue[ClientMessage]) -> None:
        """Send what is asked for, not faster than it is taken."""
        sent = 0
        while True:
            message = await outbox.get()
            try:
                await socket.send(msgspec.json.encode(message).decode())
            except ConnectionClosed:
                return  # whoever receives finds out why
            sent += 1
            if sent % _BURST == 0:
                await asyncio.sleep(_BURST_S)

    # --- connections -------------------------------------------------------------------------------------------------

    async def _connected(self) -> ClientConnection:
        """A new connection, as soon as there can be one.

        Raises:
            Refused, Unreachable: there will be none.
        """
        while True:
            pause_s, self._pause_s = self._pause_s, 0.0
            await asyncio.sleep(pause_s)
            token = await self._new_token()
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            try:
                socket = await connect(
                    self._url,
                    additional_headers=headers,
                    open_timeout=_OPEN_TIMEOUT_S,
                    max_size=_MAX_MESSAGE_BYTES,
                    proxy=None,
                    **self._options,
                )
            except InvalidStatus as error:
                self._take_refusal(error)
            except (OSError, TimeoutError, InvalidHandshake) as error:
                self._failed(error)
            else:
                self._socket, self._refused_token = socket, False
                self._outbox = asyncio.Queue()
                self._sender = asyncio.create_task(self._send(socket, self._outbox), name="event-stream-sender")
                self._post(self._progress.begin())
                return socket

    async def _new_token(self) -> str | None:
        self._refreshing = False
        if not callable(self._token):
            return self._token
        token: str = await _settled(self._token())
        known_s, self._expiry_s = self._expiry_s, expiry_of(token)
        # The same token again: there is no newer one, so it is used to its end.
        self._renew_at = None if self._expiry_s == known_s else self._renewal_at()
        return token

    def _renewal_at(self) -> float | None:
        if self._expiry_s is None:
            return None
        return asyncio.get_running_loop().time() + renewal_in_s(self._expiry_s, time.time())

    async def _renew(self) -> None:
        """Offer a new token on the connection; make that again when nobody has answered."""
        if self._refreshing:
            await self.close()
            return
        known_s = self._expiry_s
        token = await self._new_token()
        if token is not None and self._expiry_s != known_s and self._socket is not None:
            self._refreshing = True
            self._renew_at = asyncio.get_running_loop().time() + _REFRESH_S
            self._post([Refresh(token)])

    def _take_refusal(self, error: InvalidStatus) -> None:
        response = error.response
        status = response.status_code
        if status in _NOT_NOW:
            asked = response.headers.get("Retry-After", "")
            self._failed(error, min(float(asked), _MAX_ASKED_S) if asked.isdecimal() else 0.0)
            return
        if status == _UNAUTHORIZED and callable(self._token) and not self._refused_token:
            # It may have ended on its way; a second refusal is meant.
            self._refused_token = True
            return
        code, detail = _problem(bytes(response.body or b""))
        raise Refused(status, code, detail or f"the service answered {status}") from None

    def _failed(self, error: Exception, asked_s: float = 0.0) -> None:
        """Count a failure and set the pause before the next attempt.

        Raises:
            Unreachable: there were too many in a row.
        """
        if self._attempts is not None and self._backoff.failures >= self._attempts:
            msg = f"{self._url} cannot be reached: {error}"
            raise Unreachable(msg) from error
        self._pause_s = self._backoff.pause_s(asked_s)


async def _settled(value: Any) -> Any:  # noqa: ANN401 - what a function of the user's gave, or will give
    return await value if inspect.isawaitable(value) else value


def _websocket_url(url: str) -> str:
    scheme, separator, rest = url.rstrip("/").partition("://")
    if not separator or scheme not in {"http", "https", "ws", "wss"}:
        msg = "url: begins with http://, https://, ws:// or wss://"
        raise ValueError(msg)
    return f"{'wss' if scheme in {'https', 'wss'} else 'ws'}://{rest}"


class _Problem(msgspec.Struct):
    code: str = ""
    detail: str = ""


def _problem(body: bytes) -> tuple[str, str]:
    """Code and sentence of a problem document; empty for anything else."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", ""
    return problem.code, problem.detail
