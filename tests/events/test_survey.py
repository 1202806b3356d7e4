"""Questions between gateways over a bus that is a list; real carriers are in contracts/test_bus.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.events.test_redis_bus import until

from flx_api.errors import FlxError, Unavailable, ValidationFailed
from flx_api.events import survey as module
from flx_api.events.bus import Delivery
from flx_api.events.ephemeral_log import EphemeralEvent
from flx_api.events.survey import ANSWER_S, MAX_OPEN, Survey
from flx_api.models.connection import GatewayProcess
from flx_api.models.event import SURVEY_EVENTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Word(msgspec.Struct):
    """What is asked."""

    text: str


class Bus:
    """Brings everything to everybody at once, but for those who are cut off."""

    def __init__(self) -> None:
        self.receivers: dict[str, Delivery] = {}
        self.cut: set[str] = set()
        self.is_away = False
        self.said: list[Any] = []

    async def publish(self, tenant: str, topic: str, data: bytes) -> None:
        if self.is_away:
            raise Unavailable(code="bus_unavailable")
        self.said.append(msgspec.json.decode(data))
        for id_, receiver in self.receivers.items():
            if id_ not in self.cut:
                receiver.hear([EphemeralEvent(tenant, topic, 1, data)])


class Gateway:
    """A gateway that has something to say about itself."""

    def __init__(self, bus: Bus, id_: str, clock: Callable[[], float]) -> None:
        self.told: list[str] = []
        self.process = GatewayProcess(id_, f"host-{id_}", 7)
        self.survey = Survey(bus, self.process, {"greet": self.greet, "note": self.note, "refuse": self.refuse}, clock)
        self.delivery = Delivery(lambda *_: None, lambda _: None)
        self.delivery.private[SURVEY_EVENTS] = self.survey
        bus.receivers[id_] = self.delivery

    def greet(self, tenant: str, body: msgspec.Raw) -> str:
        return f"{self.process.id} {tenant} {msgspec.json.decode(body, type=Word).text}"

    def note(self, tenant: str, body: msgspec.Raw) -> None:
        self.told.append(f"{tenant} {msgspec.json.decode(body, type=Word).text}")

    def refuse(self, tenant: str, body: msgspec.Raw) -> None:
        raise ValidationFailed.field("x", f"{tenant} {bytes(body)!r}")


class Fleet:
    """Gateways on one bus, whose clock stands."""

    def __init__(self, *ids: str) -> None:
        self.bus = Bus()
        self.now_s = 0.0
        self.gateways = [Gateway(self.bus, id_, lambda: self.now_s) for id_ in ids]


def run(story: Callable[[Fleet], Awaitable[None]], *ids: str) -> None:
    async def told() -> None:
        fleet = Fleet(*ids)
        for gateway in fleet.gateways:
            gateway.survey.start()
        await until(lambda: all(len(one.survey.members.others) == len(ids) - 1 for one in fleet.gateways))
        # Signs of life have been heard for some seconds.
        for fleet.now_s in (2.0, 4.0, 6.0):
            for gateway in fleet.gateways:
                await gateway.survey._say("here")
        await story(fleet)
        for gateway in fleet.gateways:
            await gateway.survey.close()

    asyncio.run(told())


def test_all_are_asked_and_answer_of_themselves() -> None:
    async def story(fleet: Fleet) -> None:
        first = fleet.gateways[0]
        one, two = await asyncio.gather(
            first.survey.ask("greet", "t", Word("hello")), first.survey.ask("greet", "u", Word("bye"))
        )
        assert {"a": b'"a t hello"', "b": b'"b t hello"', "c": b'"c t hello"'} == one.by_gateway
        assert {"a": b'"a u bye"', "b": b'"b u bye"', "c": b'"c u bye"'} == two.by_gateway
        assert ((), True) == (one.silent, one.is_whole)

    run(story, "a", "b", "c")


def test_who_is_alone_is_whole_by_itself() -> None:
    async def story(fleet: Fleet) -> None:
        found = await fleet.gateways[0].survey.ask("greet", "t", Word("x"))
        assert (["a"], (), True) == (list(found.by_gateway), found.silent, found.is_whole)

    run(story, "a")


def test_who_does_not_answer_in_time_is_named() -> None:
    async def story(fleet: Fleet) -> None:
        first, second, third = fleet.gateways
        fleet.bus.cut = {"b"}
        began_s = asyncio.get_running_loop().time()
        found = await first.survey.ask("greet", "t", Word("x"))
        took_s = asyncio.get_running_loop().time() - began_s
        assert ({"a", "c"}, (second.process,), False) == (set(found.by_gateway), found.silent, found.is_whole)
        assert ANSWER_S * 0.9 <= took_s < ANSWER_S * 4
        fleet.bus.cut = set()
        # One that stops says so, and nobody waits for it.
        await third.survey.close()
        found = await first.survey.ask("greet", "t", Word("x"))
        assert ({"a", "b"}, (), True) == (set(found.by_gateway), found.silent, found.is_whole)

    run(story, "a", "b", "c")


def test_what_the_bus_does_not_bring_back_is_not_whole() -> None:
    async def story(fleet: Fleet) -> None:
        fleet.bus.is_away = True
        found = await fleet.gateways[0].survey.ask("greet", "t", Word("x"))
        assert ({"a"}, False) == (set(found.by_gateway), found.is_whole)
        assert (fleet.gateways[1].process,) == found.silent
        fleet.bus.is_away = False
        fleet.bus.cut = {"a"}
        assert not (await fleet.gateways[0].survey.ask("greet", "t", Word("x"))).is_whole

    run(story, "a", "b")


def test_who_may_not_know_all_waits_for_those_it_does_not_know() -> None:
    async def story(fleet: Fleet) -> None:
        first, second = fleet.gateways
        # Something was lost: the other may be one of which nothing was heard.
        first.delivery.lose("bus_restarted")
        first.survey.members.leave("b")
        found = await first.survey.ask("greet", "t", Word("x"))
        assert ({"a", "b"}, True) == (set(found.by_gateway), found.is_whole)
        assert "b" in first.survey.members.others
        assert second.process == first.survey.members.others["b"]

    run(story, "a", "b")


def test_a_refusal_of_its_own_is_raised_and_one_of_another_is_silence() -> None:
    async def story(fleet: Fleet) -> None:
        first, second = fleet.gateways
        with pytest.raises(FlxError):
            await first.survey.ask("refuse", "t", Word("x"))
        first.survey._answerers = {"refuse": lambda *_: 1, "unknown": lambda *_: 1}
        for command in ("refuse", "unknown"):
            found = await first.survey.ask(command, "t", Word("x"))
            assert (second.process,) == found.silent

    run(story, "a", "b")


def test_questions_under_way_are_bounded() -> None:
    async def story(fleet: Fleet) -> None:
        first = fleet.gateways[0]
        fleet.bus.cut = {"b"}
        asked = [asyncio.create_task(first.survey.ask("greet", "t", Word("x"))) for _ in range(MAX_OPEN)]
        await until(lambda: len(first.survey._open) == MAX_OPEN)
        with pytest.raises(Unavailable) as refused:
            await first.survey.ask("greet", "t", Word("x"))
        assert "overloaded" == refused.value.code
        await asyncio.gather(*asked)
        assert {} == first.survey._open

    run(story, "a", "b")


def test_what_is_told_waits_for_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)

    async def story(fleet: Fleet) -> None:
        first, second = fleet.gateways
        fleet.bus.is_away = True
        first.survey.tell("note", "t", Word("1"))
        first.survey.tell("note", "t", Word("2"))
        await asyncio.sleep(0.05)
        assert [] == second.told
        fleet.bus.is_away = False
        await until(lambda: ["t 1", "t 2"] == second.told)
        assert [] == first.told

    run(story, "a", "b")


def test_what_a_later_version_says_is_left_out() -> None:
    async def story(fleet: Fleet) -> None:
        first = fleet.gateways[0]
        for data in (b"{", b"[1]", b'[{"id":"z"},"here"]'):
            await fleet.bus.publish("", SURVEY_EVENTS, b'"x"')
            first.delivery.hear([EphemeralEvent("", SURVEY_EVENTS, 1, data)])
        later = b'[{"id":"z","host":"h","pid":1,"more":1},"vote",false,"",0,"","",null,"more"]'
        first.delivery.hear([EphemeralEvent("", SURVEY_EVENTS, 1, later)])
        assert {"b", "z"} == set(first.survey.members.others)

    run(story, "a", "b")


def test_many_that_are_new_ask_once() -> None:
    async def story(fleet: Fleet) -> None:
        # Each asks at its beginning, and nobody because it was asked.
        assert len(fleet.gateways) == sum(said[1] == "here" and bool(said[2]) for said in fleet.bus.said)

    run(story, *"abcdef")
