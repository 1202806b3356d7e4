"""What every way between gateways promises: one process, the daemon's Watch stream, Redis.

A fleet is some gateways' receivers, and a way for each to publish. What a carrier does when it fails is held in
events/test_redis_bus.py, and below for the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from tests.events.test_redis_bus import until
from tests.redis_server import running as redis
from tests.small_daemon import SmallDaemon, serving

from flx_api._core import Hub
from flx_api.events.bus import Delivery
from flx_api.events.ephemeral_log import EphemeralEvent, EphemeralLog
from flx_api.events.follower import Follower
from flx_api.events.redis_bus import RedisBus
from flx_api.observability.metrics import Metrics
from flx_api.upstream.channel import Upstream
from flx_api.upstream.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

TENANTS = ("a", "b")


class Way(Protocol):
    """Publishes as one gateway."""

    async def publish(self, tenant: str, topic: str, data: bytes) -> None: ...


class Fleet:
    """Gateways, each with a way to publish and all that it heard."""

    def __init__(self, ways: list[Way], heard: list[list[EphemeralEvent | str]]) -> None:
        self.ways = ways
        self.heard = heard


def receiver(heard: list[EphemeralEvent | str]) -> Delivery:
    return Delivery(lambda *event: heard.append(EphemeralEvent(*event)), heard.append)


class Listener:
    """Who is told of a hub's news; not the subject here."""

    def news(self) -> None: ...

    def gap(self, reason: str) -> None: ...


class ByDaemon:
    """Publishes as the daemon's handler does when a gateway has sent it the command."""

    def __init__(self, daemon: SmallDaemon) -> None:
        self.daemon = daemon

    async def publish(self, tenant: str, topic: str, data: bytes) -> None:
        await self.daemon.tell(topic, data, tenant)


@contextlib.asynccontextmanager
async def in_one_process(_: Path) -> AsyncIterator[Fleet]:
    heard: list[EphemeralEvent | str] = []
    delivery, log = receiver(heard), EphemeralLog("e", lambda: 1)

    class Way:
        async def publish(self, tenant: str, topic: str, data: bytes) -> None:
            log.append(tenant, topic, data)
            delivery.hear(log.after(log.seq - 1, 1, 1 << 20))

    yield Fleet([Way(), Way()], [heard, heard])


@contextlib.asynccontextmanager
async def followers(socket: Path, count: int = 2) -> AsyncIterator[list[list[EphemeralEvent | str]]]:
    """Followers of the daemon at a socket, and what each has heard."""
    all_heard: list[list[EphemeralEvent | str]] = [[] for _ in range(count)]
    upstreams = [Upstream(Endpoint(path=str(socket)), Metrics(), jitter=lambda: 0.0) for _ in all_heard]
    made = [
        Follower(upstream, Hub("local"), Listener(), Metrics(), receiver=receiver(heard))
        for upstream, heard in zip(upstreams, all_heard, strict=True)
    ]
    try:
        for upstream, follower in zip(upstreams, made, strict=True):
            upstream.start()
            follower.start()
        await until(lambda: not any(follower.reason for follower in made))
        yield all_heard
    finally:
        for follower in made:
            await follower.close()
        for upstream in upstreams:
            await upstream.close()


@contextlib.asynccontextmanager
async def by_the_daemon(folder: Path) -> AsyncIterator[Fleet]:
    daemon = SmallDaemon()
    async with serving(daemon, folder / "d.sock"), followers(folder / "d.sock") as heard:
        yield Fleet([ByDaemon(daemon), ByDaemon(daemon)], heard)


@contextlib.asynccontextmanager
async def by_redis(folder: Path) -> AsyncIterator[Fleet]:
    heard: list[list[EphemeralEvent | str]] = [[], []]
    with redis(folder) as server:
        buses = [RedisBus(server.url, receiver(mine), lambda: 1) for mine in heard]
        for bus in buses:
            bus.start()
        try:
            await until(lambda: not any(bus.reason for bus in buses))
            yield Fleet(list(buses), heard)
        finally:
            for bus in buses:
                await bus.close()


CARRIERS: dict[str, Callable[[Path], AbstractAsyncContextManager[Fleet]]] = {
    "memory": in_one_process,
    "watch": by_the_daemon,
    "redis": by_redis,
}


@pytest.fixture(params=CARRIERS)
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractAsyncContextManager[Fleet]:
    return CARRIERS[request.param](tmp_path)


def test_every_gateway_hears_every_event_in_the_order_of_its_topic(
    fleet: AbstractAsyncContextManager[Fleet],
) -> None:
    async def story() -> None:
        async with fleet as gateways:
            told: list[Any] = []
            for number in range(300):
                event = (TENANTS[number % 2], f"app.{number % 7}", b"%d" % number)
                told.append(event)
                await gateways.ways[number % 2].publish(*event)
            await until(lambda: all(len(heard) == 300 for heard in gateways.heard))
            for heard in gateways.heard:
                events = [event for event in heard if isinstance(event, EphemeralEvent)]
                for key in {(tenant, topic) for tenant, topic, _ in told}:
                    expected = [data for tenant, topic, data in told if (tenant, topic) == key]
                    assert expected == [event.data for event in events if (event.tenant, event.topic) == key]

    asyncio.run(story())


def test_what_many_publish_at_once_comes_once(fleet: AbstractAsyncContextManager[Fleet]) -> None:
    async def story() -> None:
        async with fleet as gateways:
            await asyncio.gather(
                *(gateways.ways[n % 2].publish("a", f"app.{n % 3}", b'"%b"' % (b"x" * n)) for n in range(1_000))
            )
            await until(lambda: all(len(heard) >= 1_000 for heard in gateways.heard))
            for heard in gateways.heard:
                sizes = [len(event.data) for event in heard if isinstance(event, EphemeralEvent)]
                assert list(range(2, 1_002)) == sorted(sizes)

    asyncio.run(story())


def test_a_stream_that_was_cut_goes_on_and_a_new_daemon_is_a_loss(tmp_path: Path) -> None:
    async def story() -> None:
        daemon, socket = SmallDaemon(), tmp_path / "d.sock"
        async with contextlib.AsyncExitStack() as rest:
            async with contextlib.AsyncExitStack() as first:
                await first.enter_async_context(serving(daemon, socket))
                (heard,) = await rest.enter_async_context(followers(socket, 1))
                await daemon.tell("app.x", b"1")
                await until(lambda: len(heard) == 1)
            await daemon.tell("app.x", b"2")
            async with serving(daemon, socket):
                await until(lambda: len(heard) == 2)
            async with serving(SmallDaemon("another"), socket):
                await until(lambda: len(heard) == 3)
            assert [b"1", b"2", "epoch"] == [event if isinstance(event, str) else event.data for event in heard]

    asyncio.run(story())
