"""A plain command without a task: from the server's thread to its answer.

Strategy: where the body of a command comes, it is read and decided about (`flx_api._core.Hall`): by Granian in the call
that brings it, on the lane when the loop takes what lies there. The loop lets all that have boarded by then leave
together by the express (`flx_api.upstream.express`), which answers them when the daemon has. Whatever is not the usual
case leaves the ride and goes on as a coroutine from where it is (`Edge.serve` with the rest of it): a body that is not
plain, no room at the daemon, a refusal, a broken connection.

A batch that is plain as a whole rides too: all of its operations leave at once and come to one answer. Where there is
no room for all, it waits for its turn, and after a moment leaves in parts, the general way (`flx_api.gateway.batch`).

Rules:
- What is told to a ride never raises: whoever tells it has others to tell.
- A body that does not come in time ends the request; one look a second for all of them.
- A caller that goes away is noticed after a moment, as elsewhere (`flx_api.gateway.dispatch.Watch`).
- Reads that may share an answer do so: a ride leaves only where a coroutine would not wait. What is vital has a part of
  the room for itself, and so goes as a coroutine.
"""

from __future__ import annotations

import asyncio
import contextvars
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from flx_api._core import Hall
from flx_api.errors import InvalidRequest
from flx_api.gateway.batch_queue import BatchQueue
from flx_api.gateway.dispatch import question_of
from flx_api.gateway.intake import BODY_TIMEOUT_S, CLIENT_GONE
from flx_api.gateway.responses import origin_of
from flx_api.gateway.rsgi import serve_rest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from flx_api._core import Admitted, PlainBatch, PlainCommand, Ride
    from flx_api.errors import FlxError
    from flx_api.gateway.batch import BatchRoute
    from flx_api.gateway.cors import Cors
    from flx_api.gateway.dispatch import Dispatcher
    from flx_api.gateway.edge import Edge
    from flx_api.gateway.exchange import Exchange, Message, Scope
    from flx_api.gateway.lane import LaneFace
    from flx_api.gateway.routes_fast import CommandRoutes, Response, Whole
    from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
    from flx_api.upstream.channel import Upstream
    from flx_api.upstream.flights import Question
    from flx_api.upstream.group import Group

    Rest = Callable[[Exchange], Awaitable[Response | Whole | None]]
    OfCommand = Callable[[Exchange], Awaitable[Response | Whole]]

T = TypeVar("T")

_log = structlog.get_logger("flx.ride")

LOOK_EVERY_S: Final = 1.0
GLANCE_S: Final = 0.001
_LINES: Final = "ndjson"


