"""The RSGI face: Granian's own interface, for the same application as the ASGI face.

Strategy: a request of RSGI is read natively, once. What admission answers by itself leaves in one call; what it admits
goes through the one request path with a scope, a `receive` and a `send` as ASGI has them.

Rules, each a limit of RSGI 1.6 that was met (paths and headers: rust/py/src/rsgi.rs):
- A stream has no way to be broken off and no pressure against its writer; `flx_api.gateway.peer_socket` gives both.
- A chunk that could not be read is an empty one, and more than one empty chunk at the end of a body is a broken body.
- WebSockets: no subprotocol is told, a refusal has no body, and a Close frame has no code.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from flx_api._core import asgi_scope
from flx_api.gateway.bridge import Answering
from flx_api.gateway.peer_socket import PeerSocket, address_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api._core import Admitted
    from flx_api.gateway.edge import Edge
    from flx_api.gateway.exchange import Exchange, Message, Scope
    from flx_api.gateway.routes_fast import Response, Whole

ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_DISCONNECT: Final[Message] = {"type": "http.disconnect"}
_END: Final[Message] = {"type": "http.request", "body": b"", "more_body": False}
_REFUSALS: Final[dict[str, Any]] = {"websocket.http.response": {}}
WHOLE: Final = 3
"""A decision of so many parts is a whole answer: status, headers, body."""
_FORBIDDEN: Final = 403
_NO_STATUS: Final = 1005
_log = structlog.get_logger("flx.rsgi")


class Application(Protocol):
    """An ASGI application."""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        """Serve the lifespan, a request or a connection."""
        ...


class RsgiFace:
    """What makes an ASGI application an RSGI one too: Granian takes these methods when its interface is `rsgi`."""

    parts: Any = None
    _life: Lifespan | None = None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        """Serve the lifespan, a request or a connection; the application says how."""
        raise NotImplementedError

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start, before the first request; the worker ends when that fails."""
        self._life = Lifespan(self)
        failure = loop.run_until_complete(self._life.startup())
        if failure is not None:
            _log.error("gateway.not_started", reason=failure)
            sys.exit(1)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop, after the last request."""
        if self._life is not None:
            loop.run_until_complete(self._life.shutdown())

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:  # noqa: ANN401 - RSGI
        """Serve one request or one connection."""
        if scope.proto != "http":
            connection = WebSocketBridge(scope, protocol)
            await self(connection.scope, connection.receive, connection.send)
            return
        edge: Edge = self.parts.edge
        # The server's thread may have decided about it already.
        seen = self.parts.server_thread.decided.pop(scope, None) or edge.decide(scope)
        if seen is None:
            seen = await edge.decide_later(scope)
        if len(seen) == WHOLE:
            protocol.response_bytes(*seen)
            return
        admitted, bridged = seen
        await serve(edge, scope, protocol, admitted, asgi_scope(scope) if bridged is None else bridged)


async def serve(edge: Edge, rsgi: Any, protocol: Any, admitted: Admitted, scope: Scope) -> None:  # noqa: ANN401 - RSGI
    """Serve a request that was admitted."""
    bridge = HttpBridge(rsgi, protocol, admitted.length)
    try:
        await edge.serve(scope, bridge.receive, bridge.send, admitted)
    finally:
        bridge.finish()


async def serve_rest(
    edge: Edge,
    rsgi: Any,  # noqa: ANN401 - RSGI
    protocol: Any,  # noqa: ANN401 - RSGI
    admitted: Admitted,
    rest: Callable[[Exchange], Awaitable[Response | Whole | None]],
) -> None:
    """Serve the rest of a request that was begun, its body included, without a task."""
    bridge = HttpBridge(rsgi, protocol, 0)
    try:
        await edge.serve(asgi_scope(rsgi), bridge.receive_no_body, bridge.send, admitted, rest)
    finally:
        bridge.finish()


class Lifespan:
    """The server's side of an ASGI lifespan."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._inbound: asyncio.Queue[Message] = asyncio.Queue()
        self._outbound: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> str | None:
        """Start the application; why it did not, or None."""
        scope = {"type": "lifespan", "asgi": ASGI, "state": {}}
        self._task = asyncio.create_task(self._app(scope, self._inbound.get, self._outbound.put), name="lifespan")
        message = await self._tell("lifespan.startup")
        return None if message["type"] == "lifespan.startup.complete" else str(message.get("message", ""))

    async def shutdown(self) -> None:
        """Stop the application."""
        await self._tell("lifespan.shutdown")

    async def _tell(self, kind: str) -> Message:
        """Say something; the answer, or the end of the application, whichever is first."""
        if self._task is None or self._task.done():
            return {"type": f"{kind}.failed"}
        self._inbound.put_nowait({"type": kind})
        answer = asyncio.create_task(self._outbound.get())
        await asyncio.wait([answer, self._task], return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        return {"type": f"{kind}.failed", "message": repr(self._task.exception())}


class HttpBridge(Answering):
    """One admitted request of RSGI as ASGI: `receive` and `send`.

    Args:
        rsgi: its scope.
        protocol: its protocol.
        length: of its body; None when it ends when it ends.
    """

    __slots__ = ("_chunks", "_ended", "_length", "_protocol", "_rsgi", "_socket", "_stream")

    def __init__(self, rsgi: Any, protocol: Any, length: int | None) -> None:  # noqa: ANN401 - RSGI
        super().__init__()
        self._rsgi = rsgi
        self._protocol = protocol
        self._length = length
        self._chunks: Any = None
        self._ended = False
        self._stream: Any = None
        self._socket: PeerSocket | None = None

    async def receive(self) -> Message:
        """The next part of the body; after its end, that the client is gone."""
        if self._ended:
            await self._protocol.client_disconnect()
            return _DISCONNECT
        if self._length is None:
            return await self._next_chunk()
        self._ended = True
        try:
            # One hop for the whole body; its length was judged before anybody asked for it.
            return {"type": "http.request", "body": await self._protocol(), "more_body": False}
        except RuntimeError:
            return _DISCONNECT

    async def receive_no_body(self) -> Message:
        """Where the body was read already: that the client is gone."""
        await self._protocol.client_disconnect()
        return _DISCONNECT

    async def _next_chunk(self) -> Message:
        if self._chunks is None:
            self._chunks = aiter(self._protocol)
        chunk = await self._chunk()
        if chunk:
            return {"type": "http.request", "body": chunk, "more_body": True}
        # The end is an empty chunk, after which there is nothing. HTTP/2 may have empty ones in between; in HTTP/1 such
        # a one stands for a fault.
        following = None if chunk is None else await self._chunk()
        if following is not None and not self._rsgi.http_version.startswith("1"):
            return {"type": "http.request", "body": following, "more_body": True}
        self._ended = True
        return _END if following is None else _DISCONNECT

    async def _chunk(self) -> bytes | None:
        """The next chunk; None after the last one."""
        try:
            chunk: bytes = await self._chunks.__anext__()  # the function `anext` does not expect it to raise at once
        except StopAsyncIteration:
            return None
        return chunk

    def whole(self, status: int, headers: list[Any], body: bytes) -> None:
        """All of it at once."""
        self._protocol.response_bytes(status, headers, body)

    def begin(self, status: int, headers: list[Any]) -> None:
        """One whose body comes in parts."""
        self._stream = self._protocol.response_stream(status, headers)
        self._socket = PeerSocket.find(address_of(self._rsgi.server), address_of(self._rsgi.client))
        if self._socket is None:
            _log.warning("rsgi.stream_without_socket")

    async def part(self, body: bytes) -> None:
        """A part, as soon as there is room for it."""
        if self._socket is not None:
            await self._socket.room()
        try:
            await self._stream.send_bytes(body)
        except RuntimeError:
            # The client left; who has something to do about it asks `receive`.
            return

    def end(self) -> None:
        """That was the last part."""
        self._stream = None

    def finish(self) -> None:
        """The application is done: a stream that it has not ended is cut, so that nobody takes it for complete."""
        if self._socket is not None:
            if self._stream is not None:
                self._socket.cut()
            self._socket.close()
            self._socket = None
        self._stream = None


class WebSocketBridge:
    """One WebSocket of RSGI as ASGI."""

    __slots__ = ("_begun", "_protocol", "_refusal", "_transport", "scope")

    def __init__(self, rsgi: Any, protocol: Any) -> None:  # noqa: ANN401 - RSGI
        self._protocol = protocol
        self._transport: Any = None
        self._begun = False
        self._refusal = _FORBIDDEN
        self.scope = asgi_scope(rsgi)
        self.scope["type"] = "websocket"
        self.scope["client"] = address_of(rsgi.client)
        self.scope["scheme"] = "wss" if rsgi.scheme == "https" else "ws"
        # Their body is lost, but their status arrives.
        self.scope["extensions"] = _REFUSALS
        # None that could be selected: it would not be told.
        self.scope["subprotocols"] = []

    async def receive(self) -> Message:
        """The next message of the peer."""
        if not self._begun:
            self._begun = True
            return {"type": "websocket.connect"}
        if self._transport is None:
            return {"type": "websocket.disconnect", "code": _NO_STATUS}
        try:
            message = await self._transport.receive()
        except RuntimeError:
            return {"type": "websocket.disconnect", "code": _NO_STATUS}
        match message.kind:
            case 1:
                return {"type": "websocket.receive", "bytes": message.data}
            case 2:
                return {"type": "websocket.receive", "text": message.data}
            case _:
                return {"type": "websocket.disconnect", "code": _NO_STATUS}

    async def send(self, message: Message) -> None:
        """Accept, refuse, say something, or close."""
        match message["type"]:
            case "websocket.accept":
                self._transport = await self._protocol.accept()
            case "websocket.send":
                text = message.get("text")
                if text is None:
                    await self._transport.send_bytes(message["bytes"])
                else:
                    await self._transport.send_str(text)
            case "websocket.http.response.start":
                self._refusal = message["status"]
            case "websocket.http.response.body" | "websocket.close":
                self._protocol.close(self._refusal)
