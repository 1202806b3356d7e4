"""One key, one effect: every command that changes something, repeated in every way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import func, select
from tests.daemon.daemon_parts import ADMIN, parts, turn

from flx_api.commands import COMMANDS
from flx_api.daemon.journal.journal import KEYS_KEPT_US
from flx_api.daemon.journal.tables import idempotency
from flx_api.daemon.trust import Gateway
from flx_api.models.envelope import MADE_KEY
from flx_api.models.pipeline import Deleted
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, Principal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon.daemon_parts import Parts

    from flx_api.daemon.handlers import Context

BOB = Principal(subject="bob", tenant="default", roles=["admin"], token_id="t-bob", expires_at=1_700_009_999)
ANN = Principal(subject="ann", tenant="default", roles=["admin"], token_id="t-ann", expires_at=1_700_009_999)
TASKS = {"tasks": [["tap-a", "target-b"]]}
USER = {"username": "u", "password": "long enough", "roles": ["viewer"]}

# Each command, its arguments, and other ones that are as good by themselves.
CHANGES: dict[str, tuple[Any, Any]] = {
    "pipeline.create": ({"name": "new", **TASKS}, {"name": "newer", **TASKS}),
    "pipeline.update": ({"id": "old", "description": "x"}, {"id": "old", "description": "y"}),
    "pipeline.delete": ({"id": "old"}, {"id": "older"}),
    "auth.logout": ({}, {"everywhere": True}),
    "token.revoke": ({"jti": "a"}, {"jti": "b"}),
    "token.restore": ({"id": "?"}, {"id": "other"}),
    "schedule.enable": ({"name": "nightly"}, {"name": "weekly"}),
    "schedule.disable": ({"name": "nightly"}, {"name": "weekly"}),
    "event.publish": ({"topic": "app.a"}, {"topic": "app.b"}),
    "connection.disconnect": ({"subject": "a"}, {"client_id": "a"}),
    "user.add": (USER, {**USER, "password": "another one"}),
    "user.update": ({"username": "v", "password": "long enough"}, {"username": "v", "password": "another one"}),
}
# Runs need executions: tests/daemon/executions/test_handlers.py, tests/daemon/schedules/test_schedules.py.
ELSEWHERE = {"pipeline.run", "schedule.run", "execution.cancel", "execution.retry"}


async def set_up(daemon: Parts, command: str) -> Any:
    """What the command's arguments speak of; the arguments."""
    for name in ("old", "older"):
        await daemon.result("pipeline.create", {"name": name, **TASKS})
    await daemon.result("user.add", {**USER, "username": "v"})
    if command == "token.restore":
        return {"id": (await daemon.result("token.revoke", {"jti": "z"}))["id"]}
    return CHANGES[command][0]


def test_no_command_that_changes_something_is_forgotten() -> None:
    changing = {name for name, command in COMMANDS.items() if command.idempotency in {"key", "idempotent"}}
    assert changing == set(CHANGES) | ELSEWHERE


@pytest.mark.parametrize("key", ["k", MADE_KEY + "0123"])
@pytest.mark.parametrize("command", CHANGES)
def test_a_key_lets_a_change_happen_once(tmp_path: Path, command: str, key: str) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            args = await set_up(daemon, command)
            first = await daemon.run(command, args, idempotency_key=key, principal=ANN)
            assert (first.code, first.replayed) == ("", False), first
            seq = daemon.journal.seq
            daemon.clock.now_us += KEYS_KEPT_US - 1
            again = await daemon.run(command, args, idempotency_key=key, principal=ANN)
            assert (again.code, again.replayed, again.result) == ("", True, first.result)
            other = await daemon.problem(command, CHANGES[command][1], idempotency_key=key, principal=ANN)
            assert other["code"] == "idempotency_key_reuse"
            elsewhere = await daemon.problem("pipeline.delete", {"id": "?"}, idempotency_key=key, principal=ANN)
            assert elsewhere["code"] == "idempotency_key_reuse"
            assert daemon.journal.seq == seq
            # Another subject's same key is another one: whatever becomes of it, it is no repetition.
            assert not (await daemon.run(command, args, idempotency_key=key, principal=BOB)).replayed

    asyncio.run(story())


@pytest.mark.parametrize("project", ["jobs: [", "version: 1\nproject_id: test\n"])
@pytest.mark.parametrize("command", CHANGES)
def test_whatever_became_of_the_project_a_repetition_is_answered_as_before(
    tmp_path: Path, command: str, project: str
) -> None:
    """The file cannot be read any more, or what the command spoke of is no longer in it."""

    async def story() -> None:
        async with parts(tmp_path) as daemon:
            args = await set_up(daemon, command)
            first = await daemon.run(command, args, idempotency_key="k", principal=ANN)
            assert first.code == ""
            (tmp_path / "meltano.yml").write_text(project, encoding="utf-8")
            await turn()
            again = await daemon.run(command, args, idempotency_key="k", principal=ANN)
            assert (again.code, again.replayed, again.result) == ("", True, first.result)
            if command.startswith("schedule."):
                expected = "project_invalid" if project == "jobs: [" else "not_found"
                assert (await daemon.problem(command, args, principal=ANN))["code"] == expected

    asyncio.run(story())


