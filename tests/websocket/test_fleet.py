"""Connections of all gateways: lists against one that has all of them in memory, and the answers of a real gateway."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway_app import running
from tests.gateway_process import token
from tests.websocket.test_standing import connected

from flx_api.errors import FlxError
from flx_api.events.survey import Answers
from flx_api.models.connection import (
    Connection,
    ConnectionListArgs,
    ConnectionSlowestArgs,
    GatewayProcess,
    SlowConnection,
)
from flx_api.models.event import ConnectionEvent
from flx_api.models.listing import encode_cursor
from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame
from flx_api.websocket.fleet import FleetConnections, answerers, place_of

if TYPE_CHECKING:
    from flx_api.events.survey import Answerer

IDS = ("0000000a", "0000000b", "0000000c")
SILENT = (GatewayProcess("0000000d", "h", 1),)


class Standing:
    """The connections of one gateway."""

    def __init__(self, connections: list[Connection], behind: list[int]) -> None:
        self.connections = connections
        self.behind = behind

    def page(self, _tenant: str, subject: str | None, after: tuple[int, int], limit: int) -> list[Connection]:
        mine = [one for one in self.connections if subject in {None, one.subject}]
        return [one for one in sorted(mine, key=order) if order(one) > after][:limit]

    def slowest(self, _tenant: str, limit: int) -> list[SlowConnection]:
        found = [SlowConnection(by, one) for by, one in zip(self.behind, self.connections, strict=True) if by]
        return sorted(found, key=lambda one: -one.behind)[:limit]


class Survey:
    """Asks gateways of this process."""

    def __init__(self, standings: dict[str, Standing]) -> None:
        self.answerers: dict[str, Any] = {id_: answerers(one, id_) for id_, one in standings.items()}  # type: ignore[arg-type]

    async def ask(self, command: str, tenant: str, body: msgspec.Struct) -> Answers:
        raw = msgspec.Raw(msgspec.json.encode(body))
        parts = {id_: mine[command](tenant, raw) for id_, mine in self.answerers.items()}
        return Answers({id_: msgspec.json.encode(part) for id_, part in parts.items()}, SILENT, is_whole=False)


def order(connection: Connection) -> tuple[int, int]:
    """Where it is in the order of its gateway."""
    since_us, _, number = place_of(connection)
    return since_us, number


def made(places: list[tuple[int, int, int]]) -> dict[str, Standing]:
    """Gateways with connections, of which gateway, moment and how far behind are given."""
    found = {id_: Standing([], []) for id_ in IDS}
    for number, (gateway, since_us, behind) in enumerate(places, 1):
        standing = found[IDS[gateway]]
        subject = "anna" if number % 2 else "bert"
        standing.connections.append(Connection(f"{IDS[gateway]}-{number}", "c", subject, "main", since_us, 1))
        standing.behind.append(behind)
    return found


PLACES = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(0, 3)), max_size=20)


@given(PLACES, st.integers(1, 5), st.sampled_from([None, "anna"]))
def test_pages_are_the_whole_in_its_order(places: list[tuple[int, int, int]], limit: int, subject: str | None) -> None:
    standings = made(places)
    fleet: Any = FleetConnections(Survey(standings))  # type: ignore[arg-type]
    every = [one for standing in standings.values() for one in standing.connections if subject in {None, one.subject}]

    async def pages() -> list[Connection]:
        found: list[Connection] = []
        cursor = None
        while True:
            page = await fleet.listed(None, ConnectionListArgs(limit, cursor, subject))
            assert (SILENT, False) == (page.silent, page.whole)
            assert len(page.items) == limit or page.next_cursor is None
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                return found

    assert sorted(every, key=place_of) == asyncio.run(pages())


@given(PLACES, st.integers(1, 5))
def test_the_slowest_of_all_come_first(places: list[tuple[int, int, int]], limit: int) -> None:
    standings = made(places)
    fleet: Any = FleetConnections(Survey(standings))  # type: ignore[arg-type]
    found = asyncio.run(fleet.slowest(None, ConnectionSlowestArgs(limit)))
    every = sorted((by for standing in standings.values() for by in standing.behind if by), reverse=True)
    assert every[:limit] == [one.behind for one in found.items]
    assert (SILENT, False) == (found.silent, found.whole)


@pytest.mark.parametrize(
    "cursor",
    ["", "!", *map(encode_cursor, ("5", "[]", '[1,"a"]', '[-1,"a",1]', '[1,"a",0]', f'[1,"a",{1 << 64}]', "[1,2,3]"))],
)
def test_a_cursor_that_was_not_made_here_is_refused(cursor: str) -> None:
    fleet: Any = FleetConnections(Survey(made([])))  # type: ignore[arg-type]
    with pytest.raises(FlxError) as refused:
        asyncio.run(fleet.listed(None, ConnectionListArgs(cursor=cursor)))
    assert ["cursor"] == [one.field for one in refused.value.errors]


def test_who_is_ended_is_counted_once() -> None:
    """The daemon's journal may have told it before the question comes."""

    async def story() -> None:
        async with running(realtime_port=0) as gateway:
            parts, headers = gateway.parts, {"authorization": f"Bearer {token()}"}
            mine: dict[str, Answerer] = dict(answerers(parts.standing, parts.survey.me.id))
            assert {"connection.list", "connection.slowest", "connection.disconnect"} == set(mine)
            async with (
                connected(gateway, "asgi", token("dora"), "a") as one,
                connected(gateway, "native", token("dora"), "b") as two,
                connected(gateway, "native", token("dora", tenant="other"), "c") as other,
            ):
                # The small daemon's clock stands at the beginning of time, so that this hits nobody.
                seq = await gateway.daemon.publish("connection_events", {"type": "disconnect", "subject": "dora"})
                assert await one.is_open()
                done = {"seq": seq, "at_us": 1 << 62}
                gateway.daemon.answers["connection.disconnect"] = lambda _: ReplyFrame(result=msgspec.json.encode(done))
                event = ConnectionEvent("disconnect", subject="dora")
                assert 2 == parts.standing.disconnect("default", event, 1 << 62)
                answer = await gateway.client.post("/connection.disconnect", json={"subject": "dora"}, headers=headers)
                assert {**done, "ended": 2, "whole": True, "silent": []} == answer.json()["result"]
                for hit in (one, two):
                    assert {"type": "close", "code": 4403} == await hit.hear()
                assert await other.is_open()

    asyncio.run(story())


def test_what_the_daemon_tells_is_passed_on_where_gateways_of_others_share_a_bus() -> None:
    async def story() -> None:
        async with running() as gateway:
            told: list[tuple[str, ConnectionEvent, int]] = []
            gateway.parts.standing.on_disconnect = lambda *event: told.append(event)
            await gateway.daemon.publish("connection_events", {"type": "disconnect", "client_id": "x"}, tenant="t")
            async with asyncio.timeout(10):
                while not told:  # noqa: ASYNC110 - a list, not an event
                    await asyncio.sleep(0.01)
            assert [("t", ConnectionEvent("disconnect", client_id="x"), 1)] == told

    asyncio.run(story())
