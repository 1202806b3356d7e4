"""The lane: a server of our own (`flx_api._core.Lane`), with admission in its thread, for the same application.

Strategy: the lane's thread speaks HTTP, decides about each request, and answers what it can without Python: refusals,
and pages that a principal was given before. What else there is lies on its desk, and the loop takes all of it at once:
plain commands leave together (`flx_api.gateway.ride`), and every other request becomes a task that serves it with a
scope, a `receive` and a `send` as ASGI has them, and with what admission has found out.

Rules:
- A body is whole, and within its limit, before Python hears of the request; what is wrong with it is raised where it is
  read.
- What a client does not take is not made: a part of a stream waits for room, and so does a message of a WebSocket.
- Granian has no part in it but the worker's process, its loop and its end: there it listens where nobody comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import structlog

from flx_api._core import Lane
from flx_api.errors import InvalidRequest, StartupError
from flx_api.gateway.bridge import Answering
from flx_api.gateway.certificate import certificate
from flx_api.gateway.intake import BODY_TIMEOUT_S, CLIENT_GONE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from flx_api._core import Admission, Admitted, LaneCall, LaneSocket
    from flx_api.config import Settings
    from flx_api.gateway.cors import Cors
    from flx_api.gateway.edge import Edge
    from flx_api.gateway.exchange import Message
    from flx_api.gateway.ride import Rest, Rides
    from flx_api.websocket.endpoint import Endpoint

# As the lane's own for a connection (`Limits::write` of rust/lane/src/server.rs).
PATIENCE_S: Final = 60.0
# The worker is ended soon after it was told to stop (`flx_api.cli.gateway_process`).
_LAST_ANSWERS_S: Final = 1.0
_DISCONNECT: Final[Message] = {"type": "http.disconnect"}
_FAULTS: Final = {"too_large": "payload_too_large", "late": "request_timeout"}
_NO_STATUS: Final = 1005
_ERROR: Final = 1011

_log = structlog.get_logger("flx.lane")


class LaneFace:
    """The lane of one worker.

    Args:
        settings: its certificate.
        admission: what its thread decides by.
        edge: the request path.
        endpoint: the realtime path.
        rides: plain commands.
        cors: who may ask from a page.
        body_timeout_s: how long a body may take.
        patience_s: how long a client may take nothing of what it is sent.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        admission: Admission,
        edge: Edge,
        endpoint: Endpoint,
        rides: Rides,
        cors: Cors,
        body_timeout_s: float = BODY_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._tls = certificate(settings)
        self._admission = admission
        self._edge = edge
        self._endpoint = endpoint
        self._rides = rides
        self._cors = cors
        self._body_timeout_s = body_timeout_s
        self._patience_s = patience_s
        self._lane: Lane | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Who waits for what the lane tells, by the number of the call or socket.
        self._gone: dict[int, asyncio.Future[None]] = {}
        self._rooms: dict[int, asyncio.Event] = {}
        self._sockets: dict[int, asyncio.Queue[Message]] = {}

    def start(self, listening: int) -> None:
        """Serve on a socket that listens, by its descriptor, in the loop that runs.

        Raises:
            StartupError: there is no thread for it, or no descriptor.
        """
        try:
            self._lane = Lane(
                self._admission,
                listening,
                bare=self._rides.bare,
                many=self._rides.many,
                never_waits=self._edge.never_waits,
                body_timeout_s=self._body_timeout_s,
                cors=self._cors.table() if self._cors.active else None,
                tls=self._tls,
            )
        except (ValueError, OSError) as error:
            # The certificate was looked at when it was read.
            detail = f"FLX_INTERFACE: the lane cannot be served: {error}"
            raise StartupError(detail) from None
        self._rides.lane = self
        asyncio.get_running_loop().add_reader(self._lane.fileno(), self._rung)

    async def close(self) -> None:
        """Take no more connections, and let what is under way end."""
        lane = self._lane
        if lane is None:
            return
        await asyncio.to_thread(lane.stop, _LAST_ANSWERS_S)
        asyncio.get_running_loop().remove_reader(lane.fileno())
        # What is left there has no connection any more: nothing begins, and who waits is told.
        self._lane = None
        for number, what in lane.take(None)[2]:
            self._told(number, what)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _rung(self) -> None:
        if self._lane is None:
            return
        calls, sockets, told = self._lane.take(None if self._edge.is_stale else self._rides.hall)
        try:
            self._rides.depart()
        finally:
            for call in calls:
                self._spawn(self._serve(call))
            for socket in sockets:
                self._sockets[socket.number] = asyncio.Queue()
                self._spawn(self._connect(socket))
            for number, what in told:
                self._told(number, what)

    def _told(self, number: int, what: object) -> None:
        if what is True:
            room = self._rooms.get(number)
            if room is not None:
                room.set()
            return
        if what is None:
            gone = self._gone.pop(number, None)
            if gone is not None and not gone.done():
                gone.set_result(None)
            return
        queue = self._sockets.get(number)
        if queue is not None:
            queue.put_nowait(_message(what))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _serve(self, call: LaneCall) -> None:
        bridge = CallBridge(self, call)
        with self._ending(call):
            if call.admitted is None:  # it has to wait for a lease, and waiting is an affair of the loop
                await self._edge.http(call.scope(), bridge.receive, bridge.send)
            else:
                await self._edge.serve(call.scope(), bridge.receive, bridge.send, call.admitted)

    def go_on(self, call: LaneCall, admitted: Admitted, rest: Rest) -> None:
        """Serve the rest of a request that was begun, its body included, without a task."""
        if self._lane is None:
            call.cut()
            admitted.over(CLIENT_GONE)
            return
        self._spawn(self._serve_rest(call, admitted, rest))

    async def _serve_rest(self, call: LaneCall, admitted: Admitted, rest: Rest) -> None:
        bridge = CallBridge(self, call)
        with self._ending(call):
            await self._edge.serve(call.scope(), bridge.receive_no_body, bridge.send, admitted, rest)

    @contextlib.contextmanager
    def _ending(self, call: LaneCall) -> Iterator[None]:
        """After it nobody serves a call any more: without an answer, or with half of one, its connection is cut."""
        try:
            yield
        except Exception:  # noqa: BLE001 - the edge answers what it can; the worker goes on
            _log.exception("lane.unexpected")
        finally:
            call.cut()
            self.forget(call.number)

    async def gone(self, number: int, ask: Callable[[], bool]) -> None:
        """Return when a client is gone.

        Args:
            number: of the call or socket.
            ask: for being told; False when it is gone already.
        """
        gone = self._gone.get(number)
        if gone is None:
            gone = self._gone[number] = asyncio.get_running_loop().create_future()
        if not ask():
            # Who asked before was not told: they wait for the same.
            self._told(number, None)
            return
        # Several may wait, and one that leaves must not take the others along.
        await asyncio.shield(gone)

    async def gone_of_ride(self, number: int, ask: Callable[[], bool]) -> None:
        """The same of a ride, which nobody forgets when it is over: who waits for it does."""
        try:
            await self.gone(number, ask)
        finally:
            self._gone.pop(number, None)

    async def put(self, number: int, put: Callable[[], bool | None]) -> bool:
        """Put something where there is room, as soon as there is; whether the client is still there.

        One that takes nothing for a long time is not: over HTTP/2 it may be there, say so, and give a stream no window.
        """
        is_taken = put()
        if is_taken is not False:
            return is_taken is True
        room = self._rooms.setdefault(number, asyncio.Event())
        try:
            while is_taken is False:
                async with asyncio.timeout(self._patience_s):
                    await room.wait()
                room.clear()
                is_taken = put()
        except TimeoutError:
            return False
        return is_taken is True

    def lost(self, number: int) -> None:
        """A client is gone, whatever the lane may say: who waits for that is told."""
        self._told(number, None)

    def forget(self, number: int) -> None:
        """Nobody waits for what this call or socket tells."""
        self._gone.pop(number, None)
        self._rooms.pop(number, None)
        self._sockets.pop(number, None)

    # --- WebSockets ---------------------------------------------------------------------------------------------------

    async def _connect(self, socket: LaneSocket) -> None:
        bridge = SocketBridge(self, socket, self._sockets[socket.number])
        try:
            await self._endpoint.websocket(socket.scope(), bridge.receive, bridge.send)
        except Exception:  # noqa: BLE001 - the connection ends, and the worker goes on
            _log.exception("lane.unexpected")
        finally:
            socket.drop()
            self.forget(socket.number)


