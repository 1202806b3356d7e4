"""The WebSocket of a client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from flx_api.client.connection import LOST, OPEN_TIMEOUT_S, Closed, Denied, NotMade, read
from flx_api.models.message import ServerMessage

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from flx_api.models.message import ClientMessage

# A log line has no bound of its own; the gateway sends it whole.
_MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
# The service takes 50 messages a second of a connection, and says so to the 51st.
_BURST: Final = 40
_BURST_S: Final = 1.0
_KNOWN: Final = frozenset(kind.__struct_config__.tag for kind in get_args(ServerMessage))


class _Kind(msgspec.Struct):
    type: str = ""


_kind = msgspec.json.Decoder(_Kind)


class WebSocketConnection:
    """A WebSocket that is open."""

    asks = True

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._outbox: asyncio.Queue[ClientMessage] = asyncio.Queue()
        self._sender = asyncio.create_task(self._send(), name="event-stream-sender")

    async def receive(self) -> ServerMessage | None:
        """The next message.

        Raises:
            Closed: it has ended.
        """
        try:
            text = await self._socket.recv()
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                raise Closed(LOST) from closed
            raise Closed(closed.rcvd.code, closed.rcvd.reason) from closed
        # A later version may send what this one does not know.
        return read(text) if _kind.decode(text).type in _KNOWN else None

    def ask(self, messages: Sequence[ClientMessage]) -> None:
        """Send these, as fast as they are taken."""
        for message in messages:
            self._outbox.put_nowait(message)

    async def close(self) -> None:
        """End it."""
        self._sender.cancel()
        await asyncio.gather(self._sender, return_exceptions=True)
        await self._socket.close()

    async def _send(self) -> None:
        sent = 0
        while True:
            message = await self._outbox.get()
            try:
                await self._socket.send(msgspec.json.encode(message).decode())
            except ConnectionClosed:
                return  # whoever receives finds out why
            sent += 1
            if sent % _BURST == 0:
                await asyncio.sleep(_BURST_S)


async def opened(url: str, token: str | None, tls: ssl.SSLContext | None) -> WebSocketConnection:
    """A new connection.

    Raises:
        Denied, NotMade: there is none.
    """
    options: dict[str, Any] = {} if tls is None else {"ssl": tls}
    try:
        socket = await connect(
            url,
            additional_headers={"Authorization": f"Bearer {token}"} if token else {},
            open_timeout=OPEN_TIMEOUT_S,
            max_size=_MAX_MESSAGE_BYTES,
            proxy=None,
            **options,
        )
    except InvalidStatus as error:
        answer = error.response
        raise Denied(answer.status_code, bytes(answer.body or b""), answer.headers.get("Retry-After", "")) from error
    except (TimeoutError, InvalidHandshake) as error:
        raise NotMade(str(error), speaks=True) from error
    except OSError as error:
        raise NotMade(str(error), speaks=False) from error
    return WebSocketConnection(socket)
