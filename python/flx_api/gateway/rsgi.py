"""The RSGI face: Granian's own interface, for the same application as the ASGI face.

Strategy: a request of RSGI is turned into what the edge understands (a scope, `receive`, `send`) and its answers into
calls of the protocol: a whole response is one call. So there is one request path, and the faces differ only here.

Rules, each a limit of RSGI 1.6 that was met:
- There is no raw path. What cannot stand unescaped in a path is escaped again; an escaped plain character cannot be
  told from a plain one, so that here `%2f` is a slash and `%70` a `p`. Everything that decides sees this one path.
- A header whose value is not ASCII is left out without a word. It is put back with a value that nothing accepts.
- A stream has no way to be broken off and no pressure against its writer; `flx_api.gateway.peer_socket` gives both.
- A chunk that could not be read is an empty one, and more than one empty chunk at the end of a body is a broken body.
- WebSockets: no subprotocol is told, a refusal has no body, and a Close frame has no code.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

import structlog

from flx_api.gateway.peer_socket import PeerSocket, address_of

if TYPE_CHECKING:
    from flx_api.gateway.exchange import Message, Scope
    from flx_api.gateway.responses import Headers

ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_DISCONNECT: Final[Message] = {"type": "http.disconnect"}
_END: Final[Message] = {"type": "http.request", "body": b"", "more_body": False}
_REFUSALS: Final[dict[str, Any]] = {"websocket.http.response": {}}
_FORBIDDEN: Final = 403
_NO_STATUS: Final = 1005
# What may stand in a path as it is (http::uri), whether or not we serve it. `%` is no part of it: a path that still
# holds one was escaped twice.
_RAW: Final = "/!\"$&'()*+,-.:;=@[\\]^_`{|}~"
# Bytes that were no UTF-8 arrive as this character. Escaped like this they are refused as on the other face.
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_NOT_UTF8: Final = "%ff"
# Refused wherever it is read, and by the right name: a token that cannot be one is still a token that was given.
_UNREADABLE: Final = b"Bearer \xff"

_log = structlog.get_logger("flx.rsgi")


class Application(Protocol):
    """An ASGI application."""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        """Serve the lifespan, a request or a connection."""
        ...


class RsgiFace:
    """What makes an ASGI application an RSGI one too: Granian takes these methods when its interface is `rsgi`."""

    _life: Lifespan | None = None
    wants_lane = False

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
        if self.wants_lane:
            from flx_api.gateway.lane import install  # noqa: PLC0415 - it is made of this module

            install(self)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop, after the last request."""
        if self._life is not None:
            loop.run_until_complete(self._life.shutdown())

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:  # noqa: ANN401 - RSGI
        """Serve one request or one connection."""
        if scope.proto == "http":
            request = HttpBridge(scope, protocol)
            try:
                await self(request.scope, request.receive, request.send)
            finally:
                request.finish()
        else:
            connection = WebSocketBridge(scope, protocol)
            await self(connection.scope, connection.receive, connection.send)


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


class HttpBridge:
    """One request of RSGI as ASGI: `scope`, `receive` and `send`."""

    __slots__ = ("_chunks", "_ended", "_length", "_protocol", "_rsgi", "_socket", "_start", "_stream", "scope")

    def __init__(self, rsgi: Any, protocol: Any) -> None:  # noqa: ANN401 - RSGI
        self._rsgi = rsgi
        self._protocol = protocol
        self.scope = scope_of(rsgi, "http")
        self.scope["method"] = rsgi.method
        headers = dict(self.scope["headers"])
        self._length = None if b"transfer-encoding" in headers else headers.get(b"content-length")
        self._chunks: Any = None
        self._ended = False
        self._start: tuple[int, list[tuple[str, str]]] | None = None
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

    async def send(self, message: Message) -> None:
        """A part of the response. A whole one leaves as one call, with its last part."""
        if message["type"] == "http.response.start":
            self._start = message["status"], text_of(message["headers"])
            return
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if self._stream is None:
            if self._start is None:
                msg = "There is no response that could have a body"
                raise RuntimeError(msg)
            status, headers = self._start
            self._start = None
            if not more:
                self._protocol.response_bytes(status, headers, body)
                return
            self._stream = self._protocol.response_stream(status, headers)
            self._socket = PeerSocket.find(address_of(self._rsgi.server), address_of(self._rsgi.client))
            if self._socket is None:
                _log.warning("rsgi.stream_without_socket")
        if body:
            await self._pass_on(body)
        if not more:
            self._stream = None

    async def _pass_on(self, body: bytes) -> None:
        if self._socket is not None:
            await self._socket.room()
        try:
            await self._stream.send_bytes(body)
        except RuntimeError:
            # The client left; who has something to do about it asks `receive`.
            return

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
        self.scope = scope_of(rsgi, "websocket")
        self.scope["scheme"] = "wss" if rsgi.scheme == "https" else "ws"
        # Their body is lost, but their status arrives.
        self.scope["extensions"] = _REFUSALS
        offered = b",".join(value for key, value in self.scope["headers"] if key == b"sec-websocket-protocol")
        self.scope["subprotocols"] = [name.strip() for name in offered.decode("latin-1").split(",") if name.strip()]

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


def scope_of(rsgi: Any, kind: str) -> Scope:  # noqa: ANN401 - RSGI
    """What ASGI calls a scope, but for what only requests or only connections have."""
    raw = raw_path(rsgi.path)
    return {
        "type": kind,
        "asgi": ASGI,
        "http_version": rsgi.http_version,
        "scheme": rsgi.scheme,
        "path": rsgi.path,
        "raw_path": raw.encode(),
        "query_string": rsgi.query_string.encode(),
        "root_path": "",
        "headers": headers_of(rsgi),
        "client": address_of(rsgi.client),
        "server": address_of(rsgi.server),
    }


def raw_path(path: str) -> str:
    """A path as it may have stood in the request: what cannot have stood there is escaped."""
    return quote(path.replace(_REPLACEMENT, "\0"), safe=_RAW).replace("%00", _NOT_UTF8)


def headers_of(rsgi: Any) -> Headers:  # noqa: ANN401 - RSGI
    """The headers of a request, those with an unreadable value included."""
    found = rsgi.headers  # each look at it copies it
    items: list[tuple[str, str]] = found.items()
    headers = [(name.encode(), value.encode()) for name, value in items]
    readable = {name for name, _ in items}
    if len(found) != len(readable):
        headers += [(name.encode(), _UNREADABLE) for name in found.keys() if name not in readable]  # noqa: SIM118 - no mapping
    if "host" not in found:
        headers.insert(0, (b"host", (rsgi.authority or "").encode()))
    return headers


def text_of(headers: Headers) -> list[tuple[str, str]]:
    """Headers of a response as RSGI takes them."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
