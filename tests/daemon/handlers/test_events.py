"""`event.publish`: into the journal, once for a key, for its tenant."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.daemon_parts import parts

from flx_api.proto.flx.v1.daemon_pb2 import Principal

if TYPE_CHECKING:
    from pathlib import Path

PUBLISH = "event.publish"


def test_what_is_published_is_in_the_journal(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            before = daemon.journal.seq
            other = Principal(subject="eve", tenant="other", roles=["developer"])
            first = await daemon.result(PUBLISH, {"topic": "app.a.b", "data": {"n": 1}})
            await daemon.result(PUBLISH, {"topic": "app.a.b", "data": None}, principal=other)
            again = await daemon.result(PUBLISH, {"topic": "app.a.b", "data": [2]})
            mine = await daemon.result(PUBLISH, {"topic": "user.eve@example.com"})
            rows = list(daemon.journal.events_after(before, 10))
            # Each tenant has its own chain.
            assert [
                (first["seq"], 0, "app.a.b", "default", b'{"n":1}'),
                (first["seq"] + 1, 0, "app.a.b", "other", b"null"),
                (again["seq"], first["seq"], "app.a.b", "default", b"[2]"),
                (mine["seq"], 0, "user.eve@example.com", "default", b"null"),
            ] == [(row.seq, row.prev, row.topic, row.tenant, row.data) for row in rows]

    asyncio.run(story())


def test_it_happens_once_for_a_key(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            args = {"topic": "app.a", "data": 1}
            found = [await daemon.result(PUBLISH, args, idempotency_key="k") for _ in range(2)]
            assert found[0] == found[1]
            assert daemon.journal.seq == found[0]["seq"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({"topic": "system_events.x"}, "topic"),
        ({"topic": "bench.a"}, "topic"),
        ({"topic": "application.a"}, "topic"),
        ({"topic": "app."}, "topic"),
        ({"topic": "app"}, "topic"),
        ({"topic": "app.*"}, "topic"),
        ({"topic": "app.a", "count": 2}, "count"),
        ({"topic": "revocation_events.x", "ephemeral": True}, "topic"),
        ({"topic": "app.a", "data": "x" * 65_535}, "data"),
    ],
)
def test_what_cannot_be_published_is_named(tmp_path: Path, args: dict[str, Any], field: str) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            before = daemon.journal.seq
            problem = await daemon.problem(PUBLISH, args)
            assert ("validation_failed", [f"args.{field}"]) == (
                problem["code"],
                [error["field"] for error in problem["errors"]],
            )
            assert before == daemon.journal.seq

    asyncio.run(story())


def test_a_dry_run_publishes_nothing_and_an_operator_may_not(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            before = daemon.journal.seq
            plan = await daemon.result(PUBLISH, {"topic": "app.a"}, dry_run=True)
            assert "ok" == plan["outcome"]
            operator = Principal(subject="o", tenant="default", roles=["operator"])
            assert "forbidden" == (await daemon.problem(PUBLISH, {"topic": "app.a"}, principal=operator))["code"]
            assert before == daemon.journal.seq

    asyncio.run(story())


def test_an_ephemeral_event_is_told_and_in_no_journal(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            before, log = daemon.journal.seq, daemon.services.ephemeral
            args = {"topic": "app.a", "data": {"n": 1}, "ephemeral": True}
            assert {"count": 1, "took_us": 0} == await daemon.result(PUBLISH, args, idempotency_key="k")
            await daemon.result(PUBLISH, args, idempotency_key="k")
            await daemon.result(PUBLISH, args, dry_run=True)
            other = Principal(subject="eve", tenant="other", roles=["developer"])
            await daemon.result(PUBLISH, args, principal=other, idempotency_key="k")
            assert (before, 2) == (daemon.journal.seq, log.seq)
            told = [("default", "app.a", b'{"n":1}'), ("other", "app.a", b'{"n":1}')]
            assert told == [(event.tenant, event.topic, event.data) for event in log.after(0, 9, 9_999)]

    asyncio.run(story())


def test_a_key_of_another_ephemeral_event_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            args = {"topic": "app.a", "data": 1, "ephemeral": True}
            await daemon.result(PUBLISH, args, idempotency_key="k")
            problem = await daemon.problem(PUBLISH, {**args, "data": 2}, idempotency_key="k")
            assert "idempotency_key_reuse" == problem["code"]
            await daemon.result(PUBLISH, args, idempotency_key="k")
            assert 1 == daemon.services.ephemeral.seq

    asyncio.run(story())


def test_who_is_present_is_for_a_gateway_to_say(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            assert "conflict" == (await daemon.problem("presence.list", {"topic": "app.a"}))["code"]

    asyncio.run(story())
