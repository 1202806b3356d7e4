"""The application of one gateway worker: the two paths, and their beginning and end.

The request path (`flx_api.gateway.edge.Edge.http`), for everything over HTTP:

    receive -> admit -> authorise -> dispatch -> upstream -> respond -> record

The realtime path (`flx_api.websocket.endpoint.Endpoint.websocket`), for `/ws/{client_id}`, and what feeds it:

    receive -> admit -> accept -> serve -> record
    daemon -> Watch -> follower -> hub -> connection manager -> connections
                                   hub -> native listener -> its connections    (`FLX_REALTIME_PORT`)

The lifespan builds and starts all parts (`flx_api.dependencies.Parts`), and drains and closes them. SIGUSR1 drains
ahead of time: the server would cut WebSockets without a Close frame as soon as it is told to stop, so a supervisor
sends SIGUSR1 first and SIGTERM when connections are gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import structlog

from flx_api.config import load
from flx_api.dependencies import Parts
from flx_api.errors import StartupError
from flx_api.gateway.rsgi import RsgiFace
from flx_api.limits import shared_memory
from flx_api.observability.logging import set_up
from flx_api.upstream.endpoints import endpoints_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from flx_api._core import SharedMemory
    from flx_api.config import Settings
    from flx_api.gateway.exchange import Message, Scope
    from flx_api.upstream.endpoints import Daemons

DAEMON_SOCKET = "FLX_INTERNAL_DAEMON_SOCKET"
"""What the supervisor tells its children: the socket of the daemon it started."""

_log = structlog.get_logger("flx.gateway")


class Gateway(RsgiFace):
    """The ASGI and RSGI application. `parts` exist between start-up and shutdown."""

    def __init__(self, settings: Settings, daemons: Daemons, shared: SharedMemory | None = None) -> None:
        self._settings = settings
        self._daemons = daemons
        self._shared = shared
        self.parts: Parts | None = None
        # The descriptor of the socket that the lane serves, where there is a lane: it takes the server's place.
        self.lane_listens: int | None = None
        # Told when a drain has ended, in the worker.
        self.on_drained: Callable[[], None] = lambda: None

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Serve a request, a connection, or the lifespan."""
        kind = scope["type"]
        if kind == "http" and self.parts is not None:
            await self.parts.edge.http(scope, receive, send)
        elif kind == "websocket" and self.parts is not None:
            await self.parts.endpoint.websocket(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(receive, send)

    def enter(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> Coroutine[Any, Any, None]:
        """Do the same, for a server that asks for no more than a coroutine: a request then needs one, not two."""
        if scope["type"] == "http" and self.parts is not None:
            return self.parts.edge.http(scope, receive, send)
        return self(scope, receive, send)

    async def _lifespan(
        self, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        await receive()
        set_up(self._settings.log_level)
        try:
            self.parts = parts = Parts(self._settings, self._daemons, self._shared)
            await parts.start()
            if self.lane_listens is None:
                parts.server_thread.install(asyncio.get_running_loop())
            else:
                parts.lane.start(self.lane_listens)
        except StartupError as error:
            # Raising here would make the server go on without a lifespan; it must be said.
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        drains: set[asyncio.Task[None]] = set()

        async def drained() -> None:
            await parts.drain()
            self.on_drained()

        def drain() -> None:
            if not drains:
                drains.add(asyncio.create_task(drained(), name="drain"))

        try:
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, drain)
        except (NotImplementedError, RuntimeError, ValueError):
            _log.warning("gateway.no_drain_signal")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await parts.close()
        await asyncio.gather(*drains)
        await send({"type": "lifespan.shutdown.complete"})


def create_app(settings: Settings, daemons: Daemons | None = None) -> Gateway:
    """The application of these settings.

    Args:
        settings: all settings.
        daemons: where they are; by default what settings and supervisor say.

    Raises:
        StartupError: no daemon is known, or a setting does not let a part be built.
    """
    shared = shared_memory.of_environment(os.environ.get(shared_memory.SHARED_MEMORY))
    daemons = daemons or endpoints_of(settings, os.environ.get(DAEMON_SOCKET))
    # Once for nothing: what cannot be built is said here, in one line. A worker that found out would be started again.
    Parts(settings, daemons, shared)
    return Gateway(settings, daemons, shared)


def app_factory() -> Gateway:
    """The application of this process' environment: the target of the server (`--factory`)."""
    return create_app(load(os.environ))
