"""A plain batch without a task, with a real gateway and a daemon behind it; the general way answers beside it.

What is made of one, and how it ends in the table: properties/test_plain_batches.py.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.command_stage import stage
from tests.gateway_process import bearer
from tests.granian_watcher import Watcher, taken

from flx_api.errors import Conflict
from flx_api.proto.flx.v1.daemon_pb2 import ReplyFrame

if TYPE_CHECKING:
    from tests.command_stage import Client, Stage
    from tests.granian_watcher import Kind

URL = "/v1/batch"
FEW = {"name": "few", "by": "subject", "limit": 3, "window": "60s", "commands": ["pipeline.list"]}


def echoes(count: int, **more: Any) -> bytes:
    operations = [{"command": "system.echo", "args": {"n": number}} for number in range(count)]
    return msgspec.json.encode({"operations": operations, **more})


def of(*names: str, **more: Any) -> bytes:
    return msgspec.json.encode({"operations": [{"command": name} for name in names], **more})


async def ask(at: Stage, body: bytes, **headers: str) -> Client:
    return await at.ask(body, {**bearer(roles=("admin",)), **headers}, path=URL)


def codes(reply: dict[str, Any]) -> list[str]:
    """How each operation went: its error's code, or its status."""
    assert list(range(len(reply["results"]))) == [result["index"] for result in reply["results"]]
    return [result.get("error", {}).get("code") or result["status"] for result in reply["results"]]


def without_times(document: Any) -> Any:
    """A document without its durations."""
    if isinstance(document, dict):
        return {name: without_times(part) for name, part in document.items() if name != "duration_us"}
    return [without_times(part) for part in document] if isinstance(document, list) else document


async def nothing_is_held(at: Stage) -> None:
    """Until everything that was taken has come back."""
    async with asyncio.timeout(20):
        while len(at.parts.upstream.express._native):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    upstream = at.parts.upstream
    (carrier,) = upstream._ready
    gate: Any = carrier.load._gate
    assert (0, 240, 128) == (upstream.in_flight, upstream._credits._value, upstream._grouped._value)
    assert {"ordinary": 0, "vital": 0, "grouped": 0} == gate._of


def test_a_plain_batch_is_answered_without_a_task() -> None:
    async def story() -> None:
        async with stage(cors_origins=("https://page.example",)) as at:
            headers = {"x-request-id": "mine", "origin": "https://page.example"}
            client = await ask(at, echoes(30), **headers)
            status, reply = await client.answer()
            assert (200, 0, list(range(30))) == (status, at.gone_on, [one["result"]["n"] for one in reply["results"]])
            assert [30] == at.daemon.batch_sizes[-1:]
            own = {**bearer(roles=("admin",)), **headers, "content-type": "application/json"}
            other = await at.gateway.client.post(URL, headers=own, content=echoes(30))
            assert without_times(other.json()) == without_times(reply)
            told = {name: value for name, value in client.headers.items() if not name.startswith("ratelimit")}
            expected = {name: value for name, value in other.headers.items() if not name.startswith("ratelimit")}
            assert {**expected, "date": told["date"], "content-length": told["content-length"]} == told
            assert ({"2xx": 2}, 60) == (at.requests(URL), at.parts.metrics.operations["system.echo", "ok"])
            assert {"authorise": 0, "dispatch": 0, "upstream": 2, "respond": 2, "record": 0} == at.phases()
            await nothing_is_held(at)

    asyncio.run(story())


@pytest.mark.parametrize(
    "body",
    [
        of("pipeline.list", "no.such", "pipeline.list"),
        of("pipeline.list", "pipeline.run"),
        of("plugin.list", "plugin.list", dry_run=True),
        of("pipeline.list", "pipeline.list", mode="ordered"),
        of("pipeline.list", "pipeline.list", fail_fast=True),
        of(*["pipeline.list"] * 5),
        of("system.echo", *["pipeline.list"] * 5, "system.echo"),
        of("pipeline.get", "system.echo", "pipeline.get", "pipeline.start"),
        echoes(200),
        b'{"operations":[]}',
        b'{"operations":[{"command":"system.echo","args":[]}]}',
        b"{",
    ],
    ids=str,
)
def test_it_says_what_the_general_way_says(body: bytes) -> None:
    """Whichever way it goes, and wherever it leaves it: a task knows nothing of rides."""

    async def told(*, rides: bool) -> tuple[int, Any, Any]:
        async with stage(rate_limits=(FEW,)) as at:
            at.daemon.answers["pipeline.get"] = lambda _: Conflict(code="already_running", retry_after_s=2.5)
            at.daemon.answers["pipeline.start"] = lambda _: ReplyFrame(result=b"{}", accepted_id="x1")
            headers = {"x-request-id": "mine"}
            if rides:
                status, document = await (await ask(at, body, **headers)).answer()
            else:
                own = {**bearer(roles=("admin",)), **headers, "content-type": "application/json"}
                answer = await at.gateway.client.post(URL, headers=own, content=body)
                status, document = answer.status_code, answer.json()
            await nothing_is_held(at)
            counted = dict(at.parts.metrics.operations), dict(at.parts.metrics.refusals), at.requests(URL)
            return status, without_times(document), counted

    async def story() -> None:
        assert await told(rides=False) == await told(rides=True)

    asyncio.run(story())


