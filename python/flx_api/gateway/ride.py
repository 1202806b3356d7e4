"""A plain command on the lane: from the server's thread to its answer without a task of its own.

Strategy: the thread that admits the request asks for its body at once and goes on. What comes then are callbacks in the
loop: the body has come, the daemon has replied, the time is over. Each is a few calls, and the last one answers.
Whatever is not the usual case leaves the ride and goes on as a coroutine from where it is (`Edge.serve` with the rest
of it): a body that is not plain, no room at the daemon, a refusal, a broken connection.

Rules:
- What is told to a ride never raises: whoever tells it has others to tell.
- A body that does not come in time ends the request; one look a second for all of them.
- A caller that goes away is noticed after a moment, as elsewhere (`flx_api.gateway.dispatch.Watch`).
- Reads that may share an answer do so: a ride takes off only where a coroutine would not wait.
"""

from __future__ import annotations

from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from flx_api.errors import InvalidRequest
from flx_api.gateway.dispatch import question_of
from flx_api.gateway.intake import BODY_TIMEOUT_S, CLIENT_GONE
from flx_api.gateway.rsgi import serve_rest, watched

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from flx_api._core import Admitted, PlainCommand
    from flx_api.errors import FlxError
    from flx_api.gateway.cors import Cors
    from flx_api.gateway.dispatch import Dispatcher
    from flx_api.gateway.edge import Edge
    from flx_api.gateway.exchange import Exchange
    from flx_api.gateway.routes_fast import CommandRoutes, Response, Whole
    from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
    from flx_api.upstream.channel import Upstream
    from flx_api.upstream.flights import Question

    Rest = Callable[[Exchange], Awaitable[Response | Whole]]

LOOK_EVERY_S: Final = 1.0
_OK: Final = 200


class Rides:
    """The rides of one worker.

    Args:
        commands: the handlers of the universal endpoint.
        dispatcher: the way of commands through this worker.
        upstream: the daemons.
        cors: who may ask from a page.
    """

    def __init__(self, commands: CommandRoutes, dispatcher: Dispatcher, upstream: Upstream, cors: Cors) -> None:
        self.commands = commands
        self.upstream = upstream
        self.flights = dispatcher.flights
        self.alarms = dispatcher.alarms
        self.cors = cors
        self.edge: Edge
        self.loop: asyncio.AbstractEventLoop
        self.context: Any = None
        # Those whose body has not come yet, and until when it may: the oldest first.
        self.boarding: dict[Ride, float] = {}

    def open(self, edge: Edge, loop: asyncio.AbstractEventLoop, context: Any) -> int | None:  # noqa: ANN401 - contextvars.Context
        """Begin; the index of the route that is served so."""
        self.edge, self.loop, self.context = edge, loop, context
        loop.call_soon_threadsafe(self._look)
        return edge.place_of(self.commands.execute)

    def _look(self) -> None:
        """End the requests whose body did not come in time, and look again later."""
        now = monotonic()
        for ride in [ride for ride, until in list(self.boarding.items()) if until <= now]:
            ride.too_late()
        self.loop.call_later(LOOK_EVERY_S, self._look)


