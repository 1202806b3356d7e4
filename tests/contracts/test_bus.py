"""What every way between gateways promises: one process, the daemon's Watch stream, Redis.

A fleet is some gateways' receivers, and a way for each to publish; what is built on that, questions to all gateways
(`flx_api.events.survey`), is held here too. What a carrier does when it fails is held in
events/test_redis_bus.py, and below for the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import pytest
from tests.events.test_redis_bus import until
from tests.redis_server import running as redis
from tests.small_daemon import SmallDaemon, serving

from flx_api._core import Hub
from flx_api.events.bus import Delivery
from flx_api.events.daemon_bus import DaemonBus
from flx_api.events.ephemeral_log import EphemeralEvent, EphemeralLog
from flx_api.events.follower import Follower
from flx_api.events.redis_bus import RedisBus
from flx_api.events.survey import Survey
from flx_api.models.connection import GatewayProcess
from flx_api.models.event import SURVEY_EVENTS
from flx_api.observability.metrics import Metrics
from flx_api.upstream.channel import Upstream
from flx_api.upstream.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from flx_api.events.survey import Answerer

TENANTS = ("a", "b")


class Way(Protocol):
    """Publishes as one gateway."""

    async def publish(self, tenant: str, topic: str, data: bytes) -> None: ...


class Fleet:
    """Gateways, each with a way to publish, its receiver and all that it heard."""

    def __init__(self, ways: list[Way], receivers: list[Ear]) -> None:
        self.ways = ways
        self.receivers = receivers
        self.heard = [receiver.heard for receiver in receivers]


class Ear(Delivery):
    """A receiver that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[EphemeralEvent | str] = []
        super().__init__(self.heard.extend, self.heard.append)


class Listener:
    """Who is told of a hub's news; not the subject here."""

    def news(self) -> None: ...

    def gap(self, reason: str) -> None: ...


@contextlib.asynccontextmanager
async def in_one_process(_: Path) -> AsyncIterator[Fleet]:
    ears, log = [Ear(), Ear()], EphemeralLog("e", lambda: 1)

    class Way:
        async def publish(self, tenant: str, topic: str, data: bytes) -> None:
            log.append(tenant, topic, data)
            for ear in ears:
                ear.hear(log.after(log.seq - 1, 1, 1 << 20))

    yield Fleet([Way(), Way()], ears)


@contextlib.asynccontextmanager
async def followers(socket: Path, count: int = 2) -> AsyncIterator[Fleet]:
    """Followers of the daemon at a socket."""
    ears = [Ear() for _ in range(count)]
    upstreams = [Upstream(Endpoint(path=str(socket)), Metrics(), jitter=lambda: 0.0) for _ in ears]
    made = [
        Follower(upstream, Hub("local"), Listener(), Metrics(), receiver=ear)
        for upstream, ear in zip(upstreams, ears, strict=True)
    ]
    try:
        for upstream, follower in zip(upstreams, made, strict=True):
            upstream.start()
            follower.start()
        await until(lambda: not any(follower.reason for follower in made))
        yield Fleet([DaemonBus(upstream) for upstream in upstreams], ears)
    finally:
        for follower in made:
            await follower.close()
        for upstream in upstreams:
            await upstream.close()


@contextlib.asynccontextmanager
async def by_the_daemon(folder: Path) -> AsyncIterator[Fleet]:
    async with serving(SmallDaemon(), folder / "d.sock"), followers(folder / "d.sock") as fleet:
        yield fleet


@contextlib.asynccontextmanager
async def by_redis(folder: Path) -> AsyncIterator[Fleet]:
    ears = [Ear(), Ear()]
    with redis(folder) as server:
        buses = [RedisBus(server.url, ear, lambda: 1) for ear in ears]
        for bus in buses:
            bus.start()
        try:
            await until(lambda: not any(bus.reason for bus in buses))
            yield Fleet(list(buses), ears)
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


class Question(msgspec.Struct):
    """What all are asked."""

    text: str


@contextlib.asynccontextmanager
async def surveying(gateways: Fleet) -> AsyncIterator[list[Survey]]:
    """A survey for each gateway, that know of one another."""

    def answerer(id_: str) -> Answerer:
        return lambda tenant, body: [id_, tenant, msgspec.json.decode(body, type=Question).text]

    surveys = []
    for number, (way, ear) in enumerate(zip(gateways.ways, gateways.receivers, strict=True)):
        me = GatewayProcess(f"0000000{number}", "host", number)
        survey = Survey(way, me, {"ask": answerer(me.id)})
        ear.private[SURVEY_EVENTS] = survey
        survey.start()
        surveys.append(survey)
    try:
        await until(lambda: all(survey.members.is_settled(time.monotonic()) for survey in surveys))
        yield surveys
    finally:
        for survey in surveys:
            await survey.close()


def test_a_question_is_answered_by_every_gateway_and_no_client_hears_it(
    fleet: AbstractAsyncContextManager[Fleet],
) -> None:
    async def story() -> None:
        async with fleet as gateways, surveying(gateways) as surveys:
            found = await asyncio.gather(*(surveys[n % 2].ask("ask", f"t{n}", Question("x" * n)) for n in range(20)))
            for number, answers in enumerate(found):
                expected = {one.me.id: [one.me.id, f"t{number}", "x" * number] for one in surveys}
                assert expected == {id_: msgspec.json.decode(part) for id_, part in answers.by_gateway.items()}
                assert ((), True) == (answers.silent, answers.is_whole)
            assert [[], []] == gateways.heard

    asyncio.run(story())


def test_a_gateway_that_is_deaf_is_named_and_one_that_has_left_is_not(
    fleet: AbstractAsyncContextManager[Fleet],
) -> None:
    async def story() -> None:
        async with fleet as gateways, surveying(gateways) as surveys:
            first, second = surveys
            del gateways.receivers[1].private[SURVEY_EVENTS]
            found = await first.ask("ask", "t", Question("x"))
            assert ([first.me.id], (second.me,), False) == (list(found.by_gateway), found.silent, found.is_whole)
            await second.close()
            await until(lambda: not first.members.others)
            found = await first.ask("ask", "t", Question("x"))
            assert ([first.me.id], (), True) == (list(found.by_gateway), found.silent, found.is_whole)

    asyncio.run(story())


def test_a_stream_that_was_cut_goes_on_and_a_new_daemon_is_a_loss(tmp_path: Path) -> None:
    async def story() -> None:
        daemon, socket = SmallDaemon(), tmp_path / "d.sock"
        async with contextlib.AsyncExitStack() as rest:
            async with contextlib.AsyncExitStack() as first:
                await first.enter_async_context(serving(daemon, socket))
                (heard,) = (await rest.enter_async_context(followers(socket, 1))).heard
                await daemon.tell("app.x", b"1")
                await until(lambda: len(heard) == 1)
            await daemon.tell("app.x", b"2")
            async with serving(daemon, socket):
                await until(lambda: len(heard) == 2)
            async with serving(SmallDaemon("another"), socket):
                await until(lambda: len(heard) == 3)
            assert [b"1", b"2", "epoch"] == [event if isinstance(event, str) else event.data for event in heard]

    asyncio.run(story())