class Rides:
    """The rides of one worker.

    Args:
        commands: the handlers of the universal endpoint.
        batches: the handler of batches.
        dispatcher: the way of commands through this worker.
        upstream: the daemons.
        cors: who may ask from a page.
    """

    def __init__(
        self, commands: CommandRoutes, batches: BatchRoute, dispatcher: Dispatcher, upstream: Upstream, cors: Cors
    ) -> None:
        self._commands = commands
        self._batches = batches
        self._upstream = upstream
        self._express = upstream.express
        self._flights = dispatcher.flights
        self._cors = cors
        self.own: Callable[[Any], list[tuple[bytes, bytes]]] | None = self._own_headers if cors.active else None
        self.hall: Hall
        # The indices of the routes that are served so, where they are: of commands, and of batches.
        self.bare: int | None = None
        self.many: int | None = None
        # Where commands come from that no server's protocol answers.
        self.lane: LaneFace | None = None
        self._edge: Edge
        self._queue: BatchQueue
        self._loop: asyncio.AbstractEventLoop
        self._questions: dict[Ride, Question] = {}
        # Whether `_glance` is due.
        self._is_watched = False
        # What goes on as a task; the loop itself remembers them only weakly.
        self._rests: set[asyncio.Task[None]] = set()
        # Who looks whether a caller is still there.
        self._watches: dict[Ride, asyncio.Task[None]] = {}

    def open(self, edge: Edge) -> None:
        """Begin, in the loop that runs."""
        self._edge, self._loop = edge, asyncio.get_running_loop()
        context = contextvars.copy_context()
        wake = partial(self._loop.call_soon_threadsafe, self.depart, context=context)
        self.bare = edge.place_of(self._commands.execute)
        self.many = edge.place_of(self._batches.serve)
        self.hall = Hall(self._commands.plain, wake, context, BODY_TIMEOUT_S, self.many)
        self._queue = BatchQueue(self._loop, lambda: self._upstream.largest_group, self._leaves, self._in_parts)
        self._express.passengers = self
        self._commands.rides = self
        self._look()

    def board(self, scope: Any, protocol: Any, admitted: Admitted) -> None:  # noqa: ANN401 - ASGI or RSGI
        """Let an admitted request of a server's protocol ride: ask for its body. May be called in any thread."""
        self.hall.board(Caller(self._loop, self._tell, scope, protocol, admitted), protocol, admitted)

    def takes(self, query: str | bytes) -> bool:
        """Whether requests of these routes with this query may ride; others are for the general way to answer."""
        return not query and not self._edge.is_stale

    def carries(self, scope: Scope, admitted: Admitted) -> bool:
        """Whether a request of ASGI may ride."""
        return (
            admitted.route in {self.bare, self.many}
            and bool(admitted.length)
            and scope["method"] == "POST"
            and self.takes(scope["query_string"])
            and (admitted.route != self.many or not any(map(_names_lines, scope["headers"])))
        )

    def takes_rsgi(self, scope: Any, admitted: Admitted) -> bool:  # noqa: ANN401 - RSGI
        """Whether a request of RSGI of one of these routes may ride: it does not ask for a stream."""
        return admitted.route != self.many or _LINES not in ",".join(scope.headers.get_all("accept")).lower()

    async def _ending(self, command: PlainCommand, admitted: Admitted) -> OfCommand | tuple[bytes, bool]:
        """How a command ends that leaves with others: with a result, or with what is to be done."""
        done: asyncio.Future[OfCommand | tuple[bytes, bool]] = self._loop.create_future()
        ride, is_first = self.hall.join(command, admitted, done)
        if is_first:
            self._loop.call_soon(self.depart)
        try:
            return await done
        except BaseException:
            ride.leave()
            if self._express.abandon(ride):
                self.over(ride)
            raise

    async def carry(self, exchange: Exchange, command: PlainCommand) -> Response | Whole:
        """Let a command that was read elsewhere leave with others; its answer.

        Raises:
            FlxError: whatever the gateway or the daemon has against it.
        """
        with self._commands.watch(exchange):
            ending = await self._ending(command, exchange.admitted)
        if isinstance(ending, tuple):
            return self._commands.plain_answer(exchange, command, *ending)
        return await ending(exchange)

    def _look(self) -> None:
        """Look for late bodies, and again later."""
        self._loop.call_later(LOOK_EVERY_S, self._look)
        self.late()

    def late(self, now_ns: int | None = None) -> None:
        """End the requests whose body did not come in time."""
        for ride in self.hall.late(now_ns):
            self._go_on(ride, _refused(InvalidRequest(code="request_timeout")))

    def depart(self) -> None:
        """Let those leave that have boarded."""
        # On the lane nothing waits for others: its thread brings all that came at once.
        watches = self.lane is None
        rides, marked, batches, others = self.hall.boarded(watch=watches)
        if watches and (rides or marked) and not self._is_watched:
            self._is_watched = True
            self._loop.call_later(GLANCE_S, self._glance)
        for ride, body in others:
            if isinstance(body, dict):
                self._begin(ride.caller.serve_from(self._edge, body))
                continue
            broken = InvalidRequest("The body is malformed or ended too early")
            self._go_on(ride, _refused(broken) if body is None else self._generally(ride, body))
        for ride in batches:
            self._queue.enter(ride)
        for ride in marked:
            if self._takes_off(ride):
                rides.append(ride)
            else:
                self._go_on(ride, self._once_more(_command(ride)))
        left = self._express.depart(rides) if rides else 0
        for ride in rides[left:]:
            self.over(ride)
            self._go_on(ride, self._once_more(_command(ride)))

    def _glance(self) -> None:
        """Let those leave that wait for others to board, and look again as long as anything happens."""
        waits = self.hall.look()
        self._is_watched = waits is not None
        if waits is None:
            return
        self._loop.call_later(GLANCE_S, self._glance)
        if waits:
            self.depart()

    def _takes_off(self, ride: Ride) -> bool:
        """Whether one that was marked leaves as others do."""
        command = _command(ride)
        if command.vital:
            return False
        question = question_of(ride.admitted.principal, command)
        if not self._flights.take_off(question):
            return False
        self._questions[ride] = question
        return True

    def _generally(self, ride: Ride, body: bytes) -> Rest:
        """What was found to be not plain."""
        serve = self._batches.serve if ride.admitted.route == self.many else self._commands.execute_generally

        async def rest(exchange: Exchange) -> Response | Whole | None:
            exchange.body = body
            return await serve(exchange)

        return rest

    # --- what the express tells ---------------------------------------------------------------------------------------

    def ended(self, ride: Ride, ending: ReplyFrame | FlxError) -> None:
        """It has ended otherwise than with a plain result."""
        self.over(ride)
        self._go_on(ride, self._settled(_command(ride), ride.until_s, ending))

    def over(self, ride: Ride) -> None:
        """It is no longer on its way."""
        question = self._questions.pop(ride, None)
        if question is not None:
            self._flights.landed(question)
        watch = self._watches.pop(ride, None)
        if watch is not None:
            watch.cancel()

    def takes_long(self, ride: Ride) -> None:
        """It takes so long that it is worth looking whether the caller is still there."""
        gone: Callable[[], Awaitable[object]]
        if ride.batch is not None and ride.batch.group is not None:
            return  # the exchange of who waits for the rest of it looks by itself
        if self.lane is not None and ride.is_of_lane:
            gone = partial(self.lane.gone_of_ride, ride.number, ride.ask_for_end)
        elif ride.caller is not None:
            gone = ride.caller.gone
        else:
            return  # whoever waits with an exchange looks by himself
        self._watches[ride] = self._loop.create_task(self._until_gone(ride, gone), name="disconnect-watch")

    def group_of(self, ride: Ride) -> Group:
        """Who waits from now on for what is missing of a batch, of which something has ended otherwise."""
        self.over(ride)
        group, rest = self._batches.taken_over(_batch(ride))
        self._go_on(ride, rest)
        return group

    def freed(self) -> None:
        """There may be room again for commands of batches."""
        self._queue.freed()

    def _leaves(self, ride: Ride) -> bool:
        """Let a batch leave, or go on where a limit is against it; False: there is no room for it."""
        if self._express.depart_batch(ride):
            return True
        if _batch(ride).paid is None:
            return False
        self._in_parts(ride)
        return True

    def _in_parts(self, ride: Ride) -> None:
        """Let a batch of which nothing has left go on in parts, each as there is room for it."""
        self._go_on(ride, self._batches.begun(_batch(ride)))

    def counted(self, name: str, count: int) -> None:
        """So many operations of batches with this command were answered."""
        self._batches.metrics.operation(name, "ok", count)

    async def _until_gone(self, ride: Ride, gone: Callable[[], Awaitable[object]]) -> None:
        await gone()
        self._watches.pop(ride, None)
        if self._express.abandon(ride):
            self.over(ride)
            if ride.protocol is not None or ride.is_of_lane:
                (ride.batch or _command(ride)).over(CLIENT_GONE)

    def _own_headers(self, scope: Any) -> list[tuple[bytes, bytes]]:  # noqa: ANN401 - ASGI or RSGI
        if isinstance(scope, dict):
            return self._cors.headers(origin_of(scope))
        origin = scope.headers.get("origin")
        return self._cors.headers(None if origin is None else origin.encode())

    # --- the rest of it, as a coroutine -------------------------------------------------------------------------------

    def _once_more(self, command: PlainCommand) -> Rest:
        """What could not be sent at once waits for its turn."""

        async def once_more(exchange: Exchange) -> Response | Whole:
            exchange.passed_until(command.mark_ns)
            return await self._commands.send_alone(exchange, command)

        return once_more

    def _settled(self, command: PlainCommand, until_s: float, ending: ReplyFrame | FlxError) -> Rest:
        """What has ended otherwise than with a plain result."""

        async def settled(exchange: Exchange) -> Response | Whole:
            exchange.passed_until(command.mark_ns)
            with self._commands.watch(exchange):
                reply = await self._upstream.settled(command, until_s, ending, read=command.reads)
            return self._commands.answer(exchange, command, reply)

        return settled

    def _go_on(self, ride: Ride, rest: Rest) -> None:
        if ride.done is not None:
            if not ride.done.done():
                ride.done.set_result(rest)
        elif ride.caller is not None:
            self._tell(ride.caller, rest)
        elif self.lane is not None and (call := ride.call()) is not None:
            self.lane.go_on(call, ride.admitted, rest)

    def _tell(self, caller: Caller, rest: Rest) -> None:
        """Let a caller be answered by the rest of its request."""
        self._begin(caller.serve(self._edge, rest))

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine, name="rest-of-a-ride")
        self._rests.add(task)
        task.add_done_callback(self._rested)

    def _rested(self, task: asyncio.Task[None]) -> None:
        self._rests.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("ride.failed", exc_info=error)


