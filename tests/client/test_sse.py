"""The client over event streams, against a server of the test's own. Real gateways are in e2e/test_clients.py."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.client.scripted_server import Script, event_frame
from tests.client.scripted_server import answer as socket_answer
from tests.client.scripted_server import serving as serving_sockets
from tests.client.scripted_stream import Answer, StreamScript, serving, stays, tells
from tests.gateway_process import token

from flx_api.client import (
    Backoff,
    Ended,
    EventsSkipped,
    EventStream,
    Gap,
    Refused,
    TokenEnded,
    Unreachable,
)
from flx_api.client.connection import Closed
from flx_api.client.event_stream import StreamEvent
from flx_api.client.sse import message_of
from flx_api.models.message import Error, Event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.client.scripted_stream import Stream


def at_once() -> Backoff:
    return Backoff(0, 0)


def gap(reason: str, **more: Any) -> str:
    return json.dumps({"type": "gap", "t": "*", "reason": reason, "epoch": "e", **more})


def run(
    story: Callable[[StreamScript], Awaitable[None]], *parts: Callable[[Stream], Awaitable[None]] | Answer
) -> StreamScript:
    script = StreamScript(*parts)

    async def told() -> None:
        async with serving(script):
            await story(script)

    asyncio.run(told())
    return script


def test_it_goes_on_from_where_it_was() -> None:
    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t", "u"], token="a", backoff=at_once(), transport="sse") as events:
            found = []
            with pytest.raises(Ended) as caught:  # noqa: PT012 - whatever comes before does not matter
                while True:
                    found.append(((await events.receive()).seq, events.positions["t"]))
            assert [(1, "1"), (2, "2")] == found
            assert (1008, "because") == (caught.value.code, str(caught.value)[-8:-1])

    script = run(
        story,
        # Without a word, then with one.
        tells(event_frame("t", 1, pos="1")),
        tells(code=1012),
        tells(event_frame("t", 1, pos="1"), event_frame("t", 2, 1, "2"), code=1008),
    )
    assert [(["t", "u"], None), (["t", "u"], "1"), (["t", "u"], "1")] == script.asked
    assert ["Bearer a"] * 3 == script.bearers


def test_a_stream_that_ends_before_its_first_event_begins_where_it_began() -> None:
    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t", "u"], backoff=at_once(), transport="sse", start="7") as events:
            assert 1 == (await events.receive()).seq

    async def part(stream: Stream) -> None:
        await stream.write("event: event\ndata: {")

    assert ["7", "7"] == [last for _, last in run(story, part, stays(event_frame("t", 1))).asked]


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_pieces_of_any_size_are_put_together(cut: int) -> None:
    frames = [event_frame("t", number, number - 1, str(number)) for number in range(1, 4)]

    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t"], transport="sse") as events:
            assert [1, 2, 3] == [(await events.receive()).seq for _ in frames]

    async def part(stream: Stream) -> None:
        raw = "".join(f": heartbeat\n\nid: x\r\nevent: event\r\ndata: {frame}\r\n\r\n" for frame in frames).encode()
        for start in range(0, len(raw), cut):
            await stream.write(raw[start : start + cut])
            await asyncio.sleep(0)
        await stream.gone()

    run(story, part)


def test_gaps_are_told_and_a_new_chain_begins_behind_them() -> None:
    gaps: list[Gap] = []

    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t"], on_gap=gaps.append, transport="sse") as events:
            assert [1, 9, 12] == [(await events.receive()).seq for _ in range(3)]
        async with EventStream(script.url, ["t"], backoff=at_once(), transport="sse") as events:
            with pytest.raises(EventsSkipped, match=r"^events were skipped \(epoch\)$"):
                await events.receive()
            # The gap said where it goes on.
            assert {"t": "p9"} == events.positions
            assert 3 == (await events.receive()).seq

    script = run(
        story,
        stays(
            event_frame("t", 1, pos="1"),
            gap("evicted", t="t", after=1, before=8, pos="8"),
            event_frame("t", 9, 8, "9"),
            event_frame("t", 12, 11, "12"),
        ),
        tells(gap("epoch", pos="p9")),
        stays(event_frame("t", 3, 2)),
    )
    assert [Gap("evicted", "t", 1, 8), Gap("missing", "t", 9, 12)] == gaps
    assert "p9" == script.asked[-1][1]


def test_a_new_token_makes_another_stream_before_the_old_one_ends() -> None:
    """Nothing can be offered on a stream; a token that is the same is used to its end."""
    short, long = token(ttl_s=1.5), token(ttl_s=3600)

    async def renewed(script: StreamScript) -> None:
        given = iter([short, long])
        async with EventStream(script.url, ["t"], token=lambda: next(given), transport="sse") as events:
            assert [1, 2] == [(await events.receive()).seq for _ in range(2)]

    script = run(renewed, stays(event_frame("t", 1, pos="1")), stays(event_frame("t", 2, 1)))
    assert [f"Bearer {short}", f"Bearer {long}"] == script.bearers
    assert [None, "1"] == [last for _, last in script.asked]

    async def the_same(script: StreamScript) -> None:
        given = iter([short, short, long])
        async with EventStream(script.url, ["t"], token=lambda: next(given), transport="sse") as events:
            assert 1 == (await events.receive()).seq

    async def ends(stream: Stream) -> None:
        await asyncio.sleep(1.6)
        await stream.tell('{"type":"closed","code":4401,"reason":"the token has ended"}')

    short = token(ttl_s=1.5)
    script = run(the_same, ends, stays(event_frame("t", 1)))
    assert [f"Bearer {short}", f"Bearer {long}"] == script.bearers


def test_a_service_that_says_that_the_token_ends_is_believed() -> None:
    long, longer = token(ttl_s=3600), token(ttl_s=7200)

    async def story(script: StreamScript) -> None:
        given = iter([long, longer])
        async with EventStream(script.url, ["t"], token=lambda: next(given), transport="sse") as events:
            assert 1 == (await events.receive()).seq

    script = run(story, stays('{"type":"expiring","in_s":60}'), stays(event_frame("t", 1)))
    assert [f"Bearer {long}", f"Bearer {longer}"] == script.bearers


def test_a_service_that_stops_is_heard_to_the_end_and_resumed_elsewhere() -> None:
    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t"], backoff=at_once(), transport="sse") as events:
            assert [1, 2] == [(await events.receive()).seq for _ in range(2)]

    notice = '{"type":"reconnect","in_ms":50}'
    script = run(
        story, tells(notice, event_frame("t", 1, pos="1"), code=1012), Answer(503), stays(event_frame("t", 2, 1))
    )
    assert [None, "1"] == [last for _, last in script.asked]


def test_a_token_without_a_way_to_a_new_one_ends_it() -> None:
    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t"], token="a", transport="sse") as events:
            with pytest.raises(TokenEnded):
                await events.receive()

    run(story, tells(code=4401))


def test_a_refused_token_is_replaced_once() -> None:
    body = b'{"code":"invalid_token","detail":"The bearer token is not acceptable"}'

    async def story(script: StreamScript) -> None:
        events = EventStream(script.url, ["t"], token=lambda: "b", backoff=at_once(), transport="sse")
        async with events:
            assert 1 == (await events.receive()).seq
            with pytest.raises(Refused) as caught:
                await events.receive()
            assert (401, "invalid_token") == (caught.value.status, caught.value.code)

    script = run(story, Answer(401, body), tells(event_frame("t", 1)), Answer(401, body), Answer(401, body))
    assert [] == script.parts


def test_not_now_is_tried_again_after_the_time_that_was_asked_for() -> None:
    pauses: list[float] = []

    class Noted(Backoff):
        def pause_s(self, asked_s: float = 0.0) -> float:
            pauses.append(super().pause_s(asked_s))
            return 0.0

    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t"], backoff=Noted(1, 8, lambda: 0.5), transport="sse") as events:
            assert [1, 2] == [(await events.receive()).seq for _ in range(2)]

    run(
        story,
        Answer(503, headers=(("Retry-After", "7"),)),
        Answer(429),
        # What a proxy says that has nothing to do with it is no stream.
        Answer(502, b"<html>"),
        # Once it was heard, the next failure is a first one.
        tells(event_frame("t", 1)),
        stays(event_frame("t", 2, 1)),
    )
    assert [7.5, 1.0, 2.0, 0.5] == pauses


def test_a_refusal_is_not_tried_again() -> None:
    async def story(script: StreamScript) -> None:
        for status, code in ((403, "forbidden"), (200, "")):
            async with EventStream(script.url, ["t"], transport="sse") as events:
                with pytest.raises(Refused) as caught:
                    await events.receive()
                assert (status, code) == (caught.value.status, caught.value.code)

    run(story, Answer(403, b'{"code":"forbidden"}'), Answer(200, b"<html>"))


def test_it_gives_up_after_so_many_failures_in_a_row() -> None:
    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t"], attempts=2, backoff=at_once(), transport="sse") as events:
            await events.receive()
            with pytest.raises(Unreachable):
                await events.receive()

    assert [] == run(story, Answer(502), tells(event_frame("t", 1)), Answer(502), Answer(502)).parts


def test_a_silence_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.client.sse._SILENCE_S", 1.0)

    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t"], backoff=at_once(), transport="sse") as events:
            assert [1, 2] == [(await events.receive()).seq for _ in range(2)]

    run(story, stays(event_frame("t", 1, pos="1")), stays(event_frame("t", 2, 1)))


def test_a_wait_may_be_cancelled_and_loses_nothing() -> None:
    go_on = asyncio.Event()

    async def part(stream: Stream) -> None:
        await stream.tell(event_frame("t", 1))
        await go_on.wait()
        await stream.tell(event_frame("t", 2, 1))
        await stream.gone()

    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t"], transport="sse") as events:
            assert 1 == (await events.receive()).seq
            waiting = asyncio.create_task(events.receive())
            for _ in range(3):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            go_on.set()
            assert 2 == (await events.receive()).seq

    assert 1 == len(run(story, part).asked)


def test_another_topic_is_another_stream() -> None:
    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t"], transport="sse") as events:
            assert 1 == (await events.receive()).seq
            with pytest.raises(ValueError, match=r"^start: "):
                events.subscribe("u", "9")
            events.subscribe("u")
            assert [2, 1] == [(await events.receive()).seq for _ in range(2)]
            events.unsubscribe("t")
            assert 2 == (await events.receive()).seq
            events.unsubscribe("u")
            with pytest.raises(ValueError, match=r"^topics: "):
                await events.receive()

    script = run(
        story,
        stays(event_frame("t", 1, pos="1")),
        stays(event_frame("t", 2, 1, "2"), event_frame("u", 1, pos="3")),
        stays(event_frame("u", 2, 1, "4")),
    )
    assert [(["t"], None), (["t", "u"], "1"), (["u"], "3")] == script.asked


def test_topics_that_begin_at_different_positions_are_refused() -> None:
    for start in ({"a": "1"}, {"a": "1", "b": "2"}):
        with pytest.raises(ValueError, match=r"^start: "):
            EventStream("http://x", ["a", "b"], start=start, transport="sse")
    EventStream("http://x", ["a", "b"], start={"a": "1", "b": "1"}, transport="sse")
    with pytest.raises(ValueError, match=r"^transport: "):
        EventStream("http://x", ["a"], transport="smoke")  # type: ignore[arg-type]


# --- where no WebSocket gets through ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 403, 404, 426, 501])
def test_where_somebody_else_answers_a_stream_is_tried(status: int) -> None:
    async def story(script: StreamScript) -> None:
        script.to_sockets = Answer(status, b"<html>")
        async with EventStream(script.url, ["t"], backoff=at_once(), start="5") as events:
            assert [1, 2] == [(await events.receive()).seq for _ in range(2)]

    script = run(story, tells(event_frame("t", 1, pos="1")), stays(event_frame("t", 2, 1)))
    # Once is enough: it goes on with streams.
    assert (1, ["5", "1"]) == (script.sockets, [last for _, last in script.asked])


def test_what_the_service_says_about_a_websocket_is_believed() -> None:
    async def story(script: StreamScript) -> None:
        script.to_sockets = Answer(409, b'{"code":"client_id_taken"}')
        for transport in ("auto", "websocket"):
            async with EventStream(script.url, ["t"], transport=transport) as events:
                with pytest.raises(Refused, match="client_id_taken"):
                    await events.receive()
        script.to_sockets = Answer(404, b"<html>")
        async with EventStream(script.url, ["t"], transport="websocket") as events:
            with pytest.raises(Refused) as caught:
                await events.receive()
            assert 404 == caught.value.status
        # A stream that begins at one position cannot stand in.
        async with EventStream(script.url, ["t", "u"], start={"t": "1"}) as events:
            with pytest.raises(Refused) as caught:
                await events.receive()
            assert 404 == caught.value.status

    assert [] == run(story).asked


def test_where_neither_gets_through_the_first_refusal_counts() -> None:
    async def story() -> None:
        async with serving_sockets(Script(socket_answer(404, b"<html>"))) as script:
            async with EventStream(script.url, ["t"]) as events:
                with pytest.raises(Refused) as caught:
                    await events.receive()
            assert 404 == caught.value.status

    asyncio.run(story())


def test_what_the_service_says_about_the_stream_counts() -> None:
    async def story(script: StreamScript) -> None:
        async with EventStream(script.url, ["t"]) as events:
            with pytest.raises(Refused, match="forbidden"):
                await events.receive()

    run(story, Answer(403, b'{"code":"forbidden"}'))


def test_events_of_a_stream_are_messages_of_a_websocket() -> None:
    assert message_of(StreamEvent("event", event_frame("t", 1))) == Event("t", 1, 0, "e", 0, "p", {})
    found = message_of(StreamEvent("gap", gap("evicted", href="/v1/x")))
    assert Error("gap", "", "evicted", "e", None, None, None, None, "/v1/x") == found
    assert message_of(StreamEvent("message", "{}")) is None
    assert message_of(StreamEvent("of a later version", "x")) is None
    with pytest.raises(Closed) as ended:
        message_of(StreamEvent("closed", '{"code":1012,"reason":"x"}'))
    assert (1012, "x") == (ended.value.code, ended.value.reason)
