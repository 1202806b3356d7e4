"""What Granian asks the loop with, for tests of what is done in its thread: a watcher, its protocol, and futures."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any, Literal

from tests.gateway_app import scope
from tests.gateway_process import bearer
from tests.small_admission import RsgiScope

from flx_api._core import Shortcut

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Generator

    from tests.command_stage import Stage

Kind = Literal["asgi", "rsgi"]


class Future:
    """A body on its way, as Granian's future of it."""

    def __init__(self, result: Any, loop: asyncio.AbstractEventLoop, *, fails: bool, holds: bool) -> None:
        self.value = result
        self._holds = holds
        self._fails = fails
        self._loop = loop
        self.callback: Any = None
        self.is_cancelled = False

    def add_done_callback(self, callback: Any, *, context: contextvars.Context) -> None:
        """Call back when there is a body; as Granian's does, it keeps the callback for good."""
        self.callback = callback
        if not self._holds and (self.value is not None or self._fails):
            self._loop.call_soon_threadsafe(callback, self, context=context)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for it, as a task does."""
        yield from asyncio.sleep(0).__await__()
        return self.result()

    def result(self) -> Any:
        """What came."""
        if self._fails:
            raise RuntimeError
        return self.value

    def cancel(self) -> None:
        """It is not wanted any more."""
        self.is_cancelled = True


class _Protocol:
    def __init__(self, *pieces: bytes | None, fails: bool) -> None:
        self._pieces = list(pieces)
        self._fails = fails
        # Whether a test says when a body has come.
        self.holds = False
        self._loop = asyncio.get_running_loop()
        self.answered = asyncio.Event()
        self.gone = asyncio.Event()
        self.asked: list[Future] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    def keep(self, status: int, headers: list[Any], body: bytes) -> None:
        """Keep the one answer there is."""
        assert not self.answered.is_set()
        self.status, self.body = status, body
        self.headers = {_text(name): _text(value) for name, value in headers}
        self.answered.set()

    def future(self, result: Any) -> Future:
        """One of a body."""
        self.asked.append(Future(result, self._loop, fails=self._fails, holds=self.holds))
        return self.asked[-1]


class RSGIHTTPProtocol(_Protocol):
    """The protocol of a request of RSGI; it is known by this name."""

    def __call__(self) -> Future:
        """The body."""
        assert not self.asked
        return self.future(self._pieces.pop(0))

    async def client_disconnect(self) -> None:
        """Wait until the client has gone."""
        await self.gone.wait()

    def response_bytes(self, status: int, headers: list[Any], body: bytes) -> None:
        """Answer."""
        self.keep(status, headers, body)


class ASGIHTTPProtocol(_Protocol):
    """The same of ASGI."""

    def receive(self) -> Any:
        """The next message: a future for the first, of a body; a coroutine then."""
        if not self.asked:
            piece = self._pieces.pop(0)
            return self.future(None if piece is None else self._message(piece))
        return self._next()

    def send(self, message: Any) -> _Nothing:
        """Take a message, at once."""
        if self.gone.is_set():
            raise RuntimeError
        if message["type"] == "http.response.start":
            self.status, self._start = 0, message
        else:
            self.keep(self._start["status"], self._start["headers"], message["body"])
        return _Nothing()

    async def _next(self) -> Any:
        if self._pieces:
            return self._message(self._pieces.pop(0))
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @staticmethod
    def _message(piece: Any) -> Any:
        return {"type": "http.request", "body": piece, "more_body": True}


def _text(part: bytes | str) -> str:
    return part.decode() if isinstance(part, bytes) else part


class _Nothing:
    def __await__(self) -> Any:
        return iter(())


class Watcher:
    """What Granian gives to the loop with the coroutine of a request.

    Args:
        kind: the interface.
        pieces: of its body; None: it does not come. RSGI has one.
        method: of the request.
        path: of the request.
        headers: beside a good token, and those of a body of JSON.
        query: behind the path.
        fails: whether the body breaks off.
    """

    def __init__(
        self,
        kind: Kind,
        *pieces: bytes | None,
        method: str = "POST",
        path: str = "/v1/execute",
        headers: dict[str, str] | None = None,
        query: str = "",
        fails: bool = False,
    ) -> None:
        length = sum(len(piece or b"*") for piece in pieces)
        own = {"content-type": "application/json", "content-length": str(length)} if pieces else {}
        told = scope(method, path, {**bearer(), **own, **(headers or {})})
        if kind == "asgi":
            self.scope: Any = {**told, "scheme": "http", "query_string": query.encode()}
            self.proto: Any = ASGIHTTPProtocol(*pieces, fails=fails)
        else:
            self.scope = RsgiScope({**told, "scheme": "http"})
            self.scope.query_string = query
            self.proto = RSGIHTTPProtocol(*pieces, fails=fails)

    async def answer(self) -> tuple[int, Any]:
        """Status and document of the answer, of which there is one."""
        async with asyncio.timeout(20):
            await self.proto.answered.wait()
        return self.proto.status, json.loads(self.proto.body) if self.proto.body else None


def taken(at: Stage, watcher: Watcher) -> bool:
    """As Granian asks, in another thread: whether there is no task to come."""
    tasks: list[Any] = []

    async def unwanted() -> None:
        """Stands for the application."""

    def begin(*given: Any, **_: Any) -> None:
        tasks.append(given)

    shortcut = Shortcut(begin, at.parts.server_thread.take)
    coroutine: Any = unwanted()
    thread = threading.Thread(target=shortcut, args=(None, coroutine, watcher))
    thread.start()
    thread.join()
    is_closed = coroutine.cr_frame is None
    coroutine.close()
    assert is_closed is not bool(tasks)
    return not tasks
