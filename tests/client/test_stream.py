"""The shell of the client, against a server of the test's own. Real gateways and cuts are in e2e/test_clients.py."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.client.scripted_server import Script, answer, event_frame, hears, says, serving
from tests.gateway_process import token

from flx_api.client import (
    Backoff,
    Ended,
    EventsSkipped,
    EventStream,
    Gap,
    Refused,
    SubscriptionRefused,
    TokenEnded,
    Unreachable,
)

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection


def at_once() -> Backoff:
    return Backoff(0, 0)


def test_it_goes_on_from_where_it_was() -> None:
    async def story() -> None:
        script = Script(
            says(event_frame("t", 1, pos="1")),
            says(event_frame("t", 1, pos="1"), event_frame("t", 2, 1, "2"), code=1008),
        )
        async with serving(script), EventStream(script.url, ["t"], token="a", backoff=at_once()) as events:
            found = []
            with pytest.raises(Ended) as caught:  # noqa: PT012 - whatever comes before does not matter
                while True:
                    found.append(((await events.receive()).seq, events.positions))
            assert [(1, {"t": "1"}), (2, {"t": "2"})] == found
            assert 1008 == caught.value.code
        assert [{"t": None}, {"t": "1"}] == script.asked
        assert ["Bearer a"] * 2 == script.bearers

    asyncio.run(story())


def test_a_new_token_is_offered_before_the_old_one_ends() -> None:
    """On the connection; where that is refused it is made again, and a token that is the same is used to its end."""

    async def story() -> None:
        short, long = token(ttl_s=1.5), token(ttl_s=3600)
        offered: list[str] = []
        script = Script(hears(offered, '{"type":"refreshed","in_s":3600}', event_frame("t", 1)))
        given = iter([short, long])
        async with serving(script), EventStream(script.url, ["t"], token=lambda: next(given)) as events:
            assert 1 == (await events.receive()).seq
        assert ([long], [f"Bearer {short}"]) == (offered, script.bearers)

        refusal = '{"type":"error","code":"invalid_token","message":"","of":"refresh"}'
        script = Script(hears(offered, refusal), says(event_frame("t", 1)))
        short = token(ttl_s=1.5)
        given = iter([short, long, long])
        async with serving(script), EventStream(script.url, ["t"], token=lambda: next(given)) as events:
            assert 1 == (await events.receive()).seq
        assert [f"Bearer {used}" for used in (short, long)] == script.bearers

        async def ends(connection: ServerConnection) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await connection.recv()
            await connection.close(4401)

        script = Script(ends, says(event_frame("t", 1)))
        short = token(ttl_s=1.5)
        given = iter([short, short, long])
        async with serving(script), EventStream(script.url, ["t"], token=lambda: next(given)) as events:
            assert 1 == (await events.receive()).seq
        assert [f"Bearer {used}" for used in (short, long)] == script.bearers

    asyncio.run(story())


def test_a_token_is_offered_when_the_service_says_that_the_old_one_ends() -> None:
    async def story() -> None:
        offered: list[str] = []
        after = hears(offered, '{"type":"refreshed","in_s":3600}', event_frame("t", 1))

        async def warns(connection: ServerConnection) -> None:
            await connection.send('{"type":"expiring","in_s":60}')
            await after(connection)

        long, longer = token(ttl_s=3600), token(ttl_s=7200)
        given = iter([long, longer])
        script = Script(warns)
        async with serving(script), EventStream(script.url, ["t"], token=lambda: next(given)) as events:
            assert 1 == (await events.receive()).seq
        assert [longer] == offered

    asyncio.run(story())


def test_a_topic_that_a_new_token_does_not_permit_is_told() -> None:
    async def story() -> None:
        lost = '{"type":"unsubscribed","event":"t","reason":"forbidden"}'
        script = Script(says(lost, event_frame("u", 1)))
        async with serving(script), EventStream(script.url, ["t", "u"], token="a") as events:
            with pytest.raises(SubscriptionRefused) as caught:
                await events.receive()
            assert ("t", "forbidden") == (caught.value.topic, caught.value.code)
            assert ("u", ["u"]) == ((await events.receive()).event, list(events.positions))

    asyncio.run(story())


def test_a_token_without_a_way_to_a_new_one_ends_it() -> None:
    async def story() -> None:
        async with serving(Script(says(code=4401))) as script, EventStream(script.url, ["t"], token="a") as events:
            with pytest.raises(TokenEnded):
                await events.receive()

    asyncio.run(story())


def test_a_refused_token_is_replaced_once() -> None:
    body = b'{"code":"invalid_token","detail":"The bearer token is not acceptable"}'

    async def new() -> str:
        return "b"

    async def story() -> None:
        script = Script(answer(401, body), says(event_frame("t", 1)), answer(401, body), answer(401, body))
        async with serving(script), EventStream(script.url, ["t"], token=new, backoff=at_once()) as events:
            assert 1 == (await events.receive()).seq
            with pytest.raises(Refused) as caught:
                await events.receive()
            assert (401, "invalid_token") == (caught.value.status, caught.value.code)
        assert [] == script.parts

    asyncio.run(story())


def test_not_now_is_tried_again_after_the_time_that_was_asked_for() -> None:
    pauses: list[float] = []

    class Noted(Backoff):
        def pause_s(self, asked_s: float = 0.0) -> float:
            pauses.append(super().pause_s(asked_s))
            return 0.0

    async def story() -> None:
        script = Script(answer(503, after="7"), answer(429), answer(503, after="soon"), says(event_frame("t", 1)))
        async with serving(script), EventStream(script.url, ["t"], backoff=Noted(1, 8, lambda: 0.5)) as events:
            assert 1 == (await events.receive()).seq
        assert [7.5, 1.0, 2.0] == pauses

    asyncio.run(story())


@pytest.mark.parametrize(
    ("status", "body", "code"), [(403, b'{"code":"origin_not_allowed"}', "origin_not_allowed"), (404, b"<html>", "")]
)
def test_a_refusal_is_not_tried_again(status: int, body: bytes, code: str) -> None:
    async def story() -> None:
        async with serving(Script(answer(status, body))) as script, EventStream(script.url, ["t"]) as events:
            with pytest.raises(Refused) as caught:
                await events.receive()
            assert (status, code) == (caught.value.status, caught.value.code)

    asyncio.run(story())


def test_it_gives_up_after_so_many_failures_in_a_row() -> None:
    async def story() -> None:
        script = Script(answer(502), says(event_frame("t", 1)), answer(502), answer(502))
        async with serving(script), EventStream(script.url, ["t"], attempts=2, backoff=at_once()) as events:
            await events.receive()
            with pytest.raises(Unreachable):
                await events.receive()
        assert [] == script.parts

    asyncio.run(story())


def test_a_gap_is_told_to_whoever_asked_or_else_raised() -> None:
    frames = (event_frame("t", 1, pos="1"), event_frame("t", 5, 4, pos="5"))

    async def story() -> None:
        gaps: list[Gap] = []
        async with (
            serving(Script(says(*frames))) as script,
            EventStream(script.url, ["t"], on_gap=gaps.append) as events,
        ):
            assert [1, 5] == [(await events.receive()).seq for _ in range(2)]
            assert [Gap("missing", "t", 1, 5)] == gaps
        async with serving(Script(says(*frames))) as script, EventStream(script.url, ["t"]) as events:
            await events.receive()
            with pytest.raises(EventsSkipped, match=r"^events of t were skipped \(missing\)$"):
                await events.receive()
            # Behind the gap nothing was handed out yet.
            assert {"t": "1"} == events.positions
            assert 5 == (await events.receive()).seq
            assert {"t": "5"} == events.positions

    asyncio.run(story())


def test_a_wait_may_be_cancelled_and_loses_nothing() -> None:
    async def story() -> None:
        go_on = asyncio.Event()

        async def part(connection: ServerConnection) -> None:
            await connection.send(event_frame("t", 1))
            await go_on.wait()
            await connection.send(event_frame("t", 2, 1))
            await connection.wait_closed()

        async with serving(Script(part)) as script, EventStream(script.url, ["t"]) as events:
            assert 1 == (await events.receive()).seq
            waiting = asyncio.create_task(events.receive())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            go_on.set()
            assert 2 == (await events.receive()).seq

    asyncio.run(story())


def test_a_pause_is_not_cut_short_by_who_does_not_wait_for_its_end() -> None:
    async def story() -> None:
        backoff = Backoff(60.0, 60.0, lambda: 1.0)
        async with EventStream("http://127.0.0.1:9", ["t"], backoff=backoff) as events:
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(events.receive(), 0.1)
        assert 1 == backoff.failures

    asyncio.run(story())


def test_topics_are_added_and_refused_on_the_way() -> None:
    async def story() -> None:
        heard: list[dict[str, Any]] = []
        again = asyncio.Event()

        async def told(connection: ServerConnection) -> None:
            again.set()
            await connection.wait_closed()

        async def part(connection: ServerConnection) -> None:
            await connection.send('{"type":"of a later version","event":5}')
            await connection.send(event_frame("t", 1))
            heard.extend([json.loads(await connection.recv()) for _ in range(3)])
            await connection.send('{"type":"error","code":"forbidden","message":"no"}')
            await connection.send('{"type":"pong","timestamp":0}')
            await connection.send('{"type":"unsubscribed","event":"t"}')
            await connection.close(1012)

        async with serving(Script(part, told)) as script, EventStream(script.url, ["t"], backoff=at_once()) as events:
            await events.receive()
            events.subscribe("u", "9")
            events.unsubscribe("t")
            with pytest.raises(SubscriptionRefused, match=r"^forbidden: u: no$"):
                await events.receive()
            events.subscribe("v")
            waiting = asyncio.create_task(events.receive())
            await again.wait()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        asked = [{"type": "subscribe", "event": "u", "from": "9"}, {"type": "ping"}]
        assert [*asked, {"type": "unsubscribe", "event": "t"}] == heard
        assert {"v": None} == script.asked[1]

    asyncio.run(story())


@pytest.mark.parametrize("url", ["", "example.com", "ftp://example.com"])
def test_an_address_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url: "):
        EventStream(url, ["t"])