class CallBridge(Answering):
    """One request of the lane as ASGI: `receive` and `send`."""

    __slots__ = ("_call", "_face", "_is_read")

    def __init__(self, face: LaneFace, call: LaneCall) -> None:
        super().__init__()
        self._face = face
        self._call = call
        self._is_read = False

    async def receive(self) -> Message:
        """The whole body; after that, that the client is gone.

        Raises:
            InvalidRequest: payload_too_large, or request_timeout.
        """
        if self._is_read:
            return await self.receive_no_body()
        self._is_read = True
        body = self._call.body
        if isinstance(body, bytes):
            return {"type": "http.request", "body": body, "more_body": False}
        if body in _FAULTS:
            raise InvalidRequest(code=_FAULTS[body])
        return _DISCONNECT

    async def receive_no_body(self) -> Message:
        """That the client is gone."""
        await self._face.gone(self._call.number, self._call.ask_for_end)
        return _DISCONNECT

    def whole(self, status: int, headers: list[Any], body: bytes) -> None:
        """All of it at once.

        Raises:
            ConnectionResetError: the client left before its answer.
        """
        if not self._call.answer(status, headers, body):
            raise ConnectionResetError

    def begin(self, status: int, headers: list[Any]) -> None:
        """One whose body comes in parts."""
        self._call.stream(status, headers)

    async def part(self, body: bytes) -> None:
        """A part, as soon as there is room for it."""
        if not await self._face.put(self._call.number, lambda: self._call.part(body)):
            # The client left; who has something to do about it asks `receive`.
            self._call.cut()
            self._face.lost(self._call.number)

    def end(self) -> None:
        """That was the last part."""
        self._call.end()


