"""The realtime protocol, the same over every transport: WebSocket and event stream, on the main port and on the native.

Strategy: one gateway as it is shipped, with both ports, beside a small daemon; each case is told once and held for
every transport (`realtime_transports`). Where a transport cannot do what a case is about, the case says what it does
instead. The caps of 5,000 connections of a subject are held where they can be made small: tests/websocket and
rust/realtime/tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from tests.asyncapi_frames import judge
from tests.contracts.realtime_transports import TRANSPORTS, Ear, Ports, Transport
from tests.e2e.test_gateway import drain
from tests.gateway_process import GatewayProcess, bearer, free_port, running, token
from tests.positions import encode
from tests.small_daemon import SmallDaemon, serving, stop

from flx_api.events.position import Position

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

pytestmark = pytest.mark.e2e
transports = pytest.mark.parametrize("transport", TRANSPORTS, ids=["-".join(filter(None, one)) for one in TRANSPORTS])

HOST = "127.0.0.1"
# So many events were in the journal before the gateway began: only the daemon can tell of them.
BEFORE = 5


class Stack(NamedTuple):
    """A daemon and a gateway beside it."""

    daemon: SmallDaemon
    gateway: GatewayProcess
    ports: Ports


@contextlib.asynccontextmanager
async def stack(folder: Path, **settings: str) -> AsyncIterator[Stack]:
    """A daemon with something in its journal, and a gateway with both ports."""
    daemon, native = SmallDaemon(), free_port()
    for number in range(BEFORE):
        await daemon.publish("app.before", {"n": number})
    async with (
        serving(daemon, folder / "d.sock"),
        running(
            folder / "d.sock", folder, {"realtime_port": str(native), "realtime_deflate": "true", **settings}
        ) as gateway,
    ):
        yield Stack(daemon, gateway, Ports(gateway.port, native))


class Shared(NamedTuple):
    """The stack that most cases share, and the loop that it lives in."""

    run: Callable[[Coroutine[Any, Any, None]], None]
    stack: Stack


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    """One stack for all cases that leave it as it was."""
    with tempfile.TemporaryDirectory(prefix="flx") as name, asyncio.Runner() as runner:
        rest = contextlib.AsyncExitStack()
        try:
            yield Shared(runner.run, runner.run(rest.enter_async_context(stack(Path(name)))))
        finally:
            runner.run(rest.aclose())


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Unix socket paths are limited to about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="flx") as name:
        yield Path(name)


def name_of(transport: Transport) -> str:
    """A word for topics and executions, which have no dot in it."""
    return "-".join(filter(None, transport)).replace(".", "")


def seqs(events: list[dict[str, Any]], topic: str) -> list[int]:
    """The numbers of one topic's events, which must be a chain."""
    chain = [event for event in events if event["event"] == topic]
    for before, after in itertools.pairwise(chain):
        assert after["prev"] == before["seq"]
    return [event["seq"] for event in chain]


# --- who may come in --------------------------------------------------------------------------------------------------


@transports
def test_who_is_not_let_in_is_told_why_before_anything_begins(shared: Shared, transport: Transport) -> None:
    async def story() -> None:
        ports = shared.stack.ports
        for headers, status, code in [
            ({}, 401, "missing_token"),
            ({"authorization": "Bearer x.y.z"}, 401, "invalid_token"),
            ({"authorization": f"Bearer {token(ttl_s=-5)}"}, 401, "invalid_token"),
            (bearer() | {"host": "a@b/c"}, 400, "invalid_host"),
        ]:
            if "host" in headers and not transport.is_stream:
                continue  # the client sets it by itself; that of a stream tells for both: they are admitted alike
            refused = await ports.refuses(transport, "app.x", headers=headers)
            assert (status, code) == (refused.status, refused.code), headers
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.headers["x-request-id"]

    shared.run(story())


