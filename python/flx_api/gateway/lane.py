"""The lane: what can be answered without the event loop is answered on Granian's own thread, under RSGI.

Strategy: Granian's thread for Python hands every request to the loop as a new task. That hop costs more than admission
and the answer together. So the request path is begun right there, as the coroutine that it is: most refusals and some
answers need nothing of the loop, and it runs to its end. Where it needs the loop it says so (`hop`), and the same
coroutine is taken on as a task. There is one request path, not two.

Rules:
- The hook is a private function of Granian, so its version and its shape are checked when the worker starts. When they
  are not the known ones, one line says so and the plain RSGI face serves.
- Granian ignores what the hook returns and does not clear what it raises: it returns None and never raises.
- Before the hop nothing may ask for the running loop, and what is shared with the loop's thread must bear two threads.
- HTTP only: a WebSocket is an affair of the loop from its first word.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from typing import TYPE_CHECKING, Any, Final

import structlog

from flx_api.gateway.rsgi import HttpBridge

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Generator

    from flx_api.gateway.rsgi import Application

KNOWN_VERSIONS: Final = ("2.8.7",)
HOOK: Final = "_cbsched_aioschedule"
SIGNATURE: Final = ("loop", "ctx", "cb")

_HOP: Final = object()
_log = structlog.get_logger("flx.lane")


@types.coroutine
def hop() -> Generator[object, None, None]:
    """Go on as a task of the loop."""
    yield _HOP


@types.coroutine
def _resumed(coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Go on with a coroutine that has begun already; `await` would not take it."""
    yield from coroutine


class Lane:
    """The scheduler of requests that Granian calls on its thread for Python.

    Args:
        app: the application.
        loop: its loop, which runs in another thread.
        context: what tasks of the loop run in.
        ordinary: what Granian would have called.
    """

    def __init__(
        self,
        app: Application,
        loop: asyncio.AbstractEventLoop,
        context: Any,  # noqa: ANN401 - contextvars.Context, as Granian made it
        ordinary: Callable[[Any], None],
    ) -> None:
        self._app = app
        self._loop = loop
        self._context = context
        self._ordinary = ordinary

    def schedule(self, watcher: Any) -> None:  # noqa: ANN401 - Granian's own
        """Begin a request here; it ends here, or goes on in the loop."""
        scope = watcher.scope
        if scope.proto != "http":
            self._ordinary(watcher)
            return
        try:
            bridge = HttpBridge(scope, watcher.proto)
            bridge.scope["flx.hop"] = hop
            coroutine = self._app(bridge.scope, bridge.receive, bridge.send)
            met = coroutine.send(None)
        except StopIteration:
            watcher.done()
            return
        except BaseException as error:  # noqa: BLE001 - nothing may be raised here, and Granian logs it
            watcher.err(error)
            return
        if met is not _HOP:
            coroutine.close()
            watcher.err(RuntimeError("The request path waited for something before it left the lane"))
            return
        # When the loop is closed there is nobody left to answer to.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._go_on, coroutine, bridge, watcher, context=self._context)

    def _go_on(self, coroutine: Coroutine[Any, Any, None], bridge: HttpBridge, watcher: Any) -> None:  # noqa: ANN401
        watcher.taskref(self._loop.create_task(_rest(coroutine, bridge, watcher)))


async def _rest(coroutine: Coroutine[Any, Any, None], bridge: HttpBridge, watcher: Any) -> None:  # noqa: ANN401
    try:
        await _resumed(coroutine)
    except BaseException as error:  # noqa: BLE001 - as Granian does: it is logged there
        watcher.err(error)
    else:
        watcher.done()
    finally:
        bridge.finish()


def install(app: Application) -> bool:
    """Put the lane in the place of Granian's scheduler; whether it is there."""
    reason = unfit()
    if reason:
        _log.warning("lane.not_available", reason=reason, instead="rsgi")
        return False
    futures = _futures()
    original = getattr(futures, HOOK)

    def scheduler(loop: asyncio.AbstractEventLoop, ctx: Any, cb: Any) -> Callable[[Any], None]:  # noqa: ANN401
        return Lane(app, loop, ctx, original(loop, ctx, cb)).schedule

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
