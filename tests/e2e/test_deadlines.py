"""A command's deadline and its client's leaving, from a socket of the client to the handler in the daemon.

The gateway is a real process; the daemon is the real one with handlers of the test's own, on a socket in this process,
so that it can be seen when a handler begins and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
from grpclib.server import Server
from tests.daemon.daemon_parts import Clock, parts
from tests.gateway_process import bearer, running

from flx_api.daemon.handlers import Accepted
from flx_api.daemon.server import DaemonService, services_of
from flx_api.daemon.trust import SocketTrust
from flx_api.models.execution import Execution
from flx_api.models.pipeline import Deleted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from pathlib import Path

    from flx_api.daemon.handlers import Context, Handler

pytestmark = pytest.mark.e2e

LIMITS = httpx.Limits(max_connections=None)
WAITS = 160
WAIT = {"command": "execution.wait", "args": {"id": "e", "timeout_ms": 600_000}}
DELETE = {"command": "pipeline.delete", "args": {"id": "p"}}


class Handling:
    """A handler that goes on until the test lets it; how often it began, was cancelled and came to its end."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.done = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, context: Context, _args: Any) -> Deleted:
        self.contexts.append(context)
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        self.done.set()
        return Deleted("x")


class RealClock(Clock):
    """Deadlines are moments of the real time."""

    def __call__(self) -> int:
        return time.time_ns() // 1000


@contextlib.asynccontextmanager
async def stack(folder: Path, handlers: Mapping[str, Handler], **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway's client, over a daemon with these handlers in the place of its own."""
    (folder / "project").mkdir()
    async with parts(folder / "project", clock=RealClock()) as daemon:
        service = DaemonService(daemon.services, daemon.dispatcher(handlers), SocketTrust())
        server = Server(services_of(service)[0])
        await server.start(path=str(folder / "daemon.sock"))
        try:
            async with (
                running(folder / "daemon.sock", folder / "gateway", settings) as gateway,
                httpx.AsyncClient(base_url=gateway.url, headers=bearer(), timeout=60, limits=LIMITS) as http,
            ):
                yield http
        finally:
            server.close()
            await server.wait_closed()


def play(story: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(100):
            await story

    asyncio.run(bounded())


@pytest.mark.parametrize(
    ("options", "settings"), [({"deadline_ms": 1500}, {}), ({}, {"deadline_ms": "1500"})], ids=["request", "setting"]
)
def test_a_read_ends_with_its_deadline_where_it_is_carried_out(
    tmp_path: Path, options: dict[str, int], settings: dict[str, str]
) -> None:
    async def story() -> None:
        get = Handling()
        async with stack(tmp_path, {"pipeline.get": get}, **settings) as http:
            asked_us = time.time_ns() // 1000
            answer = await http.post("/v1/execute", json={"command": "pipeline.get", "args": {"id": "p"}, **options})
            assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
            await get.cancelled.wait()
            (context,) = get.contexts
            assert context.deadline_us is not None
            assert asked_us + 1_500_000 - 1000 <= context.deadline_us <= time.time_ns() // 1000

    play(story())


def test_a_change_goes_on_after_its_deadline(tmp_path: Path) -> None:
    async def story() -> None:
        delete = Handling()
        async with stack(tmp_path, {"pipeline.delete": delete}) as http:
            answer = await http.post("/v1/execute", json={**DELETE, "deadline_ms": 1500})
            assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
            assert not delete.cancelled.is_set()
            delete.go.set()
            await delete.done.wait()

    play(story())


def test_who_leaves_ends_a_read_and_not_a_change(tmp_path: Path) -> None:
    async def story() -> None:
        wait, delete = Handling(), Handling()
        async with stack(tmp_path, {"execution.wait": wait, "pipeline.delete": delete}) as http:
            asking = [asyncio.create_task(http.post("/v1/execute", json=body)) for body in (WAIT, DELETE)]
            await wait.begun.wait()
            await delete.begun.wait()
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            await wait.cancelled.wait()
            assert not delete.cancelled.is_set()
            delete.go.set()
            await delete.done.wait()

    play(story())


def test_those_who_left_hold_no_place(tmp_path: Path) -> None:
    """As many clients wait as may wait at once, and leave; whoever comes then is let in long before any deadline."""

    async def story() -> None:
        wait = Handling()
        async with stack(tmp_path, {"execution.wait": wait}) as http:

            def ask(subject: str) -> Coroutine[Any, Any, httpx.Response]:
                return http.post("/v1/execute", json=WAIT, headers=bearer(subject))

            asking = [asyncio.create_task(ask("anna")) for _ in range(WAITS // 2)]
            await until(lambda: len(wait.contexts) == WAITS // 2)
            # One caller has half of the places, and no more.
            assert (await ask("anna")).status_code == 503
            asking += [asyncio.create_task(ask("otto")) for _ in range(WAITS // 2)]
            await until(lambda: len(wait.contexts) == WAITS)
            full = await ask("eve")
            assert (full.status_code, full.json()["code"]) == (503, "upstream_unavailable")
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            while len(wait.contexts) == WAITS:
                late = asyncio.create_task(ask("anna"))
                await asyncio.wait((late,), timeout=0.1)
                # Refused as long as not all have left; let in it waits.
                if not late.done():
                    await until(lambda: len(wait.contexts) == WAITS + 1)
            wait.go.set()
            assert (await late).status_code == 200

    play(story())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - bounded by the story's own time
        await asyncio.sleep(0.01)


EXECUTION = Execution("e1", "p", "running", "api", "anna", None, "incremental", (), 1, 1)
OVER = msgspec.structs.replace(EXECUTION, status="failed")


def test_waiting_turns_a_long_command_into_a_short_one(tmp_path: Path) -> None:
    async def run(context: Context, _args: Any) -> Accepted | Execution:
        return OVER if context.wait_ms >= 1000 else Accepted(EXECUTION, EXECUTION.id)

    async def story() -> None:
        async with stack(tmp_path, {"pipeline.run": run}) as http:
            for path in ("/v1/pipelines/p/run", "/v1/commands/pipeline.run"):
                body = {} if path.endswith("/run") else {"id": "p"}
                for wait_ms, status in ((0, 202), (10, 202), (1000, 200)):
                    answer = await http.post(path, json=body, params={"wait_ms": wait_ms})
                    assert answer.status_code == status, (path, wait_ms, answer.text)
                    told = answer.json()
                    found = told.get("result", told)
                    assert (found["id"], found["status"]) == ("e1", "failed" if status == 200 else "running")
                    if status == 202:
                        assert answer.headers["location"] == "/v1/executions/e1"
                    if "result" in told:
                        assert told["status"] == ("ok" if status == 200 else "accepted")

    play(story())