@transports
def test_a_ticket_lets_in_once(shared: Shared, transport: Transport) -> None:
    async def story() -> None:
        ports = shared.stack.ports
        async with httpx.AsyncClient(base_url=shared.stack.gateway.url) as client:
            ticket = (await client.post("/v1/ws-ticket", headers=bearer())).json()["ticket"]
        async with ports.hearing(transport, "app.x", headers={}, query=f"?ticket={ticket}"):
            pass
        refused = await ports.refuses(transport, "app.x", headers={}, query=f"?ticket={ticket}")
        assert (refused.status, refused.code) == (401, "invalid_token")

    shared.run(story())


@transports
def test_another_pages_origin(shared: Shared, transport: Transport) -> None:
    """A WebSocket is refused; a stream, which carries no cookie, is not, but the browser keeps it from the page."""

    async def story() -> None:
        ports = shared.stack.ports
        headers = bearer() | {"origin": "https://elsewhere.example"}
        if transport.is_stream:
            async with httpx.AsyncClient() as client:
                url = ports.url(transport, query="?topics=app.x")
                async with client.stream("GET", url, headers=headers) as response:
                    assert response.status_code == httpx.codes.OK
                    assert "access-control-allow-origin" not in response.headers
        else:
            refused = await ports.refuses(transport, headers=headers)
            assert (refused.status, refused.code) == (403, "origin_not_allowed")

    shared.run(story())


@transports
def test_a_client_id_belongs_to_one_subject(shared: Shared, transport: Transport) -> None:
    """A stream has no client id: as many subjects as like may listen."""

    async def story() -> None:
        ports = shared.stack.ports
        async with ports.hearing(transport, client_id="mine"), ports.hearing(transport, client_id="mine"):
            theirs = bearer("bert")
            if transport.is_stream:
                async with ports.hearing(transport, "app.x", headers=theirs):
                    pass
            else:
                refused = await ports.refuses(transport, client_id="mine", headers=theirs)
                assert (refused.status, refused.code) == (409, "client_id_taken")

    if transport.is_stream:
        # There must be something to hear.
        topics = shared.stack.ports.refuses(transport)

        async def nothing() -> None:
            assert (await topics).status == 422

        shared.run(nothing())
        return
    shared.run(story())


# --- topics -----------------------------------------------------------------------------------------------------------


@transports
def test_what_may_not_be_heard_is_refused(shared: Shared, transport: Transport) -> None:
    """On a WebSocket by an answer, for a stream before it begins; then nothing of what else was asked for is heard."""

    async def story() -> None:
        ports = shared.stack.ports
        nobody = bearer("anna", ())
        for topic, from_, headers, code, status in [
            ("nothing.at.all", None, bearer(), "not_found", 404),
            ("app.*.x", None, bearer(), "invalid_request", 400),
            ("user.bert", None, bearer(), "forbidden", 403),
            ("app.x", None, nobody, "forbidden", 403),
            ("app.x", "no position", bearer(), "invalid_request", 400),
        ]:
            refused = await ports.refuses(transport, topic, from_=from_, headers=headers)
            assert (refused.status, refused.code) == (status if transport.is_stream else 0, code), topic
        if transport.is_stream:
            refused = await ports.refuses(transport, "app.x", "user.bert")
            assert (refused.status, refused.code) == (403, "forbidden")
            many = [f"app.{number}" for number in range(257)]
            assert (await ports.refuses(transport, *many)).code == "invalid_request"
        async with ports.hearing(transport, "user.anna", headers=nobody):
            pass

    shared.run(story())


@transports
def test_events_come_once_in_order_and_each_says_what_was_before(shared: Shared, transport: Transport) -> None:
    async def story() -> None:
        daemon, ports, _ = shared.stack.daemon, shared.stack.ports, shared.stack.gateway
        name = name_of(transport)
        mine, other, log = f"app.{name}.mine", f"app.{name}.other", f"execution.{name}.log"
        document = await _document(shared.stack)
        # Three of them match the first topic.
        async with ports.hearing(transport, f"app.{name}.*", mine, log, "app.*") as ear:
            told: dict[str, list[int]] = {mine: [], other: []}
            for number in range(40):
                topic = (mine, other)[number % 3 == 0]
                told[topic].append(await daemon.publish(topic, {"n": number}))
                await daemon.publish(topic, {"n": number}, tenant="another")
                await daemon.log(name, b"line %d" % number)
            events = await ear.events(80)
            assert told == {topic: seqs(events, topic) for topic in told}
            assert seqs(events, log) == list(range(1, 41))
            assert [event["data"] for event in events if event["event"] == log][:2] == ["line 0", "line 1"]
            for told_one in ear.told:
                if told_one.kind in {"subscribed", "closed", "connected"}:
                    assert judge(document, told_one.body) == told_one.kind
            if not transport.is_stream:
                await ear.say({"type": "unsubscribe", "event": "app.*"})
                await ear.next("unsubscribed")
                for pattern in (f"app.{name}.*", mine):
                    await ear.say({"type": "unsubscribe", "event": pattern})
                    await ear.next("unsubscribed")
                await daemon.publish(mine, {"n": 40})
                await daemon.log(name, b"line 40")
                assert (await ear.events(1))[0]["event"] == log

    shared.run(story())