class Ride:
    """One command.

    Args:
        rides: what all have in common.
        watcher: the server's own, with its scope and its protocol.
        admitted: what admission has found out.
    """

    __slots__ = (
        "_admitted",
        "_body",
        "_command",
        "_deadline",
        "_mark_ns",
        "_protocol",
        "_question",
        "_rides",
        "_watch",
        "_watcher",
        "is_done",
    )

    _command: PlainCommand

    def __init__(self, rides: Rides, watcher: Any, admitted: Admitted) -> None:  # noqa: ANN401 - Granian's own
        self._rides = rides
        self._watcher = watcher
        self._protocol = watcher.proto
        self._admitted = admitted
        self._mark_ns = monotonic_ns()
        self._body: Any = None
        self._deadline = 0.0
        self._question: Question | None = None
        self._watch: asyncio.Task[None] | None = None
        self.is_done = False

    def board(self) -> None:
        """Ask for the body; in the server's thread."""
        self._body = body = self._protocol()
        self._rides.boarding[self] = monotonic() + BODY_TIMEOUT_S
        body.add_done_callback(self._depart, context=self._rides.context)

    def too_late(self) -> None:
        """The body did not come in time."""
        del self._rides.boarding[self]
        body, self._body = self._body, None
        body.cancel()
        self._go_on(_refused(InvalidRequest(code="request_timeout")))

    def _depart(self, body: Any) -> None:  # noqa: ANN401 - Granian's own
        """The body has come, or never will."""
        if self._rides.boarding.pop(self, None) is None:
            return
        # Granian's future keeps its callback, and with it this ride, for as long as it lives; no collector sees that.
        self._body = None
        try:
            try:
                content = body.result()
            except RuntimeError:
                detail = "The body is malformed or ended too early"
                self._go_on(_refused(InvalidRequest(detail)))
            else:
                self._send(content)
        except BaseException as error:  # noqa: BLE001 - the server logs it
            self._watcher.err(error)

    def _send(self, body: bytes) -> None:
        rides = self._rides
        command = rides.commands.plain.read(self._admitted, body, self._mark_ns)
        if command is None:
            self._go_on(_general(rides.commands, body))
            return
        self._command = command
        if command.shared:
            self._question = question = question_of(self._admitted.principal, command)
            if not rides.flights.take_off(question):
                self._question = None
                self._go_on(self._once_more)
                return
        self._deadline = rides.loop.time() + command.deadline_s
        rides.alarms.set(self)
        if not rides.upstream.call_now(command, command.deadline_s, self):
            self._leave()
            self._go_on(self._once_more)

    def done(self) -> bool:
        """Whether there is nothing to come any more."""
        return self.is_done

    def set_result(self, reply: ReplyFrame, /) -> None:
        """The daemon replied."""
        self._end()
        try:
            if reply.code or reply.accepted_id:
                self._go_on(self._settled(reply))
                return
            own = self._own_headers() if self._rides.cors.active else []
            self._protocol.response_bytes(*self._command.answer(reply.result, reply.replayed, own))
            self._command.over(_OK)
        except BaseException as error:  # noqa: BLE001 - as above
            self._watcher.err(error)

    def set_exception(self, error: FlxError, /) -> None:
        """There will be no reply on this stream."""
        self._end()
        try:
            self._go_on(self._settled(error))
        except BaseException as fault:  # noqa: BLE001 - as above
            self._watcher.err(fault)

    def ring(self) -> None:
        """It takes so long that it is worth looking whether the caller is still there."""
        self._watch = self._rides.loop.create_task(self._until_gone(), name="disconnect-watch")

    async def _until_gone(self) -> None:
        await self._protocol.client_disconnect()
        self._watch = None
        if not self.is_done:
            self.is_done = True
            self._leave()
            self._rides.upstream.abandon(self._command.seq)
            self._command.over(CLIENT_GONE)

    def _end(self) -> None:
        self.is_done = True
        self._leave()
        self._rides.upstream.end(self._command.seq)

    def _leave(self) -> None:
        """It is no longer on its way."""
        self._rides.alarms.clear(self)
        if self._watch is not None:
            self._watch.cancel()
        if self._question is not None:
            self._rides.flights.landed(self._question)
            self._question = None

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        origin = self._watcher.scope.headers.get("origin")
        return self._rides.cors.headers(None if origin is None else origin.encode())

    # --- the rest of it, as a coroutine -------------------------------------------------------------------------------

    async def _once_more(self, exchange: Exchange) -> Response | Whole:
        """What could not be sent at once waits for its turn."""
        exchange.passed_until(self._command.mark_ns)
        return await self._rides.commands.send(exchange, self._command)

    def _settled(self, ending: ReplyFrame | FlxError) -> Rest:
        """What has ended otherwise than with a plain result."""

        async def settled(exchange: Exchange) -> Response | Whole:
            exchange.passed_until(self._command.mark_ns)
            rides, command = self._rides, self._command
            with rides.commands.watch(exchange):
                reply = await rides.upstream.settled(command, self._deadline, ending, read=command.reads)
            return rides.commands.answer(exchange, command, reply)

        return settled

    def _go_on(self, rest: Rest) -> None:
        rides, watcher = self._rides, self._watcher
        serving = serve_rest(rides.edge, watcher.scope, self._protocol, self._admitted, rest)
        watcher.taskref(rides.loop.create_task(watched(serving, watcher)))


def _refused(error: FlxError) -> Rest:
    async def rest(_exchange: Exchange) -> Response:
        raise error

    return rest


def _general(commands: CommandRoutes, body: bytes) -> Rest:
    async def rest(exchange: Exchange) -> Response | Whole:
        exchange.body = body
        return await commands.execute_generally(exchange)

    return rest
