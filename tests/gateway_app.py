"""The application in this process, beside a small daemon: the real ASGI callable without a server."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from tests.gateway_process import SECRET
from tests.small_daemon import SmallDaemon, serving

from flx_api._core import Admitted
from flx_api.config import load
from flx_api.dependencies import Parts
from flx_api.gateway.exchange import Exchange
from flx_api.main import Gateway
from flx_api.upstream.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from grpclib.server import Server

    from flx_api.config import Settings
    from flx_api.gateway.exchange import Message, Scope


def settings(**overrides: Any) -> Settings:
    """Settings of a test."""
    return load({"FLX_JWT_SECRET_KEY": SECRET, "FLX_REALTIME_PORT": "off"}, overrides)


class Running:
    """A gateway whose parts are started."""

    def __init__(
        self, app: Gateway, parts: Parts, daemon: SmallDaemon, server: Server, client: httpx.AsyncClient
    ) -> None:
        self.app = app
        self.parts = parts
        self.daemon = daemon
        self.server = server
        self.client = client


def built(**overrides: Any) -> Parts:
    """The parts of a gateway that nothing is connected to."""
    return Parts(settings(**overrides), Endpoint(path="/nowhere"))


def exchange(wire: Wire, request: Scope, parts: Parts | None = None) -> Exchange:
    """A request that was admitted.

    Raises:
        AssertionError: it was not.
    """
    parts = parts or built()
    seen = parts.admission.admit(request)
    assert isinstance(seen, Admitted), seen
    return Exchange(request, wire.receive, wire.send, seen, parts.paths.by_index[seen.route], parts.metrics)


@contextlib.asynccontextmanager
async def running(**overrides: Any) -> AsyncIterator[Running]:
    """A gateway and its daemon, connected."""
    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        daemon, socket = SmallDaemon(), Path(folder) / "d.sock"
        made = settings(data_dir=folder, **overrides)
        app = Gateway(made, Endpoint(path=str(socket)))
        async with serving(daemon, socket) as server:
            app.parts = parts = Parts(made, Endpoint(path=str(socket)))
            await parts.start()
            try:
                await parts.upstream.connected.wait()
                while not parts.revocations.known:  # noqa: ASYNC110 - a flag, not an event
                    await asyncio.sleep(0)
                transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
                async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                    yield Running(app, parts, daemon, server, client)
            finally:
                await parts.close()


class Wire:
    """The server's side of one request: what it gives, and what it gets."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return self._messages.pop(0) if self._messages else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


def scope(method: str = "GET", path: str = "/", headers: dict[str, str] | None = None, query: str = "") -> Scope:
    """The scope of an HTTP request."""
    pairs = {"host": "gateway", **(headers or {})}
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in pairs.items()],
        "client": ("127.0.0.1", "50000"),
    }
