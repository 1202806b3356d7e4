"""The lane: one coroutine, begun in one thread and ended there or in the loop. Real servers: e2e/test_faces.py."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any

import granian
import granian._futures
import pytest
from tests.gateway.test_rsgi import Protocol, Rsgi

from flx_api.gateway.lane import HOOK, Lane, install, unfit

if TYPE_CHECKING:
    from flx_api.gateway.exchange import Scope


class Connection(Protocol):
    """The protocol of a WebSocket, as far as the lane is concerned."""


class Watcher:
    """What Granian gives to its scheduler."""

    def __init__(self, proto: str = "http") -> None:
        self.scope = Rsgi(proto=proto)
        self.proto = Protocol() if proto == "http" else Connection()
        self.ends: list[Any] = []
        self.ended = threading.Event()

    def done(self) -> None:
        self._end(None)

    def err(self, error: BaseException) -> None:
        self._end(error)

    def taskref(self, task: asyncio.Task[None]) -> None:
        self.task = task

    def _end(self, how: BaseException | None) -> None:
        self.ends.append(how)
        self.ended.set()


class Admitted:
    """What was admitted."""

    length = 0


class Edge:
    """Decides what a test says, and serves in so many steps, each writing down its thread."""

    def __init__(self, *steps: str, at_once: bool = False, whole: bool = False) -> None:
        self._steps = steps
        self._at_once = at_once
        self._whole = whole
        self.threads: list[int] = []

    def decide(self, rsgi: Any, *, bare: int | None = None) -> tuple[Any, ...]:
        assert bare is None
        self.threads.append(threading.get_ident())
        if "undecided" in self._steps:
            raise ValueError("undecided")
        return (429, [], b"no") if self._whole else (Admitted(), {})

    def answers_at_once(self, admitted: Admitted) -> bool:
        return self._at_once

    async def serve(self, scope: Scope, receive: Any, send: Any, admitted: Admitted) -> None:
        for step in self._steps:
            self.threads.append(threading.get_ident())
            if step != "loop":
                raise ValueError(step)
            await asyncio.sleep(0)
        self.threads.append(threading.get_ident())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def ride(edge: Edge, watcher: Watcher) -> tuple[int, list[Watcher]]:
    """Send a request down the lane from a thread that is not the loop's; the loop's thread, and what was passed on."""
    passed_on: list[Watcher] = []

    async def story() -> int:
        loop = asyncio.get_running_loop()
        made = Lane(edge, loop, contextvars.copy_context(), passed_on.append, Protocol)  # type: ignore[arg-type]
        await asyncio.to_thread(made.schedule, watcher)
        if not passed_on and not watcher.proto.calls:
            await asyncio.to_thread(watcher.ended.wait, 5)
        return threading.get_ident()

    return asyncio.run(story()), passed_on


def test_a_refusal_never_sees_the_loop() -> None:
    edge, watcher = Edge(whole=True), Watcher()
    loop_thread, passed_on = ride(edge, watcher)
    assert ([(429, [], b"no")], []) == (watcher.proto.calls, passed_on)
    assert loop_thread not in edge.threads


def test_a_probe_never_sees_the_loop() -> None:
    edge, watcher = Edge(at_once=True), Watcher()
    loop_thread, _ = ride(edge, watcher)
    assert [(200, [], b"ok")] == watcher.proto.calls
    assert loop_thread not in edge.threads


def test_what_is_admitted_goes_on_in_the_loop() -> None:
    edge, watcher = Edge("loop"), Watcher()
    loop_thread, _ = ride(edge, watcher)
    assert ([(200, [], b"ok")], [None]) == (watcher.proto.calls, watcher.ends)
    assert loop_thread != edge.threads[0]
    assert {loop_thread} == set(edge.threads[1:])
    assert watcher.task.done()


@pytest.mark.parametrize("edge", [Edge("broken"), Edge("loop", "broken"), Edge("undecided")])
def test_an_error_is_given_to_the_server(edge: Edge) -> None:
    watcher = Watcher()
    ride(edge, watcher)
    assert [ValueError] == [type(error) for error in watcher.ends]


def test_waiting_at_once_is_an_error_and_not_a_hang() -> None:
    watcher = Watcher()
    ride(Edge("loop", at_once=True), watcher)
    assert "waited for something" in str(watcher.ends[0])
    assert [] == watcher.proto.calls


def test_websockets_go_the_ordinary_way() -> None:
    edge, watcher = Edge(), Watcher("ws")
    _, passed_on = ride(edge, watcher)
    assert ([watcher], []) == (passed_on, edge.threads)


def test_a_closed_loop_raises_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    Lane(Edge(), loop, contextvars.copy_context(), print, Protocol).schedule(Watcher())  # type: ignore[arg-type]


def test_the_installed_server_is_the_known_one() -> None:
    assert "" == unfit()


def test_it_takes_the_place_of_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granian._futures, HOOK, getattr(granian._futures, HOOK))
    monkeypatch.setattr("granian.rsgi.HTTPProtocol", Protocol)
    assert install(Edge(whole=True))  # type: ignore[arg-type]
    watcher = Watcher()
    loop = asyncio.new_event_loop()
    getattr(granian._futures, HOOK)(loop, contextvars.copy_context(), print)(watcher)
    loop.close()
    assert [(429, [], b"no")] == watcher.proto.calls


def _other(loop: Any, cb: Any) -> None:
    """A scheduler of another Granian."""


@pytest.mark.parametrize(
    ("target", "name", "value", "reason"),
    [
        (granian, "__version__", "2.9.0", "Granian 2.9.0 is not one of 2.8.7"),
        (granian._futures, HOOK, None, f"Granian has no {HOOK}"),
        (granian._futures, HOOK, _other, f"{HOOK} takes other arguments than loop, ctx, cb"),
    ],
)
def test_another_server_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, target: Any, name: str, value: Any, reason: str
) -> None:
    monkeypatch.setattr(target, name, value)
    before = getattr(granian._futures, HOOK)
    assert reason == unfit()
    assert not install(Edge())  # type: ignore[arg-type]
    assert before is getattr(granian._futures, HOOK)
