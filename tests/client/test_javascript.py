"""The client of examples/clients: the same decisions as the Python one, and what its shell does by itself.

Connections that are lost, gaps and refusals of a real gateway are in e2e/test_clients.py.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.client.scripted_server import Script, event_frame, hears, says, serving, stays
from tests.client.scripted_stream import Answer, Stream, StreamScript, tells
from tests.client.scripted_stream import serving as stream_serving
from tests.client.scripted_stream import stays as stream_stays
from tests.gateway_process import token
from tests.service import ROOT

from flx_api.client.errors import SubscriptionRefused
from flx_api.client.event_stream import EventStreamDecoder
from flx_api.client.progress import Gap, Progress
from flx_api.models.message import (
    ClientMessage,
    Error,
    Event,
    Heartbeat,
    Pong,
    ServerMessage,
    Subscribed,
    Unsubscribed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no `node` here, and the client is for Node 20 or newer")
MODULE = (ROOT / "examples" / "clients" / "flx-client.mjs").as_uri()
# Node 20 has its WebSocket behind this flag; newer versions take it for granted.
COMMAND = [NODE or "", "--experimental-websocket", "--no-warnings", "--input-type=module", "--eval"]

REPLAY = f"""
import {{ Progress }} from "{MODULE}";
import {{ readFileSync }} from "node:fs";
const told = (found) => found.map(({{ event, gap }}) => event ? [event.event, event.seq] : Object.values(gap));
const steps = {{
  begin: (it) => it.begin(),
  begin_together: (it) => it.beginTogether(),
  subscribe: (it, topic, from) => it.subscribe(topic, from ?? undefined),
  unsubscribe: (it, topic) => it.unsubscribe(topic),
  take: (it, message) => told(it.take(message)),
}};
const stories = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(stories.map(([topics, start, story]) => {{
  const it = new Progress(topics, start);
  return story.map(([step, ...args]) => {{
    let answer;
    try {{ answer = steps[step](it, ...args); }} catch (error) {{ answer = [error.code, error.topic]; }}
    return [answer, it.positions, it.level];
  }});
}})));
"""


def _stories(chance: random.Random) -> Iterator[tuple[list[str], Any, list[tuple[Any, ...]]]]:
    """Anything that can happen to a client, much of it against the protocol."""
    topics = ["a", "b", "c.*"]
    for _ in range(400):
        mine = chance.sample(topics, chance.randint(0, 3))
        start = chance.choice([None, "0", {"a": "1"}])
        story = [
            (chance.choice(["begin", "begin_together"]),),
            *(_step(chance, topics) for _ in range(chance.randint(0, 30))),
        ]
        yield mine, start, story


def _step(chance: random.Random, topics: list[str]) -> tuple[Any, ...]:
    rare = [
        ("begin",),
        ("begin_together",),
        ("subscribe", chance.choice(topics), chance.choice([None, "5"])),
        ("unsubscribe", topics[0]),
    ]
    return chance.choice([*rare, *[("take", _message(chance)) for _ in range(9)]])


def _message(chance: random.Random) -> ServerMessage:
    topic, pos, epoch = chance.choice(["a", "b", "c.x"]), str(chance.randint(0, 9)), chance.choice("eeef")
    seq = chance.randint(1, 6)
    event = Event(topic, seq, chance.choice([seq - 1, chance.randint(0, 5)]), epoch, 0, pos, None)
    after, before = chance.choice([None, 3]), chance.choice([None, 3, 5, 7])
    others: list[ServerMessage] = [
        Subscribed(topic, pos),
        Unsubscribed(topic),
        Pong(0),
        Heartbeat(0),
        Error("gap", "m", "evicted", epoch, chance.choice([pos, None])),
        Error("gap", "m", "evicted", epoch, None, chance.choice([topic, "c.*"]), after, before),
        Error("forbidden", "m"),
    ]
    return chance.choice([event, event, *others])


def _in_python(topics: list[str], start: Any, story: list[tuple[Any, ...]]) -> list[Any]:
    it, found = Progress(topics, start), []
    for step, *args in story:
        try:
            answer: list[Any] = [_plain(part) for part in getattr(it, step)(*args) or ()]
        except SubscriptionRefused as refused:
            answer = [refused.code, refused.topic]
        found.append([answer, it.positions, it.level])
    return found


def _plain(part: Event | Gap | ClientMessage) -> Any:
    if isinstance(part, Event):
        return [part.event, part.seq]
    return list(part) if isinstance(part, Gap) else msgspec.to_builtins(part)


def test_it_decides_as_the_python_client_does() -> None:
    stories = list(_stories(random.Random(1)))
    expected = [_in_python(*story) for story in stories]
    given = msgspec.json.encode(stories)
    done = subprocess.run([*COMMAND, REPLAY], input=given, capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert len(expected) == len(found)
    for story, python, javascript in zip(stories, expected, found, strict=True):
        assert python == javascript, story
    # All that can be told was told.
    answers = [part for lines in expected for answer, _, _ in lines for part in answer]
    assert {"evicted", "missing", "epoch"} <= {part[0] for part in answers if isinstance(part, list)}
    assert "forbidden" in answers


async def run(script: str, *names: str) -> list[str]:
    """What a script prints that imports these names."""
    script = f'import {{ {", ".join(names)} }} from "{MODULE}";\n{script}'
    process = await asyncio.create_subprocess_exec(*COMMAND, script, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert 0 == process.returncode
    return out.decode().splitlines()


def test_a_new_token_is_offered_before_the_old_one_ends() -> None:
    """As in Python: on the connection; refused, that is made again; a token that is the same is used to its end."""

    async def story() -> None:
        refusal = '{"type":"error","code":"invalid_token","message":"","of":"refresh"}'
        for parts, offered, opened, tokens in (
            (['{"type":"refreshed","in_s":3600}', event_frame("t", 1)], "l", "s", "sl"),
            ([refusal], "l", "sl", "sll"),
            (None, "", "sl", "ssl"),
        ):
            of = {"s": token(ttl_s=2), "l": token(ttl_s=3600)}
            heard: list[str] = []
            first = says(code=4401, after_s=2) if parts is None else hears(heard, *parts)
            script = Script(first, says(event_frame("t", 1)))
            async with serving(script):
                lines = await run(
                    f"""
                    const given = {json.dumps([of[one] for one in tokens])};
                    const events = new EventStream("{script.url}", ["t"], {{ token: async () => given.shift() }});
                    const event = await events.receive();
                    console.log(event.seq, JSON.stringify(events.positions));
                    events.close();
                """,
                    "EventStream",
                )
            assert ['1 {"t":"p"}'] == lines
            assert [of[one] for one in offered] == heard
            assert [f"flx.plain, bearer.{of[one]}" for one in opened] == script.offers

    asyncio.run(story())


def test_a_gap_that_nobody_asked_for_is_thrown_and_a_closed_stream_ends() -> None:
    async def story() -> None:
        script = Script(says(event_frame("t", 1, pos="1"), event_frame("t", 5, 4, "5")), stays)
        async with serving(script):
            lines = await run(
                f"""
                const events = new EventStream("{script.url}", ["t"], {{ backoff: new Backoff(0, 0) }});
                console.log((await events.receive()).seq);
                await events.receive().catch((error) => console.log(error.code, error.topic, events.positions.t));
                console.log((await events.receive()).seq, events.positions.t);
                setTimeout(() => events.close(), 50);
                console.log(await events.receive());
            """,
                "Backoff",
                "EventStream",
            )
        assert ["1", "gap t 1", "5 5", "null"] == lines

    asyncio.run(story())


def test_a_stream_is_closed_while_it_asks_why_it_was_refused() -> None:
    """The service takes the question and does not answer: the stream is over at once all the same."""

    async def story() -> None:
        asked = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"whoami" in head:
                asked.set()
                await reader.read()
            else:
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            lines = await run(
                f"""
                const events = new EventStream("{url}", ["t"], {{ backoff: new Backoff(60000, 60000) }});
                setTimeout(() => events.close(), 300);
                console.log(await events.receive());
            """,
                "Backoff",
                "EventStream",
            )
        assert asked.is_set()
        assert ["null"] == lines

    asyncio.run(story())


def test_many_topics_are_asked_for_no_faster_than_they_are_taken() -> None:
    topics = [f"app.{number}" for number in range(60)]

    async def story() -> None:
        async with serving(Script(says(event_frame("app.1", 1), code=1008))) as script:
            lines = await run(
                f"""
                const events = new EventStream("{script.url}", {json.dumps(topics)});
                const begin = Date.now();
                await events.receive();
                console.log(Date.now() - begin);
                await events.receive().catch((error) => console.log(error.code));
            """,
                "EventStream",
            )
        assert topics == list(script.asked[0])
        # 61 messages: 40 at once, then one each 25 ms.
        assert int(lines[0]) >= 450
        assert "1008" == lines[1]

    asyncio.run(story())


# --- event streams ----------------------------------------------------------------------------------------------------

DECODE = f"""
import {{ EventStreamDecoder }} from "{MODULE}";
import {{ readFileSync }} from "node:fs";
const stories = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(stories.map((pieces) => {{
  const decoder = new EventStreamDecoder();
  return pieces.flatMap((piece) => decoder.feed(piece).map(({{ kind, data }}) => [kind, data]));
}})));
"""


def test_streams_are_read_as_the_python_client_reads_them() -> None:
    chance = random.Random(2)
    parts = ["data", "event", "id", ":", ": ", " ", "x", "\u2028", "\x85", "\n", "\r", "\r\n", "\n\n", "data: 1\n\n"]
    stories = [
        ["".join(chance.choices(parts, k=chance.randint(1, 8))) for _ in range(chance.randint(1, 6))]
        for _ in range(500)
    ]
    expected = []
    for pieces in stories:
        decoder = EventStreamDecoder()
        expected.append([list(event) for piece in pieces for event in decoder.feed(piece.encode())])
    done = subprocess.run([*COMMAND, DECODE], input=msgspec.json.encode(stories), capture_output=True, check=True)
    found = json.loads(done.stdout)
    for story, python, javascript in zip(stories, expected, found, strict=True):
        assert python == javascript, story
    assert any(expected)


async def listen(script: StreamScript, body: str, *, websocket: bool = True) -> list[str]:
    """What a script prints that uses a client of a server of streams."""
    before = "" if websocket else "delete globalThis.WebSocket;\n"
    async with stream_serving(script):
        return await run(before + body.replace("URL", f'"{script.url}"'), "Backoff", "EventStream")


def test_a_stream_goes_on_from_where_it_was() -> None:
    body = """
        const options = { token: "a", backoff: new Backoff(0, 0), transport: "sse" };
        const events = new EventStream(URL, ["t", "u"], options);
        console.log((await events.receive()).seq, events.positions.t);
        console.log((await events.receive()).seq, events.positions.t);
        await events.receive().catch((error) => console.log(error.code, error.message.slice(-8, -1)));
    """

    async def story() -> None:
        script = StreamScript(
            tells(event_frame("t", 1, pos="1")),
            tells('{"type":"reconnect","in_ms":5}', code=1012),
            Answer(503, headers=(("retry-after", "0"),)),
            tells(event_frame("t", 1, pos="1"), event_frame("t", 2, 1, "2"), code=1008),
        )
        assert ["1 1", "2 2", "1008 because"] == await listen(script, body)
        assert [(["t", "u"], None), (["t", "u"], "1"), (["t", "u"], "1")] == script.asked
        assert {"Bearer a"} == set(script.bearers)
        assert 0 == script.sockets

    asyncio.run(story())


def test_gaps_of_a_stream_are_told() -> None:
    body = """
        const gaps = [];
        const events = new EventStream(URL, ["t"], { onGap: (gap) => gaps.push(Object.values(gap)), transport: "sse" });
        const seen = [];
        for (let n = 0; n < 3; n++) seen.push((await events.receive()).seq);
        console.log(JSON.stringify([seen, gaps, events.positions]));
        events.close();
        console.log(await events.receive());
    """
    gap = {"type": "gap", "t": "t", "reason": "evicted", "epoch": "e", "after": 1, "before": 8, "pos": "8"}

    async def story() -> None:
        frames = [event_frame("t", 1), json.dumps(gap), event_frame("t", 9, 8, "9"), event_frame("t", 12, 11, "12")]
        lines = await listen(StreamScript(stream_stays(*frames)), body)
        told = [[1, 9, 12], [["evicted", "t", 1, 8], ["missing", "t", 9, 12]], {"t": "12"}]
        assert [told, None] == [json.loads(line) for line in lines]

    asyncio.run(story())


def test_a_new_token_makes_another_stream() -> None:
    """Before the old one ends, or when the service says that it will; one that is the same is used to its end."""
    body = """
        const given = TOKENS;
        const events = new EventStream(URL, ["t"], { token: async () => given.shift(), transport: "sse" });
        console.log((await events.receive()).seq, (await events.receive()).seq, JSON.stringify(given));
        events.close();
    """

    async def ends(stream: Stream) -> None:
        await stream.tell(event_frame("t", 1, pos="1"))
        await asyncio.sleep(2)
        await stream.tell('{"type":"closed","code":4401,"reason":""}')

    async def story() -> None:
        for first, tokens, opened in (
            (stream_stays(event_frame("t", 1, pos="1")), "sl", "sl"),
            (stream_stays(event_frame("t", 1, pos="1"), '{"type":"expiring","in_s":60}'), "lm", "lm"),
            (ends, "ssl", "sl"),
        ):
            of = {"s": token(ttl_s=2), "l": token(ttl_s=3600), "m": token(ttl_s=7200)}
            script = StreamScript(first, stream_stays(event_frame("t", 2, 1)))
            lines = await listen(script, body.replace("TOKENS", json.dumps([of[one] for one in tokens])))
            assert ["1 2 []"] == lines
            assert [f"Bearer {of[one]}" for one in opened] == script.bearers
            assert [None, "1"] == [last for _, last in script.asked]

    asyncio.run(story())


def test_a_refused_token_is_replaced_once_and_a_refusal_is_not_tried_again() -> None:
    body = """
        const events = new EventStream(URL, ["t"], { token: () => "b", backoff: new Backoff(0, 0), transport: "sse" });
        console.log((await events.receive()).seq);
        await events.receive().catch((error) => console.log(error.code));
    """
    refusal = Answer(401, b'{"code":"invalid_token"}')

    async def story() -> None:
        script = StreamScript(refusal, tells(event_frame("t", 1)), refusal, refusal)
        assert ["1", "invalid_token"] == await listen(script, body)
        script = StreamScript(tells(event_frame("t", 1)), Answer(403, b"<html>"))
        assert ["1", "403"] == await listen(script, body)

    asyncio.run(story())


def test_another_topic_is_another_stream() -> None:
    body = """
        const events = new EventStream(URL, ["t"], { transport: "sse" });
        console.log((await events.receive()).seq);
        try { events.subscribe("u", "9"); } catch (error) { console.log(error.name); }
        events.subscribe("u");
        console.log((await events.receive()).event, (await events.receive()).event);
        events.close();
        try { new EventStream(URL, ["a", "b"], { start: { a: "1" }, transport: "sse" }); }
        catch (error) { console.log(error.name); }
    """

    async def story() -> None:
        script = StreamScript(
            stream_stays(event_frame("t", 1, pos="1")),
            stream_stays(event_frame("t", 2, 1, "2"), event_frame("u", 1, pos="3")),
        )
        assert ["1", "RangeError", "t u", "RangeError"] == await listen(script, body)
        assert [(["t"], None), (["t", "u"], "1")] == script.asked

    asyncio.run(story())


@pytest.mark.parametrize("websocket", [True, False])
def test_where_no_websocket_gets_through_a_stream_is_read(websocket: bool) -> None:
    """A proxy refuses them, or the platform has none."""
    body = """
        const events = new EventStream(URL, ["t"], { token: "a", backoff: new Backoff(0, 0) });
        console.log((await events.receive()).seq, (await events.receive()).seq);
        events.close();
    """

    async def story() -> None:
        script = StreamScript(tells(event_frame("t", 1, pos="1")), stream_stays(event_frame("t", 2, 1)))
        assert ["1 2"] == await listen(script, body, websocket=websocket)
        assert (int(websocket), [None, "1"]) == (script.sockets, [last for _, last in script.asked])

    asyncio.run(story())


def test_who_wants_a_websocket_alone_gets_no_stream() -> None:
    body = """
        const options = { transport: "websocket", attempts: 1, backoff: new Backoff(0, 0) };
        await new EventStream(URL, ["t"], options).receive().catch((error) => console.log(error.code));
    """

    async def story() -> None:
        script = StreamScript()
        assert ["unreachable"] == await listen(script, body)
        assert (2, []) == (script.sockets, script.asked)

    asyncio.run(story())
