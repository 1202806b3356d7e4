"""The events of some topics as one stream, over as many connections as it takes.

Strategy: `Progress` decides; this shell connects, sends what it asks for, and hands out what it finds. A connection
that ends is made again from the last position after a pause that grows with failures. Before a token ends, a new one is
asked for and offered on the connection; where that is refused, or nothing can be offered, the connection is made again
with it. Connections are WebSockets; where these do not get through, event streams over HTTP.

Rules:
- `receive` may be cancelled at any moment: what came is handed out at the next call.
- Nothing is read before what was read last is handed out: a reader that is too slow is told so by the service, and
  resumes.
- Positions move with what was handed out, never ahead of it.
- What the service itself says about a WebSocket is believed: only where somebody else answers, or nobody understands,
  is an event stream tried.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from flx_api.client import websocket
from flx_api.client.backoff import Backoff
from flx_api.client.connection import GIVEN_UP, Closed, Denied, NotMade
from flx_api.client.errors import Ended, EventsSkipped, Refused, TokenEnded, Unreachable
from flx_api.client.progress import Gap, Progress
from flx_api.client.tokens import expiry_of, renewal_in_s
from flx_api.errors import NOT_NOW
from flx_api.models.message import Error, Event, Expiring, Pong, Refresh, Refreshed, Subscribed
from flx_api.websocket.close_codes import advice

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from flx_api.client.connection import Connection
    from flx_api.models.message import ServerMessage

Transport = Literal["auto", "websocket", "sse"]

_UNAUTHORIZED: Final = 401
_MAX_ASKED_S: Final = 60.0
# For the answer to a token that was offered.
_REFRESH_S: Final = 10.0
_REFRESH: Final = "refresh"


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
        transport: `auto`: a WebSocket, and an event stream where that does not get through to the service; `websocket`
            or `sse`: that alone. An event stream begins all topics at one position, and is made again for a topic more.

    Raises:
        ValueError: `url` or `transport` is none, or an event stream cannot begin like that.
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
        transport: Transport = "auto",
    ) -> None:
        self.client_id = client_id or f"py-{uuid.uuid4().hex[:12]}"
        is_safe, base = _base_of(url)
        self._url = f"{'wss' if is_safe else 'ws'}://{base}/ws/{self.client_id}"
        self._stream_url = f"{'https' if is_safe else 'http'}://{base}/v1/events"
        self._transport = transport_of(transport)
        self._token = token
        self._on_gap = on_gap
        self._attempts = attempts
        self._backoff = backoff or Backoff()
        self._tls = tls
        self._progress = Progress(topics, start)
        if transport == "sse":
            _ = self._progress.position  # it raises when there is none
        self._positions = self._progress.positions
        self._due: deque[Event | Gap] = deque()
        self._connection: Connection | None = None
        self._next_token: str | None = None
        self._pause_ends = 0.0
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
        """Hear another topic, from now or from a position on. An event stream goes on with all from where it is.

        Raises:
            ValueError: an event stream cannot begin a topic elsewhere.
        """
        if self._transport == "sse":
            present = self._progress.position
            if start not in {None, present}:
                msg = "start: an event stream begins all its topics at one position"
                raise ValueError(msg)
            start = present
        requests = self._progress.subscribe(topic, start)
        if self._connection is not None:
            self._connection.ask(requests)

    def unsubscribe(self, topic: str) -> None:
        """Hear a topic no more. Events of it that are on their way still come."""
        requests = self._progress.unsubscribe(topic)
        if self._connection is not None:
            self._connection.ask(requests)

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
            connection = self._connection or await self._connected()
            try:
                async with asyncio.timeout_at(self._renew_at):
                    message = await connection.receive()
            except TimeoutError:
                await self._renew()
            except Closed as closed:
                await self.close()
                self._take_end(closed)
            else:
                if message is not None:
                    await self._take(message, connection)

    async def close(self) -> None:
        """Close the connection; the next `receive` opens a new one and goes on."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # --- messages ----------------------------------------------------------------------------------------------------

    async def _take(self, message: ServerMessage, connection: Connection) -> None:
        match message:
            case Pong():
                # It answered everything that was asked of it, so the connection is a good one.
                self._backoff.reset()
            case Subscribed() if not connection.asks:
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

    def _take_end(self, closed: Closed) -> None:
        """Decide what the end of a connection means.

        Raises:
            TokenEnded, Ended, Unreachable: the end of the stream.
        """
        if closed.code == GIVEN_UP:
            return
        match advice(closed.code):
            case "resume":
                self._failed(closed)
            case "new_token" if callable(self._token):
                self._pause_ends = 0.0
            case "new_token":
                raise TokenEnded
            case "stop":
                raise Ended(closed.code, closed.reason)

    # --- connections -------------------------------------------------------------------------------------------------

    async def _connected(self) -> Connection:
        """A new connection, as soon as there can be one.

        Raises:
            Refused, Unreachable: there will be none.
        """
        while True:
            # By the clock: whoever waits may be cancelled, and come again for the rest of the pause.
            await asyncio.sleep(max(0.0, self._pause_ends - asyncio.get_running_loop().time()))
            token, self._next_token = self._next_token or await self._new_token(), None
            try:
                connection = await self._opened(token)
            except Denied as denied:
                self._take_refusal(denied)
            except NotMade as error:
                self._failed(error)
            else:
                self._connection, self._refused_token = connection, False
                if connection.asks:
                    connection.ask(self._progress.begin())
                else:
                    self._progress.begin_together()
                return connection

    async def _opened(self, token: str | None) -> Connection:
        if self._transport == "sse":
            return await self._opened_stream(token)
        try:
            connection = await websocket.opened(self._url, token, self._tls)
        except (Denied, NotMade) as error:
            if self._transport != "auto" or not _is_of_somebody_else(error):
                raise
            try:
                stream = await self._opened_stream(token)
            except (Denied, NotMade, ValueError) as other:
                if isinstance(other, Denied) and other.code:
                    raise
                raise error from None
            self._transport = "sse"
            return stream
        self._transport = "websocket"
        return connection

    async def _opened_stream(self, token: str | None) -> Connection:
        from flx_api.client import sse  # noqa: PLC0415 - an HTTP client costs a tenth of a second, and few need it

        progress = self._progress
        if not progress.topics:
            msg = "topics: an event stream has at least one"
            raise ValueError(msg)
        return await sse.opened(self._stream_url, progress.topics, progress.position, token, self._tls)

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
        """Offer a new token on the connection; make that again when nobody has answered, or nothing can be offered."""
        if self._refreshing:
            await self.close()
            return
        known_s, connection = self._expiry_s, self._connection
        token = await self._new_token()
        if token is None or self._expiry_s == known_s or connection is None:
            return
        if not connection.asks:
            self._next_token = token
            await self.close()
            return
        self._refreshing = True
        self._renew_at = asyncio.get_running_loop().time() + _REFRESH_S
        connection.ask([Refresh(token)])

    def _take_refusal(self, denied: Denied) -> None:
        if denied.status in NOT_NOW:
            asked = denied.retry_after
            self._failed(denied, min(float(asked), _MAX_ASKED_S) if asked.isdecimal() else 0.0)
            return
        if denied.status == _UNAUTHORIZED and callable(self._token) and not self._refused_token:
            # It may have ended on its way; a second refusal is meant.
            self._refused_token = True
            return
        raise Refused(denied.status, denied.code, denied.detail or str(denied)) from None

    def _failed(self, error: Exception, asked_s: float = 0.0) -> None:
        """Count a failure and set the pause before the next attempt.

        Raises:
            Unreachable: there were too many in a row.
        """
        if self._attempts is not None and self._backoff.failures >= self._attempts:
            msg = f"{self._url} cannot be reached: {error}"
            raise Unreachable(msg) from error
        self._pause_ends = asyncio.get_running_loop().time() + self._backoff.pause_s(asked_s)


async def _settled(value: Any) -> Any:  # noqa: ANN401 - what a function of the user's gave, or will give
    return await value if inspect.isawaitable(value) else value


def _is_of_somebody_else(error: Denied | NotMade) -> bool:
    """Whether it may be that WebSockets do not get through to the service."""
    if isinstance(error, Denied):
        return not error.code and error.status not in NOT_NOW and error.status != _UNAUTHORIZED
    return error.speaks


def transport_of(name: str) -> Transport:
    """The transport of this name.

    Raises:
        ValueError: there is none.
    """
    found: dict[str, Transport] = {"auto": "auto", "websocket": "websocket", "sse": "sse"}
    if name not in found:
        msg = "transport: is auto, websocket or sse"
        raise ValueError(msg)
    return found[name]


def _base_of(url: str) -> tuple[bool, str]:
    """Whether with TLS, and where."""
    scheme, separator, rest = url.rstrip("/").partition("://")
    if not separator or scheme not in {"http", "https", "ws", "wss"}:
        msg = "url: begins with http://, https://, ws:// or wss://"
        raise ValueError(msg)
    return scheme in {"https", "wss"}, rest
