"""Topics of one gateway: what a series holds, and who may publish where."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway_app import built, running
from tests.gateway_process import token

from flx_api._core import Hub, Principal
from flx_api.errors import ValidationFailed
from flx_api.gateway.local_topics import LocalTopics, due

if TYPE_CHECKING:
    import httpx

ANNA = Principal(subject="anna", tenant="t1", roles=("admin",))


class Clock:
    """Moves on by so much whenever it is asked."""

    def __init__(self, step_us: int) -> None:
        self.us = 0
        self._step_us = step_us

    def __call__(self) -> int:
        self.us += self._step_us
        return self.us


def published(step_us: int = 1000, **args: Any) -> tuple[list[tuple[str, int, Any]], Any]:
    """Topic, time and data of all that a client of the tenant hears, and the answer."""
    hub = Hub("here")
    conn = hub.connect("t1", "anna", ["app"], "plain")
    assert conn is not None
    assert hub.subscribe(conn, ["bench.*"], None, 0)[0] is None
    topics = LocalTopics(hub, lambda: None, lambda: 0.0, Clock(step_us))
    body = msgspec.json.encode({"topic": "bench.a", **args})
    assert topics.has(body)
    result = msgspec.json.decode(asyncio.run(topics.publish(ANNA, body)))
    told = []
    while turns := hub.take(0, 1):
        events = [msgspec.json.decode(frame) for _, turn in turns for frame in turn]
        told += [(event["event"], event["ts"], event["data"]) for event in events]
        hub.writable(conn, 0)
    return told, result


def test_one_event_carries_what_was_given() -> None:
    told, result = published(data={"x": 1})
    assert told == [("bench.a", 1000, {"x": 1})]
    assert result == {"count": 1, "took_us": 1000}


@pytest.mark.parametrize("native", [False, True])
def test_a_series_is_stamped_with_when_each_was_due_however_late_it_is(*, native: bool) -> None:
    told, result = published(step_us=7_000, data="d", count=50, per_s=1000, native=native)
    assert [event[2] for event in told] == [{"at": 7_000 + 1000 * n, "n": n, "data": "d"} for n in range(50)]
    assert [event[1] for event in told] == [event[2]["at"] for event in told]
    assert result["count"] == 50


def test_events_go_to_topics_in_turn_and_each_counts_for_itself() -> None:
    told, _ = published(count=5, topics=2)
    assert [(topic, data["n"]) for topic, _, data in told] == [
        ("bench.a.0", 0),
        ("bench.a.1", 0),
        ("bench.a.0", 1),
        ("bench.a.1", 1),
        ("bench.a.0", 2),
    ]


@given(
    st.integers(1, 600),
    st.none() | st.integers(1, 300),
    st.none() | st.floats(1_000, 1e6),
    st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=4),
)
@settings(max_examples=30)
def test_what_is_made_natively_is_what_python_makes(
    count: int, topics: int | None, per_s: float | None, data: Any
) -> None:
    args = {"count": count, "topics": topics, "per_s": per_s, "data": data}
    assert published(native=True, **args) == published(**args)


def test_a_series_goes_on_where_the_topic_is() -> None:
    hub = Hub("here")
    topics = LocalTopics(hub, lambda: None, lambda: 0.0, Clock(1))

    def publish(**args: Any) -> list[int]:
        asyncio.run(topics.publish(ANNA, msgspec.json.encode({"topic": "bench.a", **args})))
        return hub.numbers_of("t1", ["bench.a", "bench.a.0"])

    assert publish() == [1, 0]
    assert publish(count=3, native=True) == [4, 0]
    assert publish(count=2) == [6, 0]
    assert publish(count=2, topics=1) == [6, 2]


@given(st.floats(0.1, 1e6), st.integers(0, 10**9))
def test_nothing_is_published_before_it_is_due_nor_left_out(per_s: float, elapsed_us: int) -> None:
    count = due(elapsed_us, per_s)
    assert (count - 1) / per_s * 1e6 <= elapsed_us * (1 + 1e-9) + 1
    assert count / per_s * 1e6 >= elapsed_us * (1 - 1e-9) - 1


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({"count": 0}, "count"),
        ({"per_s": 5}, "count"),
        ({"native": True}, "count"),
        ({"count": 1, "per_s": 0}, "per_s"),
        ({"count": 1, "topics": 20_001}, "topics"),
        ({"topic": "bench.*"}, "topic"),
        ({"topic": "bench."}, "topic"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_arguments_that_are_not_acceptable_are_named(args: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        published(**args)
    assert field in str(refused.value.errors) + str(refused.value.detail)


def test_the_command_is_answered_by_the_gateway_in_development_only() -> None:
    async def ask(client: httpx.AsyncClient, topic: str, role: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token(roles=(role,))}"}
        return await client.post("/v1/commands/event.publish", json={"topic": topic, "count": 3}, headers=headers)

    async def story() -> None:
        async with running() as gateway:
            answer = await ask(gateway.client, "bench.x", "admin")
            assert (answer.status_code, answer.json()["result"]["count"]) == (200, 3)
            assert (await ask(gateway.client, "bench.x", "viewer")).status_code == 403
            assert gateway.daemon.commands() == []
            await ask(gateway.client, "app.x", "admin")
            assert [frame.command for frame in gateway.daemon.commands()] == ["event.publish"]

    asyncio.run(story())
    assert built(environment="production").dispatcher._publishers == ()
