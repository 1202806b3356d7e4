"""An application for Granian whose answers say where they were made: `thread` (whole answers) or `task` (the rest)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from flx_api.gateway.edge import DECIDED
from flx_api.gateway.server_thread import ServerThread

if TYPE_CHECKING:
    from flx_api._core import Admitted

_HEADERS = [("content-type", "text/plain")]
_RAW = [(b"content-type", b"text/plain")]


class Edge:
    """Answers `/thread` at once, and has found something out about `/decided`."""

    def admit(self, scope: dict[str, Any]) -> Any:
        """Decide about a request of ASGI."""
        if scope["path"] == "/raise":
            raise MemoryError
        if scope["path"] == "/thread":
            start = {"type": "http.response.start", "status": 200, "headers": _RAW}
            return start, {"type": "http.response.body", "body": b"thread"}
        return "decided" if scope["path"] == "/decided" else None

    def decide(self, scope: Any, *, bare: int | None, many: int | None) -> Any:
        """Decide about a request of RSGI."""
        assert (None, None) == (bare, many)
        if scope.path == "/raise":
            raise MemoryError
        if scope.path == "/thread":
            return 200, _HEADERS, b"thread"
        return ("decided", {}) if scope.path == "/decided" else None


class Rides:
    """Nothing rides."""

    bare = many = None

    def carries(self, scope: dict[str, Any], admitted: Admitted) -> bool:
        """Whether a request of ASGI may."""
        del scope, admitted
        return False

    def takes(self, query: str) -> bool:
        """Whether one with this query may."""
        del query
        return False


class App:
    """What was not answered in the thread."""

    def __init__(self) -> None:
        edge: Any = Edge()
        rides: Any = Rides()
        self._thread = ServerThread(edge, rides)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve as ASGI."""
        if scope["type"] == "lifespan":
            await receive()
            self._thread.install(asyncio.get_running_loop())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": "task"})
            await send({"type": "websocket.close"})
            return
        body = b"task, " + str(scope.get(DECIDED)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": _RAW})
        await send({"type": "http.response.body", "body": body})

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin."""
        self._thread.install(loop)

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Serve as RSGI."""
        if scope.proto == "ws":
            transport = await protocol.accept()
            await transport.send_str("task")
            protocol.close()
            return
        decided = self._thread.decided.pop(scope, (None,))
        protocol.response_bytes(200, _HEADERS, b"task, " + str(decided[0]).encode())


app = App()