class SocketBridge:
    """One WebSocket of the lane as ASGI: `receive` and `send`."""

    __slots__ = ("_face", "_inbound", "_is_begun", "_is_open", "_refusal", "_socket")

    def __init__(self, face: LaneFace, socket: LaneSocket, inbound: asyncio.Queue[Message]) -> None:
        self._face = face
        self._socket = socket
        self._inbound = inbound
        self._is_begun = False
        self._is_open = False
        self._refusal: tuple[int, list[tuple[bytes, bytes]]] = (403, [])

    async def receive(self) -> Message:
        """The next message of the peer."""
        if not self._is_begun:
            self._is_begun = True
            return {"type": "websocket.connect"}
        message = await self._inbound.get()
        if message["type"] == "websocket.receive":
            self._socket.took()
        else:
            # Whoever asks again hears the same.
            self._inbound.put_nowait(message)
        return message

    async def send(self, message: Message) -> None:
        """Accept, refuse, say something, or close."""
        number, socket = self._socket.number, self._socket
        match message["type"]:
            case "websocket.accept":
                chosen = message.get("subprotocol")
                own = [] if chosen is None else [(b"sec-websocket-protocol", chosen.encode())]
                socket.accept([*own, *message.get("headers", [])])
                self._is_open = True
            case "websocket.send":
                text = message.get("text")
                is_there = await self._face.put(
                    number, lambda: socket.binary(message["bytes"]) if text is None else socket.text(text)
                )
                if not is_there:
                    raise ConnectionResetError
            case "websocket.http.response.start":
                self._refusal = message["status"], message["headers"]
            case "websocket.http.response.body":
                socket.refuse(*self._refusal, message.get("body", b""))
            case "websocket.close" if self._is_open:
                code, reason = message.get("code", _ERROR), message.get("reason") or ""
                await self._face.put(number, lambda: socket.close(code, reason))
            case _:
                socket.refuse(403, [], b"")


def _message(told: object) -> Message:
    """What a WebSocket has said, as ASGI has it."""
    if isinstance(told, str):
        return {"type": "websocket.receive", "text": told}
    if isinstance(told, bytes):
        return {"type": "websocket.receive", "bytes": told}
    return {"type": "websocket.disconnect", "code": told if isinstance(told, int) else _NO_STATUS}