class Caller:
    """Who is answered by a server's protocol, of ASGI or RSGI.

    Args:
        loop: where the rest of a request goes on.
        tell: lets it go on; called there.
        scope: of the request.
        protocol: of the request.
        admitted: what admission has found out.
    """

    __slots__ = ("_admitted", "_loop", "_protocol", "_tell", "scope")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tell: Callable[[Caller, Rest], None],
        scope: Any,  # noqa: ANN401 - ASGI or RSGI
        protocol: Any,  # noqa: ANN401 - ASGI or RSGI
        admitted: Admitted,
    ) -> None:
        self._loop = loop
        self._tell = tell
        self.scope = scope
        self._protocol = protocol
        self._admitted = admitted

    async def gone(self) -> None:
        """Wait until it has gone."""
        if isinstance(self.scope, dict):
            while (await self._protocol.receive())["type"] != "http.disconnect":
                pass
        else:
            await self._protocol.client_disconnect()

    def err(self, error: Exception) -> None:
        """Something was raised on the way, in whatever thread."""
        self._loop.call_soon_threadsafe(self._tell, self, _refused(error))

    async def serve(self, edge: Edge, rest: Rest) -> None:
        """Serve the rest of the request, whose body was read."""
        if isinstance(self.scope, dict):
            await edge.serve(self.scope, self._protocol.receive, self._protocol.send, self._admitted, rest)
        else:
            await serve_rest(edge, self.scope, self._protocol, self._admitted, rest)

    async def serve_from(self, edge: Edge, message: Message) -> None:
        """Serve a request of ASGI the general way, of whose body this message has come."""
        first: list[Message] = [message]

        async def receive() -> Message:
            return first.pop() if first else await self._protocol.receive()

        await edge.serve(self.scope, receive, self._protocol.send, self._admitted)


def _command(ride: Ride) -> PlainCommand:
    return _read(ride.command)


def _batch(ride: Ride) -> PlainBatch:
    return _read(ride.batch)


def _read(plain: T | None) -> T:
    if plain is None:
        msg = "What has boarded as plain has nothing that was read"
        raise RuntimeError(msg)
    return plain


def _refused(error: Exception) -> Rest:
    async def rest(_exchange: Exchange) -> Response:
        raise error

    return rest


def _names_lines(header: tuple[bytes, bytes]) -> bool:
    """Whether a header may ask for a stream of lines; the route decides."""
    return header[0] == b"accept" and _LINES in header[1].decode("latin-1").lower()
