"""The lane: what can be answered without the event loop is answered on Granian's own thread, under RSGI.

Strategy: Granian's thread for Python hands every request to the loop as a new task. That hop costs more than admission
and the answer together. So admission happens right there: refusals, pages that a principal was given before, and probes
are answered at once; a command's body is asked for at once, and what follows needs no task (`flx_api.gateway.ride`);
what else is admitted goes on to the loop as a task, with what admission has found out.

Rules:
- The hook is a private function of Granian, so its version and its shape are checked when the worker starts. When they
  are not the known ones, one line says so and the plain RSGI face serves.
- Granian ignores what the hook returns and does not clear what it raises: it returns None and never raises.
- Nothing here may ask for the running loop, and what is shared with the loop's thread must bear two threads: admission
  and counters are native and do.
- HTTP only: a WebSocket is an affair of the loop from its first word.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any, Final

import structlog

from flx_api._core import asgi_scope
from flx_api.gateway.rsgi import WHOLE, serve, watched

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from flx_api.gateway.edge import Edge
    from flx_api.gateway.ride import Rides

KNOWN_VERSIONS: Final = ("2.8.7",)
HOOK: Final = "_cbsched_aioschedule"
SIGNATURE: Final = ("loop", "ctx", "cb")

_log = structlog.get_logger("flx.lane")


class Lane:
    """The scheduler of requests that Granian calls on its thread for Python.

    Args:
        edge: the request path.
        loop: the application's loop, which runs in another thread.
        context: what tasks of the loop run in.
        ordinary: what Granian would have called.
        http: what the protocol of a request is, and that of a WebSocket is not.
        rides: commands without a task, where there are any.
    """

    def __init__(
        self,
        edge: Edge,
        loop: asyncio.AbstractEventLoop,
        context: Any,  # noqa: ANN401 - contextvars.Context, as Granian made it
        ordinary: Callable[[Any], None],
        http: Any,  # noqa: ANN401 - a class of Granian's
        *,
        rides: Rides | None = None,
    ) -> None:
        self._edge = edge
        self._decide = edge.decide
        self._http = http
        self._loop = loop
        self._context = context
        self._ordinary = ordinary
        self._rides = rides
        self._bare = None if rides is None else rides.bare

    def schedule(self, watcher: Any) -> None:  # noqa: ANN401 - Granian's own
        """Answer a request here, or let it go on in the loop."""
        scope, protocol = watcher.scope, watcher.proto
        # By the object at hand: asking the scope makes a text, which costs ten times as much.
        if type(protocol) is not self._http:
            self._ordinary(watcher)
            return
        try:
            seen = self._decide(scope, bare=self._bare)
            if seen is None:  # it has to wait for a lease, and waiting is an affair of the loop
                self._ordinary(watcher)
                return
            if len(seen) == WHOLE:
                protocol.response_bytes(*seen)
                return
            if seen[1] is None:
                if self._rides is not None and self._rides.takes(scope.query_string):
                    self._rides.board(watcher, seen[0])
                    return
                seen = seen[0], asgi_scope(scope)
            rest = serve(self._edge, scope, protocol, *seen)
            if self._edge.answers_at_once(seen[0]):
                _to_its_end(rest)
                return
        except BaseException as error:  # noqa: BLE001 - nothing may be raised here, and Granian logs it
            watcher.err(error)
            return
        try:
            self._loop.call_soon_threadsafe(self._go_on, rest, watcher, context=self._context)
        except RuntimeError:  # the loop is closed: there is nobody left to answer
            rest.close()

    def _go_on(self, rest: Coroutine[Any, Any, None], watcher: Any) -> None:  # noqa: ANN401
        watcher.taskref(self._loop.create_task(watched(rest, watcher)))


def _to_its_end(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that waits for nothing."""
    with contextlib.suppress(StopIteration):
        coroutine.send(None)
        coroutine.close()
        msg = "What is answered on the lane waited for something"
        raise RuntimeError(msg)


def install(edge: Edge, rides: Rides | None = None) -> bool:
    """Put the lane in the place of Granian's scheduler; whether it is there."""
    reason = unfit()
    if reason:
        _log.warning("lane.not_available", reason=reason, instead="rsgi")
        return False
    from granian import rsgi  # noqa: PLC0415 - as above

    futures = _futures()
    original, http = getattr(futures, HOOK), rsgi.HTTPProtocol  # type: ignore[attr-defined]

    def scheduler(loop: asyncio.AbstractEventLoop, ctx: Any, cb: Any) -> Callable[[Any], None]:  # noqa: ANN401
        return Lane(edge, loop, ctx, original(loop, ctx, cb), http, rides=rides).schedule

    setattr(futures, HOOK, scheduler)
    return True


def unfit() -> str:
    """Why the lane cannot be used with this Granian; empty when it can."""
    import granian  # noqa: PLC0415 - a gateway on another server has no need of it

    if granian.__version__ not in KNOWN_VERSIONS:
        return f"Granian {granian.__version__} is not one of {', '.join(KNOWN_VERSIONS)}"
    hook = getattr(_futures(), HOOK, None)
    if hook is None:
        return f"Granian has no {HOOK}"
    if tuple(inspect.signature(hook).parameters) != SIGNATURE:
        return f"{HOOK} takes other arguments than {', '.join(SIGNATURE)}"
    return ""


def _futures() -> Any:  # noqa: ANN401 - private to Granian, without types
    import granian._futures  # noqa: PLC0415 - the whole point of this module

    return granian._futures  # noqa: SLF001
