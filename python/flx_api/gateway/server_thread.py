"""What needs no loop is done in Granian's thread for Python: admission, refusals, kept pages, bodies of commands.

Strategy: Granian has a thread that makes Python's objects of a request, makes a coroutine of the application with them,
and asks the loop to begin a task with it (`call_soon_threadsafe`). The task, its coroutine and the way from one thread
to the other cost more than admission and an answer together. So the loop's name for that is one of ours
(`flx_api._core.Shortcut`): it is asked in that thread, and looks at the request there. What has a whole answer is
answered, a command that may ride is asked for its body, and the coroutine is never begun. Everything else goes on to
the loop as always, with what was decided about it.

Rules:
- Nothing may be raised out of here: Granian does not look, and every later request of the worker would fail by it. Who
  meets a fault leaves the request to a task, which meets it again where it is answered.
- Nothing here may ask for the running loop, and what is shared with the loop's thread must bear two threads: admission,
  counters and the hall are native and do.
- The request is known by what it has (`proto`, `scope`) and the kind of its protocol. Whatever looks otherwise, from
  another Granian or from another server, goes the ordinary way, and nothing else is different.
- A WebSocket is an affair of the loop from its first word; so is a request that has to wait for a lease.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import structlog

from flx_api._core import Shortcut
from flx_api.gateway.edge import DECIDED
from flx_api.gateway.rsgi import WHOLE

if TYPE_CHECKING:
    import asyncio

    from flx_api.gateway.edge import Edge
    from flx_api.gateway.ride import Rides

_log = structlog.get_logger("flx.server_thread")


class ServerThread:
    """Takes requests before they become tasks.

    Args:
        edge: decides about them.
        rides: commands without a task.
    """

    def __init__(self, edge: Edge, rides: Rides) -> None:
        self._edge = edge
        self._rides = rides
        # What was decided about requests of RSGI that go on as tasks, by their scope.
        self.decided: dict[Any, tuple[Any, ...]] = {}

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the place of the loop's `call_soon_threadsafe`."""
        with contextlib.suppress(AttributeError):  # a loop that takes no attributes begins a task for each request
            ordinary = loop.call_soon_threadsafe
            loop.call_soon_threadsafe = Shortcut(ordinary, self.take)  # type: ignore[method-assign, assignment]

    def take(self, watcher: Any) -> bool:  # noqa: ANN401 - Granian's own
        """Answer a request, or ask for its body; False when it is to become a task, or is none."""
        try:
            return self._take(watcher)
        except BaseException:  # noqa: BLE001 - whatever it is; a panic of native code is one
            _log.exception("server_thread.not_taken")
            return False

    def _take(self, watcher: Any) -> bool:  # noqa: ANN401 - as above
        protocol = getattr(watcher, "proto", None)
        match type(protocol).__name__:
            case "ASGIHTTPProtocol":
                return self._take_asgi(watcher.scope, protocol)
            case "RSGIHTTPProtocol":
                return self._take_rsgi(watcher.scope, protocol)
            case _:
                return False

    def _take_asgi(self, scope: dict[str, Any], protocol: Any) -> bool:  # noqa: ANN401 - as above
        seen = self._edge.admit(scope)
        if isinstance(seen, tuple):
            with contextlib.suppress(RuntimeError, OSError):  # the server says that nobody takes it
                for part in seen:
                    protocol.send(part)
            return True
        if seen is not None:
            scope[DECIDED] = seen
            if self._rides.carries(scope, seen):
                self._rides.board(scope, protocol, seen)
                del scope[DECIDED]
                return True
        return False

    def _take_rsgi(self, scope: Any, protocol: Any) -> bool:  # noqa: ANN401 - as above
        rides = self._rides
        seen = self._edge.decide(scope, bare=rides.bare, many=rides.many)
        if seen is None:
            return False
        if len(seen) == WHOLE:
            protocol.response_bytes(*seen)
            return True
        self.decided[scope] = seen
        if seen[1] is None and rides.takes(scope.query_string) and rides.takes_rsgi(scope, seen[0]):
            rides.board(scope, protocol, seen[0])
            del self.decided[scope]
            return True
        return False
