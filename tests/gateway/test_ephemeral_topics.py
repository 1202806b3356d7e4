"""Ephemeral events where gateways have a bus: answered by the gateway, and only when the bus has them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from flx_api._core import Principal
from flx_api.errors import FlxError, Unavailable
from flx_api.gateway.ephemeral_topics import EphemeralTopics
from flx_api.models.topic_rules import TopicRule

ANNA = Principal(subject="anna", tenant="t1", roles=("developer",))


class Bus:
    """Keeps what it is given, or is away."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, bytes]] = []
        self.is_away = False

    async def publish(self, tenant: str, topic: str, data: bytes) -> None:
        if self.is_away:
            raise Unavailable(code="bus_unavailable")
        self.events.append((tenant, topic, data))


def publish(bus: Bus, principal: Principal | None = ANNA, **args: Any) -> Any:
    topics = EphemeralTopics(bus, [TopicRule("app.few", publish=("chief",))])
    body = msgspec.json.encode({"topic": "app.a", "ephemeral": True, **args})
    assert topics.has(body)
    return msgspec.json.decode(asyncio.run(topics.publish(principal, body)))


def test_it_is_told_to_the_bus_for_the_tenant() -> None:
    bus = Bus()
    assert 1 == publish(bus, data={"x": 1})["count"]
    publish(bus, None)
    assert [("t1", "app.a", b'{"x":1}'), ("default", "app.a", b"null")] == bus.events


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({"topic": "system_events.x"}, "validation_failed"),
        ({"topic": "app"}, "validation_failed"),
        ({"data": "x" * 65_536}, "validation_failed"),
        ({"count": 3}, "validation_failed"),
        ({"topic": "app.few"}, "forbidden"),
    ],
)
def test_what_may_not_be_published_is_not(args: dict[str, Any], code: str) -> None:
    bus = Bus()
    with pytest.raises(FlxError) as refused:
        publish(bus, **args)
    assert (code, []) == (refused.value.code, bus.events)


def test_a_bus_that_is_away_is_said_to_be() -> None:
    bus = Bus()
    bus.is_away = True
    with pytest.raises(Unavailable):
        publish(bus)


@pytest.mark.parametrize("body", [b"{}", b'{"ephemeral":false}', b'{"ephemeral":1}', b"[]", b"{"])
def test_the_rest_is_the_daemons(body: bytes) -> None:
    assert not EphemeralTopics.has(body)