def test_the_same_request_may_be_written_otherwise(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await daemon.result("token.revoke", b'{"jti":"a","reason":"b"}', idempotency_key="k")
            again = await daemon.run("token.revoke", b'{ "reason": "b",  "jti": "\\u0061" }', idempotency_key="k")
            assert again.replayed
            for other in (b'{"jti":"a"}', b'{"jti":"a","reason":"c"}', b"{", b"\xff"):
                assert not (await daemon.run("token.revoke", other, idempotency_key="k")).replayed

    asyncio.run(story())


def test_a_refusal_is_not_kept(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            gone = await daemon.problem("pipeline.delete", {"id": "later"}, idempotency_key="k")
            assert gone["code"] == "not_found"
            await daemon.result("pipeline.create", {"name": "later", **TASKS}, idempotency_key="c")
            done = await daemon.run("pipeline.delete", {"id": "later"}, idempotency_key="k")
            assert (done.code, done.replayed) == ("", False)

    asyncio.run(story())


def test_a_key_is_known_for_a_day_and_then_forgotten(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:

            async def keys() -> int:
                await daemon.journal.prune(0, 1000)
                with daemon.journal.read() as connection:
                    return connection.execute(select(func.count()).select_from(idempotency)).scalar_one()

            await daemon.result("token.revoke", {"jti": "a"}, idempotency_key="k")
            daemon.clock.now_us += 24 * 3600 * 1_000_000
            assert await keys() == 1
            assert (await daemon.run("token.revoke", {"jti": "a"}, idempotency_key="k")).replayed
            daemon.clock.now_us += 1
            assert await keys() == 0
            assert not (await daemon.run("token.revoke", {"jti": "b"}, idempotency_key="k")).code

    asyncio.run(story())


def test_a_password_cannot_be_guessed_from_what_is_kept(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            hashes = []
            for number, key in enumerate(("k", "l")):
                await daemon.result("user.add", {**USER, "username": f"u{number}"}, idempotency_key=key)
            with daemon.journal.read() as connection:
                hashes = list(connection.execute(select(idempotency.c.body_hash, idempotency.c.result)))
            assert len({row.body_hash for row in hashes}) == 2
            first = await daemon.users.digest(msgspec.json.encode({**USER, "username": "u0"}), "k")
            assert first in {row.body_hash for row in hashes}
            # The same in another row, of another key, looks different: nothing can be looked up in a table.
            assert first != await daemon.users.digest(msgspec.json.encode({**USER, "username": "u0"}), "l")
            assert not any(b"long enough" in row.result for row in hashes)

    asyncio.run(story())


@pytest.mark.parametrize("key", ["k" * 256, "q w", "q\nw", "\x7f", "ä", "\0"])
def test_keys_that_are_none(tmp_path: Path, key: str) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            refused = await daemon.problem("token.revoke", {"jti": "a"}, idempotency_key=key)
            assert refused["code"] == "invalid_request"
            assert "q" not in refused["detail"]

    asyncio.run(story())


def test_a_repetition_that_cannot_wait_for_the_first_is_told_so(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            go = asyncio.Event()

            async def slow(_context: Context, _args: Any) -> Deleted:
                await go.wait()
                return Deleted("x")

            dispatcher = daemon.dispatcher({"pipeline.delete": slow})
            deadline = daemon.clock.now_us // 1000 + 1

            def frame(key: str, **more: Any) -> CommandFrame:
                args = b'{"id":"x"}'
                return CommandFrame(command="pipeline.delete", args=args, principal=ADMIN, idempotency_key=key, **more)

            first = asyncio.create_task(dispatcher.carry_out(frame("k"), Gateway()))
            await turn()
            second = await dispatcher.carry_out(frame("k", deadline_unix_ms=deadline), Gateway())
            assert second.code == "idempotency_in_progress"
            # Another key's is simply late.
            alone = await dispatcher.carry_out(frame("l", deadline_unix_ms=deadline), Gateway())
            assert alone.code == "deadline_exceeded"
            go.set()
            assert (await first).code == ""
            await dispatcher.close(5)
            go.clear()
            late = await dispatcher.carry_out(frame("k", deadline_unix_ms=deadline), Gateway())
            assert late.code == "deadline_exceeded", "what is over is not in the way"
            go.set()
            await dispatcher.close(5)

    asyncio.run(story())
