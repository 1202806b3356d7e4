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

from flx_api.gateway import lane
from flx_api.gateway.lane import HOOK, Lane, install, unfit

if TYPE_CHECKING:
    from flx_api.gateway.exchange import Scope


class Watcher:
    """What Granian gives to its scheduler."""

    def __init__(self, proto: str = "http") -> None:
        self.scope = Rsgi(proto=proto)
        self.proto = Protocol()
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


class App:
    """Answers with the threads it ran in."""

    def __init__(self, *steps: str) -> None:
        self._steps = steps
        self.threads: list[int] = []

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        self.threads.append(threading.get_ident())
        for step in self._steps:
            if step == "hop":
                await scope["flx.hop"]()
            elif step == "loop":
                await asyncio.sleep(0)
            elif step == "receive":
                await receive()
            else:
                raise ValueError(step)
            self.threads.append(threading.get_ident())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def ride(app: App, watcher: Watcher) -> tuple[int, list[Watcher]]:
    """Send a request down the lane from a thread that is not the loop's; the loop's thread, and what was passed on."""
    passed_on: list[Watcher] = []

    async def story() -> int:
        loop = asyncio.get_running_loop()
        ordinary = passed_on.append
        made = Lane(app, loop, contextvars.copy_context(), ordinary)
        await asyncio.to_thread(made.schedule, watcher)
        if not passed_on:
            async with asyncio.timeout(5):
                await asyncio.to_thread(watcher.ended.wait, 5)
        return threading.get_ident()

    return asyncio.run(story()), passed_on


def test_what_needs_no_loop_never_sees_it() -> None:
    app, watcher = App(), Watcher()
    loop_thread, passed_on = ride(app, watcher)
    assert [(200, [], b"ok")] == watcher.proto.calls
    assert ([None], []) == (watcher.ends, passed_on)
    assert loop_thread not in app.threads


def test_what_needs_the_loop_goes_on_there() -> None:
    app, watcher = App("hop", "loop", "receive"), Watcher()
    loop_thread, _ = ride(app, watcher)
    assert [(200, [], b"ok")] == watcher.proto.calls
    assert [None] == watcher.ends
    assert loop_thread != app.threads[0]
    assert {loop_thread} == set(app.threads[1:])
    assert watcher.task.done()


@pytest.mark.parametrize("steps", [("broken",), ("hop", "broken"), ("hop", "loop", "broken")])
def test_an_error_is_given_to_the_server(steps: tuple[str, ...]) -> None:
    watcher = Watcher()
    ride(App(*steps), watcher)
    assert ["broken"] == [str(error) for error in watcher.ends]


def test_waiting_without_a_hop_is_an_error_and_not_a_hang() -> None:
    watcher = Watcher()
    ride(App("loop"), watcher)
    assert "before it left the lane" in str(watcher.ends[0])
    assert [] == watcher.proto.calls


def test_websockets_go_the_ordinary_way() -> None:
    app, watcher = App(), Watcher("ws")
    _, passed_on = ride(app, watcher)
    assert ([watcher], []) == (passed_on, app.threads)


def test_a_closed_loop_raises_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    Lane(App("hop"), loop, contextvars.copy_context(), print).schedule(Watcher())


def test_the_installed_server_is_the_known_one() -> None:
    assert "" == unfit()


def test_it_takes_the_place_of_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granian._futures, HOOK, getattr(granian._futures, HOOK))
    assert install(App())
    watcher = Watcher()
    loop = asyncio.new_event_loop()
    getattr(granian._futures, HOOK)(loop, contextvars.copy_context(), print)(watcher)
    loop.close()
    assert [None] == watcher.ends


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
    assert not install(App())
    assert before is getattr(granian._futures, HOOK)
    assert lane.HOOK == HOOK