async def _document(stack: Stack) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=stack.gateway.url) as client:
        document: dict[str, Any] = (await client.get("/asyncapi.json")).json()
        return document


# --- positions --------------------------------------------------------------------------------------------------------


@transports
def test_who_comes_back_misses_nothing_and_hears_nothing_twice(shared: Shared, transport: Transport) -> None:
    async def story() -> None:
        daemon, ports = shared.stack.daemon, shared.stack.ports
        one, two = (f"app.{name_of(transport)}.one", "app.{}.two".format("-".join(transport)))
        first: list[dict[str, Any]] = []
        async with ports.hearing(transport, one, two) as ear:
            told = [await daemon.publish((one, two)[number % 2], number) for number in range(6)]
            first = await ear.events(6)
            pos = ear.pos
        told += [await daemon.publish((one, two)[number % 2], number) for number in range(6, 12)]
        if transport.is_stream:
            # As a browser does: the address has an old `from`, and the header counts.
            old = encode(Position(daemon.epoch, 1, {}))
            again = ports.hearing(transport, one, two, from_=old, headers=bearer() | {"last-event-id": pos or ""})
        else:
            again = ports.hearing(transport, one, two, from_=pos)
        async with again as ear:
            told.append(await daemon.publish(one, 12))
            second = await ear.events(7)
        events = first + second
        assert sorted(seqs(events, one) + seqs(events, two)) == told
        assert [event["data"] for event in sorted(events, key=lambda event: event["seq"])] == list(range(13))

    shared.run(story())


@transports
def test_what_the_gateway_never_heard_the_daemon_tells(shared: Shared, transport: Transport) -> None:
    async def story() -> None:
        daemon, ports = shared.stack.daemon, shared.stack.ports
        pos = encode(Position(daemon.epoch, 2, {}))
        async with ports.hearing(transport, "app.before", "app.nobody", from_=pos) as ear:
            events = await ear.events(BEFORE - 2)
            assert seqs(events, "app.before") == [3, 4, 5]
            assert events[0]["prev"] == 2

    shared.run(story())


@transports
@pytest.mark.parametrize("reason", ["epoch", "evicted"])
def test_what_cannot_be_had_any_more_is_told_as_a_gap(shared: Shared, transport: Transport, reason: str) -> None:
    async def story() -> None:
        daemon, ports = shared.stack.daemon, shared.stack.ports
        epoch, seq = ("another", 3) if reason == "epoch" else (daemon.epoch, 1)
        daemon.oldest_kept = 3
        try:
            # Another seq for each transport: what was asked a moment ago is answered from memory.
            logs = {name_of(transport): 1}
            async with ports.hearing(transport, "app.before", from_=encode(Position(epoch, seq, logs))) as ear:
                gap = (await ear.next("gap")).body
                assert gap["reason"] == reason
                assert gap["epoch"] == daemon.epoch
                seq = await daemon.publish("app.before", "after")
                assert (await ear.events(1))[0]["seq"] == seq
        finally:
            daemon.oldest_kept = 0

    shared.run(story())


# --- ends -------------------------------------------------------------------------------------------------------------