def test_what_has_an_ending_of_another_kind_goes_on_as_a_task() -> None:
    async def story() -> None:
        async with stage() as at:
            at.daemon.answers["pipeline.get"] = lambda _: Conflict()
            at.hold("plugin.list", 1)
            # The second is answered long after the first.
            status, reply = await (
                await ask(at, msgspec.json.encode({"operations": [
                    {"command": "pipeline.get"},
                    {"command": "plugin.list", "deadline_ms": 300},
                    {"command": "plugin.list"},
                    {"command": "system.echo"},
                ]}))
            ).answer()  # fmt: skip
            assert (200, ["conflict", "deadline_exceeded", "ok", "ok"]) == (status, codes(reply))
            assert ({"operations": 4, "ok": 2, "accepted": 0, "error": 2, "not_attempted": 0}, 1) == (
                reply["totals"],
                at.gone_on,
            )
            await nothing_is_held(at)

    asyncio.run(story())


def test_reads_whose_connection_breaks_are_sent_again() -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("pipeline.list", 2)
            client = await ask(at, of("pipeline.list", "pipeline.create", "pipeline.list", "system.echo"))
            await at.outstanding(4)
            connection: Any = at.parts.upstream._ready[0].connection
            connection._protocol.connection._transport.abort()
            status, reply = await client.answer()
            assert (200, ["ok"] * 4, 1) == (status, codes(reply), at.gone_on)
            again = [frame.command for frame in at.daemon.commands()[4:]]
            assert ["pipeline.list"] * 2 == [name for name in again if name == "pipeline.list"]
            # What came before the break is not asked for again.
            assert "pipeline.create" not in again or "pipeline.create" in [f.command for f in at.daemon.commands()[:4]]

    asyncio.run(story())


def test_a_caller_that_leaves_is_noticed() -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("plugin.list", 5)
            client = await ask(at, of("plugin.list", "system.echo", "plugin.list"))
            await at.outstanding(3)
            await client.leave()
            async with asyncio.timeout(20):
                while len(at.daemon.given_up) < 2:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.01)
            assert (0, 0, {"4xx": 1}) == (at.parts.upstream.in_flight, at.gone_on, at.requests(URL))

    asyncio.run(story())


def test_batches_wait_for_one_another_where_there_is_no_room_for_all() -> None:
    async def story() -> None:
        async with stage() as at:
            clients = await asyncio.gather(*(ask(at, echoes(30)) for _ in range(12)))
            answers = await asyncio.gather(*(client.answer() for client in clients))
            assert [["ok"] * 30] * 12 == [codes(reply) for _, reply in answers]
            assert 0 == at.gone_on
            # There is not even room for all of it: it goes in parts, as a task.
            _, reply = await (await ask(at, echoes(300))).answer()
            assert (["ok"] * 300, 1) == (codes(reply), at.gone_on)
            await nothing_is_held(at)

    asyncio.run(story())


def test_room_that_single_commands_leave_is_taken_at_once() -> None:
    async def story() -> None:
        async with stage() as at:
            gate: Any = at.parts.upstream._ready[0].load._gate
            # As if single commands had all of it.
            held = gate.enter_many(10_000)
            at.parts.upstream._credits.resize(-held)
            asked = await ask(at, echoes(10))
            async with asyncio.timeout(20):
                while not len(at.rides._queue):  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0)
            gate.leave("ordinary", held)
            at.parts.upstream._freed("call", held)
            assert (200, ["ok"] * 10, 0) == ((told := await asked.answer())[0], codes(told[1]), at.gone_on)
            await nothing_is_held(at)

    asyncio.run(story())


def test_where_nothing_is_let_in_nobody_waits() -> None:
    async def story() -> None:
        async with stage() as at:
            load: Any = at.parts.upstream._ready[0].load
            for _ in range(50):
                load.broke(at.parts.upstream._now(), 0.5)
            assert 0 == at.parts.upstream.largest_group
            status, reply = await (await ask(at, echoes(10))).answer()
            assert (200, {"upstream_unavailable"}, 1) == (status, set(codes(reply)), at.gone_on)

    asyncio.run(story())


