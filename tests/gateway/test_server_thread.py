"""What is done in Granian's thread, with a real gateway and a daemon behind it: as ASGI and as RSGI."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from tests.command_stage import ECHO, stage
from tests.granian_watcher import Watcher, taken

from flx_api._core import Hall, Shortcut
from flx_api.gateway.edge import DECIDED
from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame

if TYPE_CHECKING:
    from tests.command_stage import Stage
    from tests.granian_watcher import Kind

KINDS: list[Kind] = ["asgi", "rsgi"]
WHOAMI = "/v1/auth/whoami"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def test_a_refusal_is_answered_there(kind: Kind) -> None:
    async def story() -> None:
        async with stage(cors_origins=("https://page.example",)) as at:
            wrong = {"authorization": "Bearer a.b.c", "origin": "https://page.example"}
            watcher = Watcher(kind, method="GET", path=WHOAMI, headers=wrong)
            assert taken(at, watcher)
            status, document = await watcher.answer()
            assert (401, "invalid_token") == (status, document["code"])
            assert "https://page.example" == watcher.proto.headers["access-control-allow-origin"]

    asyncio.run(story())


def test_who_left_before_a_refusal_is_no_fault() -> None:
    async def story() -> None:
        async with stage() as at:
            watcher = Watcher("asgi", method="GET", path=WHOAMI, headers={"authorization": "Bearer a.b.c"})
            watcher.proto.gone.set()
            assert taken(at, watcher)
            assert not watcher.proto.answered.is_set()

    asyncio.run(story())


def test_a_kept_page_is_answered_there_and_the_first_one_by_a_task(kind: Kind) -> None:
    async def story() -> None:
        async with stage() as at:
            first, later = (Watcher(kind, method="GET", path=WHOAMI) for _ in range(2))
            assert not taken(at, first)
            await _as_a_task(at, first)
            assert taken(at, later)
            assert [200, 200] == [(await first.answer())[0], (await later.answer())[0]]
            assert first.proto.body == later.proto.body
            counted = at.parts.metrics.requests
            assert 2 == sum(count for (route, _, _), count in counted.items() if route == WHOAMI)

    asyncio.run(story())


async def _as_a_task(at: Stage, watcher: Watcher) -> None:
    """As Granian goes on with what was not taken."""
    app: Any = at.gateway.app
    if isinstance(watcher.scope, dict):
        await app(watcher.scope, watcher.proto.receive, watcher.proto.send)
    else:
        await app.__rsgi__(watcher.scope, watcher.proto)


def test_what_was_decided_there_is_not_decided_again(kind: Kind) -> None:
    async def story() -> None:
        limits = ({"name": "few", "by": "subject", "limit": 1, "window": "60s"},)
        async with stage(rate_limits=limits) as at:
            watcher = Watcher(kind, method="GET", path=WHOAMI)
            assert not taken(at, watcher)
            await _as_a_task(at, watcher)
            # A second charge would have been refused.
            assert 200 == (await watcher.answer())[0]
            assert {} == at.parts.server_thread.decided
            assert not isinstance(watcher.scope, dict) or DECIDED not in watcher.scope

    asyncio.run(story())


def test_a_plain_command_is_answered_without_a_task(kind: Kind) -> None:
    async def story() -> None:
        async with stage(cors_origins=("https://page.example",)) as at:
            watcher = Watcher(kind, ECHO, headers={"x-request-id": "mine", "origin": "https://page.example"})
            assert taken(at, watcher)
            status, reply = await watcher.answer()
            assert (200, {"n": 1}, "mine") == (status, reply["result"], reply["meta"]["request_id"])
            assert "https://page.example" == watcher.proto.headers["access-control-allow-origin"]
            assert ({"2xx": 1}, 0, set()) == (at.requests(), at.rides.hall.boarding, at.rides._rests)
            phases = at.phases()
            assert {"authorise": 1, "dispatch": 1, "upstream": 1, "respond": 1, "record": 0} == phases

    asyncio.run(story())


def test_what_is_not_plain_goes_on_as_a_task(kind: Kind) -> None:
    async def story() -> None:
        async with stage() as at:
            at.daemon.answers["pipeline.run"] = lambda _: ReplyFrame(result=b'{"id":"x1"}', accepted_id="x1")
            for body, status, code in (
                (b"{", 400, "invalid_json"),
                (b'{"command":"system.ecko"}', 404, "unknown_command"),
                (b'{"command":"pipeline.run","args":{"id":"p"}}', 202, None),
            ):
                watcher = Watcher(kind, body)
                assert taken(at, watcher)
                seen, document = await watcher.answer()
                assert (status, code) == (seen, document.get("code"))
            assert {"2xx": 1, "4xx": 2} == at.requests()
            # A query is for the general way from the first word.
            assert not taken(at, Watcher(kind, ECHO, query="dry_run=true"))

    asyncio.run(story())


def test_a_body_in_pieces_is_read_to_its_end() -> None:
    async def story() -> None:
        async with stage() as at:
            watcher = Watcher("asgi", ECHO[:7], ECHO[7:20], ECHO[20:])
            assert taken(at, watcher)
            assert 200 == (await watcher.answer())[0]
            assert {"2xx": 1} == at.requests()

    asyncio.run(story())


def test_who_leaves_within_a_body_is_counted() -> None:
    async def story() -> None:
        async with stage() as at:
            watcher = Watcher("asgi", ECHO[:7], headers={"content-length": "99"})
            watcher.proto.gone.set()
            assert taken(at, watcher)
            assert {"4xx": 1} == await at.counted()
            assert not watcher.proto.answered.is_set()

    asyncio.run(story())


def test_a_body_that_is_broken_or_late_is_refused(kind: Kind) -> None:
    async def story() -> None:
        async with stage() as at:
            broken = Watcher(kind, ECHO, fails=True)
            assert taken(at, broken)
            status, document = await broken.answer()
            assert (400, "invalid_request") == (status, document["code"])
            late = Watcher(kind, None)
            assert taken(at, late)
            assert ([], 1) == (at.rides.hall.late(), at.rides.hall.boarding)
            at.rides.late(now_ns=2**63)
            assert 408 == (await late.answer())[0]
            assert late.proto.asked[0].is_cancelled
            assert "close" == late.proto.headers["connection"]

    asyncio.run(story())


def test_a_command_whose_time_is_over_is_told_so(kind: Kind) -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("system.echo", 1)
            watcher = Watcher(kind, b'{"command":"system.echo","deadline_ms":1}')
            assert taken(at, watcher)
            assert 504 == (await watcher.answer())[0]
            assert (0, {"5xx": 1}) == (at.parts.upstream.in_flight, at.requests())

    asyncio.run(story())


def test_a_caller_that_leaves_is_noticed(kind: Kind) -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("system.echo", 1)
            watcher = Watcher(kind, ECHO)
            assert taken(at, watcher)
            await at.outstanding(1)
            watcher.proto.gone.set()
            async with asyncio.timeout(20):
                while not at.daemon.given_up:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.01)
            assert (0, {"4xx": 1}) == (at.parts.upstream.in_flight, at.requests())
            assert not watcher.proto.answered.is_set()

    asyncio.run(story())


def test_a_server_that_says_that_nobody_takes_the_answer_is_believed() -> None:
    async def story() -> None:
        async with stage() as at:
            watcher = Watcher("asgi", ECHO)
            watcher.proto.gone.set()
            assert taken(at, watcher)
            assert {"4xx": 1} == await at.counted()

    asyncio.run(story())


def test_a_fault_of_ours_is_answered(kind: Kind) -> None:
    async def story() -> None:
        async with stage() as at:
            no_bytes: Any = bytearray(ECHO)
            watcher = Watcher(kind, no_bytes)
            assert taken(at, watcher)
            status, document = await watcher.answer()
            assert (500, "internal", {"5xx": 1}) == (status, document["code"], at.requests())

    asyncio.run(story())


def test_what_is_over_is_forgotten_without_a_collector(kind: Kind) -> None:
    async def story() -> None:
        async with stage() as at:
            at.daemon.answers["pipeline.list"] = lambda _: None
            gone = []
            for sent, fails in (
                (ECHO, False),
                (b"{", False),
                (ECHO, True),
                (None, False),
                (b'{"command":"pipeline.list","deadline_ms":1}', False),
            ):
                watcher = Watcher(kind, sent, fails=fails)
                assert taken(at, watcher)
                at.rides.late(now_ns=2**63 if sent is None else None)
                await watcher.answer()
                gone += [weakref.ref(watcher.proto.asked[0]), weakref.ref(watcher.proto)]
                # The test's own circle: a protocol of Granian's does not keep what it gave away.
                watcher.proto.asked.clear()
                del watcher
                for _ in range(9):
                    await asyncio.sleep(0)
            # Granian's future is not seen by the collector: a circle of which it is a part would be there for ever.
            assert [None] * 10 == [it() for it in gone]

    gc.disable()
    try:
        asyncio.run(story())
    finally:
        gc.enable()


class Bodies:
    """A hall, and requests whose bodies come when a test says so."""

    def __init__(self, at: Stage, kind: Kind) -> None:
        self.calls = 0
        self._at = at
        self._kind = kind
        self.hall = Hall(at.rides._commands.plain, self._called, contextvars.copy_context(), 25.0)

    def _called(self) -> None:
        self.calls += 1

    def ask(self) -> Any:
        """Ask for one more; what lets it come."""
        watcher = Watcher(self._kind, ECHO)
        edge = self._at.parts.edge
        decided = edge.admit(watcher.scope) if self._kind == "asgi" else edge.decide(watcher.scope, bare=None)
        admitted: Any = decided[0] if isinstance(decided, tuple) else decided
        watcher.proto.holds = True
        self.hall.board(watcher, watcher.proto, admitted)
        future = watcher.proto.asked[0]
        return lambda: future.callback(future)


def test_who_boards_while_others_are_about_to_calls_nobody(kind: Kind) -> None:
    async def story() -> None:
        async with stage() as at:
            bodies = Bodies(at, kind)
            # Nobody looks by himself yet: the first calls at once, whoever else comes.
            first, second = bodies.ask(), bodies.ask()
            first()
            assert 1 == bodies.calls
            assert 1 == len(bodies.hall.boarded(watch=True)[0])
            # Now somebody does.
            third = bodies.ask()
            second()
            assert (1, True) == (bodies.calls, bodies.hall.look())
            third()
            assert (2, False) == (bodies.calls, bodies.hall.look())
            assert 2 == len(bodies.hall.boarded(watch=True)[0])
            # For a while nothing happens, and nobody looks any more.
            assert bodies.hall.look() is None
            fourth, _ = bodies.ask(), bodies.ask()
            fourth()
            assert 3 == bodies.calls

    asyncio.run(story())


def test_who_boards_alone_or_beside_one_that_hangs_calls_at_once(kind: Kind) -> None:
    async def story() -> None:
        async with stage() as at:
            bodies = Bodies(at, kind)
            bodies.hall.boarded(watch=True)
            bodies.ask()()
            assert 1 == bodies.calls
            bodies.hall.boarded(watch=True)
            bodies.ask()
            # Longer than anybody is waited for.
            await asyncio.sleep(0.005)
            bodies.ask()()
            assert (2, 1) == (bodies.calls, bodies.hall.boarding)

    asyncio.run(story())


def test_a_lane_does_not_wait_for_others() -> None:
    async def story() -> None:
        async with stage() as at:
            assert 200 == (await (await at.ask()).answer())[0]
            assert (False, None) == (at.rides._is_watched, at.rides.hall.look())

    asyncio.run(story())


def test_one_that_waits_for_a_body_that_does_not_come_leaves_soon(kind: Kind) -> None:
    async def story() -> None:
        async with stage() as at:
            at.rides.lane = None
            opening = Watcher(kind, ECHO)
            assert taken(at, opening)
            await opening.answer()
            assert at.rides._is_watched
            assert taken(at, Watcher(kind, None))
            watcher = Watcher(kind, ECHO)
            assert taken(at, watcher)
            assert (200, 1) == ((await watcher.answer())[0], at.rides.hall.boarding)
            async with asyncio.timeout(20):
                while at.rides._is_watched:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.001)

    asyncio.run(story())


def test_what_cannot_be_taken_is_left_to_a_task(kind: Kind) -> None:
    class Panic(BaseException):
        """As one of native code."""

    async def story() -> None:
        async with stage() as at:
            watcher = Watcher(kind, ECHO)

            def panics(*_: Any) -> None:
                raise Panic

            board, at.rides.board = at.rides.board, panics  # type: ignore[method-assign, assignment]
            assert not taken(at, watcher)
            at.rides.board = board  # type: ignore[method-assign]
            # It was decided about, and is not charged again.
            assert at.parts.server_thread.decided or DECIDED in watcher.scope

    asyncio.run(story())


def test_a_shortcut_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def take(_: Any) -> bool:
        raise MemoryError

    class Open:
        """A coroutine that does not close."""

        def close(self) -> None:
            """Close."""
            raise ValueError

    assert 7 == Shortcut(lambda *_, **__: 7, take)(None, Open(), object())
    assert Shortcut(lambda *_, **__: 7, lambda _: True)(None, Open(), object()) is None
    assert [MemoryError, ValueError] == [one.exc_type for one in told]


def test_another_method_of_the_route_is_no_command(kind: Kind) -> None:
    """OPTIONS needs no token: what is answered so must not reach the daemon."""

    async def story() -> None:
        async with stage() as at:
            watcher = Watcher(kind, b'{"command":"auth.login","args":{}}', method="OPTIONS")
            assert not taken(at, watcher)
            await _as_a_task(at, watcher)
            assert (204, []) == ((await watcher.answer())[0], at.daemon.commands())

    asyncio.run(story())


def test_ten_thousand_that_leave_have_no_answer_of_another_one(kind: Kind) -> None:
    async def story() -> None:
        draw = random.Random(11)
        async with stage(rate_limits=()) as at:
            left = 0
            under_way: dict[Any, Any] = {}
            depart = at.rides._express.depart

            def noted(rides: Any) -> int:
                under_way.update({ride.protocol: ride for ride in rides})
                return depart(rides)

            at.rides._express.depart = noted  # type: ignore[method-assign]

            async def ask(marker: int) -> None:
                nonlocal left
                watcher = Watcher(kind, b'{"command":"system.echo","args":{"n":%d}}' % marker)
                assert at.parts.server_thread.take(watcher)
                for _ in range(draw.choice((0, 1, 2, 3, 4, 6))):
                    await asyncio.sleep(0)
                if not watcher.proto.answered.is_set() and draw.random() < 0.7:
                    left += 1
                    watcher.proto.gone.set()
                    if watcher.proto in under_way:
                        # As when it takes long.
                        at.rides.takes_long(under_way[watcher.proto])
                    return
                status, reply = await watcher.answer()
                assert (200, marker) == (status, reply["result"]["n"])

            marker = 0
            while left < 10_000:
                await asyncio.gather(*(ask(marker + number) for number in range(40)))
                marker += 40
                under_way.clear()
            assert at.daemon.given_up
            async with asyncio.timeout(20):
                while len(at.parts.upstream.express._native):  # noqa: ASYNC110 - what was left ends with its reply
                    await asyncio.sleep(0.01)
            assert (0, 240) == (at.parts.upstream.in_flight, at.parts.upstream._credits._value)

    asyncio.run(story())


def test_what_is_no_request_of_granian_goes_to_the_loop() -> None:
    async def story() -> None:
        async with stage() as at:
            take = at.parts.server_thread.take
            other = Watcher("rsgi", ECHO)
            other.proto = object()
            assert [False, False, False] == [take(other), take(None), take(asyncio.get_running_loop().create_future())]

    asyncio.run(story())


def test_a_shortcut_passes_everything_else_on() -> None:
    called: list[Any] = []

    def ordinary(*given: Any, context: Any) -> str:
        called.append((given, context))
        return "handle"

    shortcut = Shortcut(ordinary, lambda _: False)
    assert ["handle"] * 3 == [shortcut(print), shortcut(print, 1, context="c"), shortcut(print, 1, 2)]
    assert [((print,), None), ((print, 1), "c"), ((print, 1, 2), None)] == called


def test_it_takes_the_place_of_what_the_server_asks() -> None:
    async def story() -> None:
        async with stage() as at:
            loop = asyncio.get_running_loop()
            at.parts.server_thread.install(loop)
            assert isinstance(loop.call_soon_threadsafe, Shortcut)
            called = asyncio.Event()
            await asyncio.to_thread(loop.call_soon_threadsafe, called.set)
            async with asyncio.timeout(20):
                await called.wait()

            class Closed:
                """A loop that takes no attributes."""

                __slots__ = ()

                def call_soon_threadsafe(self) -> None:
                    """Call soon."""

            closed: Any = Closed()
            at.parts.server_thread.install(closed)

    asyncio.run(story())