@transports
def test_a_token_ends_the_connection(shared: Shared, transport: Transport) -> None:
    async def story() -> None:
        headers = {"authorization": f"Bearer {token(ttl_s=2)}"}
        async with shared.stack.ports.hearing(transport, "app.x", headers=headers) as ear:
            assert await ear.end() == 4401
        if transport.is_stream:
            assert judge(await _document(shared.stack), ear.told[-1].body) == "closed"

    shared.run(story())


@transports
def test_messages_of_clients_are_bounded(shared: Shared, transport: Transport) -> None:
    """A stream hears nothing of its client: it goes on whatever is said."""

    async def talkative(ear: Ear) -> None:
        for _ in range(11):  # one more than are borne; what came after the end would cut it short
            await ear.say({"type": "subscribe"})

    async def too_long(ear: Ear) -> None:
        await ear.say(json.dumps({"type": "x", "data": "x" * 70_000}))

    async def story() -> None:
        daemon, ports = shared.stack.daemon, shared.stack.ports
        if transport.is_stream:
            await _shout(ports, transport, daemon)
            return
        for offend, code in [(talkative, 1008), (too_long, 1009)]:
            async with ports.hearing(transport) as ear:
                await offend(ear)
                assert await ear.end() == code
        async with ports.hearing(transport) as ear:
            for _ in range(80):
                await ear.say({"type": "ping"})
            assert (await ear.next("error")).body["code"] == "rate_limited"

    shared.run(story())


async def _shout(ports: Ports, transport: Transport, daemon: SmallDaemon) -> None:
    port = ports.main if transport.port == "main" else ports.native
    reader, writer = await asyncio.open_connection(HOST, port)
    topic = f"app.{transport.port}.shout"
    request = f"GET /v1/events?topics={topic} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token()}\r\n\r\n"
    writer.write(request.encode())
    await reader.readuntil(b"subscribed")
    writer.write(b"hello?\r\n" * 100)
    await writer.drain()
    await daemon.publish(topic, "still here")
    async with asyncio.timeout(10):
        if transport.port == "native":
            await reader.readuntil(b"still here")
        else:
            # Granian may take it for another request and answer that it is none, once the stream is over.
            await reader.read(1)
    writer.close()


@transports
def test_a_new_history_is_told_and_a_drain_sends_away(folder: Path, transport: Transport) -> None:
    async def story() -> None:
        daemon = SmallDaemon()
        native = free_port()
        server = serving(daemon, folder / "d.sock")
        first = await server.__aenter__()
        settings = {"realtime_port": str(native), "realtime_deflate": "true"}
        async with running(folder / "d.sock", folder, settings) as gateway:
            ports = Ports(gateway.port, native)
            async with ports.hearing(transport, "app.x") as ear:
                await daemon.publish("app.x", 1)
                assert (await ear.events(1))[0]["data"] == 1
                await stop(first)
                restored = SmallDaemon("restored")
                async with serving(restored, folder / "d.sock"):
                    gap = (await ear.next("gap")).body
                    assert (gap["reason"], gap["epoch"]) == ("epoch", "restored")
                    await restored.publish("app.x", 2)
                    event = (await ear.next("event")).body
                    assert (event["data"], event["epoch"]) == (2, "restored")
                    drain(gateway)
                    assert await ear.end() == 1012
                    refused = await ports.refuses(transport, "app.x")
                    assert (refused.status, refused.code) == (503, "shutting_down")
                    assert int(refused.headers["retry-after"]) >= 1

    asyncio.run(story())


def test_silence_is_filled_on_every_transport(folder: Path) -> None:
    async def story() -> None:
        async with contextlib.AsyncExitStack() as rest:
            own = await rest.enter_async_context(stack(folder, heartbeat_s="1"))
            ears = [
                await rest.enter_async_context(own.ports.hearing(transport, "app.silence")) for transport in TRANSPORTS
            ]

            async def is_heard(ear: Ear) -> None:
                # Again and again: one sign of life could be that of the beginning.
                async with asyncio.timeout(20):
                    while ear.comments + [told.kind for told in ear.told].count("heartbeat") < 2:  # noqa: ASYNC110
                        await asyncio.sleep(0.1)

            await asyncio.gather(*map(is_heard, ears))
            assert all(bool(ear.comments) == ear.transport.is_stream for ear in ears)

    asyncio.run(story())