def test_what_is_too_large_for_one_message_goes_in_several() -> None:
    async def story() -> None:
        async with stage() as at:
            # More than HTTP/2's first window, and more than one message may have.
            for size in (3_000, 12_000):
                text = "x" * size
                operations = [{"command": "system.echo", "args": {"n": n, "t": text}} for n in range(30)]
                status, reply = await (await ask(at, msgspec.json.encode({"operations": operations}))).answer()
                assert (200, 0) == (status, at.gone_on)
                assert [{"n": n, "t": text} for n in range(30)] == [result["result"] for result in reply["results"]]
            assert max(at.daemon.batch_sizes) <= 30
            await nothing_is_held(at)

    asyncio.run(story())


def test_who_waits_too_long_for_its_turn_leaves_in_parts() -> None:
    async def story() -> None:
        async with stage() as at:
            at.hold("plugin.list", 30)
            first = await ask(at, of(*["plugin.list"] * 30))
            await at.outstanding(30)
            second = await ask(at, echoes(30))
            status, reply = await second.answer()
            assert (200, ["ok"] * 30, 1) == (status, codes(reply), at.gone_on)
            assert 0 == len(at.rides._queue)
            await first.leave()

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["asgi", "rsgi"])
def test_what_is_over_is_forgotten_without_a_collector(kind: Kind) -> None:
    async def story() -> None:
        async with stage(rate_limits=(FEW,)) as at:
            at.daemon.answers["pipeline.get"] = lambda _: Conflict()
            gone = []
            for body in (echoes(30), of("system.echo", "pipeline.get"), of(*["pipeline.list"] * 5), echoes(90), b"{"):
                watcher = Watcher(kind, body, path=URL)
                assert taken(at, watcher)
                await watcher.answer()
                gone.append(weakref.ref(watcher.proto))
                # The test's own circle: a protocol of Granian's does not keep what it gave away.
                watcher.proto.asked.clear()
                del watcher
                for _ in range(9):
                    await asyncio.sleep(0)
            assert [None] * 5 == [it() for it in gone]

    gc.disable()
    try:
        asyncio.run(story())
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["asgi", "rsgi"])
@pytest.mark.parametrize("leaves", [False, True])
def test_what_a_group_has_taken_over_is_watched_by_its_exchange_alone(kind: Kind, leaves: bool) -> None:
    async def story() -> None:
        async with stage() as at:
            at.daemon.answers["pipeline.get"] = lambda _: Conflict()
            at.hold("plugin.list", 1)
            body = msgspec.json.encode({"operations": [
                {"command": "pipeline.get"}, {"command": "plugin.list", "deadline_ms": 900},
            ]})  # fmt: skip
            watcher = Watcher(kind, body, path=URL)
            assert taken(at, watcher)
            await at.outstanding(2)
            express: Any = at.parts.upstream.express
            async with asyncio.timeout(20):
                while not at.rides._rests:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.01)
            # The sweep that tells who takes long comes by.
            now = express._outstanding.now
            express._outstanding.now = lambda: now() + 0.5
            express._sweep()
            express._outstanding.now = now
            assert {} == at.rides._watches
            if leaves:
                watcher.proto.gone.set()
            else:
                assert ["conflict", "deadline_exceeded"] == codes((await watcher.answer())[1])
            async with asyncio.timeout(20):
                while at.rides._rests:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.01)
            assert 1 == sum(at.requests(URL).values())

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["asgi", "rsgi"])
def test_on_granians_faces_too(kind: Kind) -> None:
    async def story() -> None:
        async with stage() as at:
            watcher = Watcher(kind, echoes(30), path=URL)
            assert taken(at, watcher)
            status, reply = await watcher.answer()
            assert (200, ["ok"] * 30) == (status, codes(reply))
            at.daemon.answers["pipeline.get"] = lambda _: Conflict()
            watcher = Watcher(kind, of("system.echo", "pipeline.get"), path=URL)
            assert taken(at, watcher)
            assert ["ok", "conflict"] == codes((await watcher.answer())[1])
            # A stream of lines is for the general way from the first word.
            lines = {"accept": "text/html, Application/X-NDJSON"}
            assert not taken(at, Watcher(kind, echoes(3), path=URL, headers=lines))
            at.parts.server_thread.decided.clear()
            await nothing_is_held(at)

    asyncio.run(story())


def test_nothing_is_remembered_of_bodies_that_nobody_waits_for() -> None:
    """Batches, and what is no plain command, wait for no others: what was asked for before is forgotten by the next."""

    async def story() -> None:
        async with stage() as at:
            for body, path in [(echoes(2), URL)] * 40 + [(b'{"command": "no.such"}', "/v1/execute")] * 40:
                client = await at.ask(body, bearer(roles=("admin",)), path=path)
                await client.answer()
            assert at.rides.hall.asked < 10

    asyncio.run(story())
