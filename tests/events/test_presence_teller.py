"""Presence at one gateway: the hub's connections, a bus that is a list, and who may ask."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from flx_api._core import Hub, Principal
from flx_api.errors import FlxError, Unavailable
from flx_api.events.bus import Delivery
from flx_api.events.ephemeral_log import EphemeralEvent
from flx_api.events.presence_teller import PresenceTeller
from flx_api.models.arguments import arguments
from flx_api.models.event import PRESENCE_EVENTS
from flx_api.models.presence import PresenceListArgs
from flx_api.models.topic_rules import TopicRule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RULES = (
    TopicRule("app.few", subscribe=("chief",), presence=True),
    TopicRule("app.room.*", presence=True),
    TopicRule("app.*"),
)


class Bus:
    """Brings everything to everybody at once, or is away."""

    def __init__(self) -> None:
        self.receivers: list[Delivery] = []
        self.is_away = False

    async def publish(self, tenant: str, topic: str, data: bytes) -> None:
        if self.is_away:
            raise Unavailable(code="bus_unavailable")
        for receiver in self.receivers:
            receiver.hear([EphemeralEvent(tenant, topic, 1, data)])


class Gateway:
    """A hub and its presence."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.hub = Hub(name)
        self.told: list[tuple[str, Any]] = []
        self.presence = PresenceTeller(RULES, self.hub, bus, self.tell, name)
        delivery = Delivery(self.tell_all, lambda _: None)
        delivery.private[PRESENCE_EVENTS] = self.presence
        bus.receivers.append(delivery)

    def tell(self, tenant: str, topic: str, ts_us: int, data: bytes) -> None:
        assert ts_us > 1
        self.told.append((f"{tenant} {topic}", msgspec.json.decode(data)))

    def tell_all(self, events: Sequence[EphemeralEvent]) -> None:
        for event in events:
            self.tell(*event)

    @property
    def joined(self) -> list[str]:
        return sorted(subject for _, data in self.told for subject in data["joined"])

    def connect(self, subject: str, *topics: str) -> int:
        conn = self.hub.connect("default", subject, ["app"], "plain")
        assert conn is not None
        for topic in topics:
            self.hub.subscribe(conn, [topic], None, 1)
        return conn


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110 - what changes belongs to others
            await asyncio.sleep(0.01)


def listed(gateway: Gateway, topic: str, *roles: str, **more: Any) -> Any:
    principal = Principal(subject="x", tenant="default", roles=roles or ("viewer",))
    body = msgspec.json.encode({"topic": topic, **more})
    found = gateway.presence.listed(principal, arguments(PresenceListArgs, body))
    return msgspec.json.decode(msgspec.json.encode(found))


def test_who_comes_and_goes_is_told_at_every_gateway_and_listed() -> None:
    async def story() -> None:
        bus = Bus()
        first, second = Gateway(bus, "a"), Gateway(bus, "b")
        first.presence.start()
        second.presence.start()
        conn = first.connect("ann", "app.room.1", "app.other", "app.room.*")
        second.connect("bert", "app.room.1")
        topic = "default presence.app.room.1"
        await until(lambda: all(gateway.joined == ["ann", "bert"] for gateway in (first, second)))
        for gateway in (first, second):
            assert {topic} == {told for told, _ in gateway.told}
            found = {"topic": "app.room.1", "members": ["ann", "bert"], "count": 2, "whole": True}
            await until(lambda: listed(gateway, "app.room.1") == found)  # noqa: B023 - it is waited for here
        assert ["ann"] == listed(second, "app.room.1", limit=1)["members"]
        first.hub.disconnect(conn)
        await until(lambda: second.told[-1] == (topic, {"joined": [], "left": ["ann"], "count": 1}))
        await second.presence.close()
        await until(lambda: first.told[-1] == (topic, {"joined": [], "left": ["bert"], "count": 0}))
        await first.presence.close()

    asyncio.run(story())


def test_a_bus_that_was_away_brings_it_later() -> None:
    async def story() -> None:
        bus = Bus()
        first, second = Gateway(bus, "a"), Gateway(bus, "b")
        first.presence.start()
        second.presence.start()
        await until(lambda: bool(listed(second, "app.room.1")["whole"]))
        bus.is_away = True
        first.connect("ann", "app.room.1")
        await until(lambda: listed(first, "app.room.1")["count"] == 1)
        assert 0 == listed(second, "app.room.1")["count"]
        bus.is_away = False
        await until(lambda: listed(second, "app.room.1")["count"] == 1)
        await first.presence.close()
        await second.presence.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("topic", "roles", "code"),
    [
        ("app.other", ("admin",), "validation_failed"),
        ("app.room.*", ("admin",), "validation_failed"),
        ("user.ann", ("admin",), "validation_failed"),
        ("app.few", ("viewer",), "forbidden"),
        ("app.room.1", ("nobody",), "forbidden"),
    ],
)
def test_who_may_not_hear_a_topic_may_not_ask(topic: str, roles: tuple[str, ...], code: str) -> None:
    gateway = Gateway(Bus(), "a")
    with pytest.raises(FlxError) as refused:
        listed(gateway, topic, *roles)
    assert code == refused.value.code
    assert 0 == listed(gateway, "app.few", "viewer", "chief")["count"]
