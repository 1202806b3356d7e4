"""A gateway's way to its daemons, with real processes: killed, stopping, hanging, cut in mid-frame, moved, cancelled.

Every command carries a marker of its own, so that an answer which belongs to another one cannot go unseen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pytest
import uvloop
from tests import daemon_process
from tests.daemon_process import TOKEN, DaemonProcess

from flx_api.errors import FlxError
from flx_api.observability.metrics import Metrics
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, Principal, ReplyFrame
from flx_api.upstream.channel import Upstream
from flx_api.upstream.endpoints import Endpoint
from flx_api.upstream.group import Group

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

CALLERS = 32


def frame(marker: int, size: int = 0) -> CommandFrame:
    args = json.dumps({"marker": marker, "pad": "x" * size}).encode()
    return CommandFrame(command="system.echo", args=args, principal=Principal(subject="anna", roles=["viewer"]))


def endpoint(daemon: DaemonProcess, **more: Any) -> Endpoint:
    return Endpoint(host="127.0.0.1", port=daemon.port, token=TOKEN, **more)


@contextlib.asynccontextmanager
async def connected(*endpoints: Endpoint, width: int = 1) -> AsyncIterator[Upstream]:
    # A machine that is busy with tests must not look like a daemon that has too much to do.
    upstream = Upstream(endpoints, Metrics(), width=width, sheds=False)
    upstream.start()
    try:
        await until(lambda: ready(upstream) == len(endpoints) * width)
        yield upstream
    finally:
        await upstream.close()
    assert 0 == upstream.in_flight


def leads_to(upstream: Upstream, places: list[str]) -> bool:
    """Whether there are connections to exactly these addresses."""
    return set(places) == set(upstream._pools[0]._links) and ready(upstream) == len(places)


def ready(upstream: Upstream) -> int:
    return sum(pool.ready for pool in upstream.state().pools)


async def until(condition: Callable[[], object], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is no event
            await asyncio.sleep(0.01)


class Load:
    """Callers that go on and on; what became of each command."""

    def __init__(self, upstream: Upstream, *, read: bool = True, size: int = 0) -> None:
        self._size = size
        self._upstream = upstream
        self._read = read
        self._over = asyncio.Event()
        self._next = 0
        self._callers: list[asyncio.Task[None]] = []
        self.told: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._callers = [asyncio.create_task(self._call()) for _ in range(CALLERS)]
        await self.more(500)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await asyncio.gather(*self._callers)

    async def more(self, count: int) -> None:
        """Wait until so many more commands were answered."""
        target = self.told["ok"] + count
        await until(lambda: self.told["ok"] >= target)

    async def _call(self) -> None:
        while not self._over.is_set():
            marker = self._next = self._next + 1
            try:
                reply = await self._upstream.call(frame(marker, self._size), 30, read=self._read)
            except FlxError as error:
                self.told[error.code] += 1
                await asyncio.sleep(0.01)
                continue
            assert marker == json.loads(reply.result)["marker"], "an answer to another command"
            self.told[reply.code or "ok"] += 1


def play(story: Coroutine[Any, Any, None]) -> None:
    uvloop.run(story)


Two = "Callable[[DaemonProcess, DaemonProcess], Awaitable[None]]"


@contextlib.asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[DaemonProcess, DaemonProcess]]:
    async with (
        daemon_process.running(folder / "one") as first,
        daemon_process.running(folder / "two") as second,
    ):
        yield first, second


def test_a_daemon_that_is_killed_costs_no_read(tmp_path: Path) -> None:
    """And when it is back, it is used again."""

    async def story() -> None:
        async with (
            two(tmp_path) as (first, second),
            connected(endpoint(first), endpoint(second), width=2) as upstream,
            Load(upstream) as load,
        ):
            for _ in range(3):
                await first.end(signal.SIGKILL)
                await load.more(500)
                assert "1 of 2 daemons are connected (1: " in upstream.note
                assert await first.start()
                await until(lambda: ready(upstream) == 4)
                await load.more(500)
            assert {"ok"} == set(load.told), load.told
            assert upstream.state().sent_again > 0

    play(story())


def test_a_daemon_that_stops_loses_nothing_not_even_what_may_be_sent_once(tmp_path: Path) -> None:
    """It says so, answers what it has, and is sent nothing more."""

    async def story() -> None:
        async with (
            two(tmp_path) as (first, second),
            connected(endpoint(first), endpoint(second)) as upstream,
            Load(upstream, read=False) as load,
        ):
            for _ in range(3):
                assert 0 == await first.end(signal.SIGTERM)
                await load.more(500)
                assert await first.start()
                await until(lambda: ready(upstream) == 2)
                await load.more(500)
            assert {"ok"} == set(load.told), load.told
            assert [0, 0] == [pool.lost for pool in upstream.state().pools]
            assert 0 == upstream.state().sent_again

    play(story())


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_daemon_that_hangs_costs_time_but_no_read_and_comes_back(tmp_path: Path, size: int) -> None:
    """Also when what it does not read fills all buffers on the way to it."""

    async def story() -> None:
        async with (
            two(tmp_path) as (first, second),
            connected(endpoint(first), endpoint(second)) as upstream,
            Load(upstream, size=size) as load,
        ):
            first.send(signal.SIGSTOP)
            try:
                await until(lambda: ready(upstream) == 1)
                await load.more(500)
                assert "does not answer in time" in upstream.note
            finally:
                first.send(signal.SIGCONT)
            await until(lambda: ready(upstream) == 2)
            await load.more(500)
            assert {"ok"} == set(load.told), load.told

    play(story())


def test_batches_go_the_same_way(tmp_path: Path) -> None:
    """Each operation of each batch ends once, with its own answer, while a daemon is killed and comes back."""

    async def story() -> None:
        async with two(tmp_path) as (first, second), connected(endpoint(first), endpoint(second), width=2) as upstream:
            over = asyncio.Event()
            done = 0

            async def batches() -> None:
                nonlocal done
                while not over.is_set():
                    group, told, index = Group(upstream, 60), {}, 0
                    while index < 300 or not group.is_idle:
                        while index < 300 and group.has_room:
                            await group.begin(index, frame(index), 30, read=True)
                            index += 1
                        for number, ending in (await group.ended()).others:
                            assert number not in told
                            assert isinstance(ending, ReplyFrame), ending
                            told[number] = json.loads(ending.result)["marker"]
                    assert {number: number for number in range(300)} == told
                    done += 1

            working = [asyncio.create_task(batches()) for _ in range(3)]
            for _ in range(3):
                await until(partial(lambda target: done >= target, done + 5))
                await first.end(signal.SIGKILL)
                await until(partial(lambda target: done >= target, done + 5))
                assert await first.start()
                await until(lambda: ready(upstream) == 4)
            over.set()
            await asyncio.gather(*working)
            assert upstream.state().sent_again > 0

    play(story())


def test_ten_thousand_cancelled_callers_leave_no_answer_to_others(tmp_path: Path) -> None:
    chance = random.Random(5)

    async def story() -> None:
        async with two(tmp_path) as (first, second), connected(endpoint(first), endpoint(second), width=2) as upstream:
            told: Counter[str] = Counter()

            async def call(marker: int) -> None:
                try:
                    reply = await upstream.call(frame(marker), 30, read=True)
                except asyncio.CancelledError:
                    told["cancelled"] += 1
                    return
                assert marker == json.loads(reply.result)["marker"], "an answer to another command"
                told["answered"] += 1

            marker = 0
            while told["cancelled"] < 10_000:
                calls = [asyncio.create_task(call(marker + number)) for number in range(200)]
                marker += len(calls)
                for _ in range(chance.randrange(1, 12)):
                    await asyncio.sleep(0)
                for doomed in chance.sample(calls, 150):
                    doomed.cancel()
                await asyncio.gather(*calls)
            assert told["answered"] > 0
            assert 0 == upstream.state().foreign
            # A probe is outstanding for a moment, now and then.
            await until(lambda: not upstream._abandoned and not any(c.outstanding for c in upstream._ready))

    play(story())


class Proxy:
    """Passes bytes on, until it is told to cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut_after: int | None = None
        self.cuts = 0
        self.port = 0

    def has_cut(self, times: int) -> bool:
        """Whether it has cut so often."""
        return self.cuts == times

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for writer in self._writers:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, back]
        for source, sink, is_answer in ((reader, back, False), (there, writer, True)):
            task = asyncio.create_task(self._pass_on(source, sink, is_answer=is_answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_answer: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                if is_answer and self.cut_after is not None:
                    if len(data) > self.cut_after:
                        sink.write(data[: self.cut_after])
                        await sink.drain()
                        self.cut_after = None
                        self.cuts += 1
                        for writer in self._writers:
                            writer.transport.abort()
                        return
                    self.cut_after -= len(data)
                sink.write(data)
                await sink.drain()


def test_an_answer_that_is_cut_in_mid_frame_is_nobodys(tmp_path: Path) -> None:
    chance = random.Random(7)

    async def story() -> None:
        async with daemon_process.running(tmp_path / "one") as daemon, Proxy(daemon.port).open() as proxy:
            way = Endpoint(host="127.0.0.1", port=proxy.port, token=TOKEN)
            async with connected(way) as upstream, Load(upstream) as load:
                for number in range(1, 11):
                    proxy.cut_after = chance.randrange(1, 5000)
                    await until(partial(proxy.has_cut, number))
                    await until(lambda: ready(upstream) == 1)
                    await load.more(50)
                assert {"ok"} == set(load.told), load.told
                assert 10 == upstream.state().pools[0].lost

    play(story())


def test_a_name_that_leads_elsewhere_is_followed_without_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flx_api.upstream.pool.RESOLVE_EVERY_S", 0.05)
    monkeypatch.setattr("flx_api.upstream.connection.FAREWELL_S", 0.5)
    places = ["127.0.0.1"]

    async def resolve(_host: str, _port: int) -> list[str]:
        return list(places)

    async def story() -> None:
        daemon = DaemonProcess(tmp_path, {"grpc_listen": "0.0.0.0:0", "grpc_insecure": "true"})
        daemon._environ["FLX_GRPC_LISTEN"] = f"0.0.0.0:{daemon.port}"
        assert await daemon.start(), daemon.log.read_text()
        try:
            way = Endpoint(host="daemon", port=daemon.port, token=TOKEN, resolve=resolve)
            async with connected(way) as upstream, Load(upstream, read=False) as load:
                for place in (["127.0.0.2"], ["127.0.0.2", "127.0.0.3"], ["127.0.0.3"]):
                    places[:] = place
                    await until(partial(leads_to, upstream, place))
                    await load.more(200)
                # One that cannot be resolved changes nothing.
                places.clear()
                await load.more(200)
                assert 1 == ready(upstream)
                assert {"ok"} == set(load.told), load.told
                await until(lambda: not upstream._pools[0]._gone)
        finally:
            await daemon.end(signal.SIGKILL)

    play(story())
