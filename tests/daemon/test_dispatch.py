"""From frame to reply, with handlers of the test's own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.daemon.daemon_parts import ADMIN, parts, turn

from flx_api.daemon.handlers import Accepted
from flx_api.daemon.trust import Gateway, Nobody
from flx_api.models.pipeline import Deleted
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, Principal, ReplyFrame

if TYPE_CHECKING:
    from pathlib import Path

    from flx_api.daemon.handlers import Context

VIEWER = Principal(subject="v", tenant="default", roles=["viewer"])


def test_refusals_before_the_handler(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            unknown = await daemon.problem("pipeline.lst")
            assert (unknown["code"], unknown["suggestions"][0]) == ("unknown_command", "pipeline.list")
            assert (await daemon.problem("pipeline.list", principal=None))["code"] == "missing_token"
            assert (await daemon.problem("user.add", principal=VIEWER))["code"] == "forbidden"
            late = daemon.clock.now_us // 1000 - 1
            assert (await daemon.problem("pipeline.list", deadline_unix_ms=late))["code"] == "deadline_exceeded"
            late_too = await daemon.problem("pipeline.list", deadline_unix_ms=late, dry_run=True)
            assert late_too["code"] == "deadline_exceeded"
            await daemon.result("pipeline.list", b"")

    asyncio.run(story())


def test_a_read_is_cancelled_at_its_deadline(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            ended = asyncio.Event()

            async def forever(_context: Context, _args: Any) -> Deleted:
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()
                raise AssertionError

            dispatcher = daemon.dispatcher({"pipeline.get": forever})
            deadline = daemon.clock.now_us // 1000 + 1
            frame = CommandFrame(command="pipeline.get", args=b'{"id":"x"}', principal=ADMIN, deadline_unix_ms=deadline)
            assert (await dispatcher.carry_out(frame, Gateway())).code == "deadline_exceeded"
            await ended.wait()

    asyncio.run(story())


def test_a_change_goes_on_when_its_answer_is_given_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            go, done = asyncio.Event(), []

            async def slow(_context: Context, _args: Any) -> Deleted:
                await go.wait()
                done.append(1)
                return Deleted("x")

            dispatcher = daemon.dispatcher({"pipeline.delete": slow})
            deadline = daemon.clock.now_us // 1000 + 1
            frame = CommandFrame(command="pipeline.delete", args=b'{"id":"x"}', principal=ADMIN)
            timed = CommandFrame(deadline_unix_ms=deadline)
            timed.MergeFrom(frame)
            assert (await dispatcher.carry_out(timed, Gateway())).code == "deadline_exceeded"
            abandoned = asyncio.create_task(dispatcher.carry_out(frame, Gateway()))
            await turn()
            abandoned.cancel()
            await asyncio.gather(abandoned, return_exceptions=True)
            go.set()
            await dispatcher.close(5)
            assert done == [1, 1]

    asyncio.run(story())


def test_each_change_has_its_own_end_whichever_came_first(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            go, told = asyncio.Event(), []

            async def slow(_context: Context, args: Any) -> Deleted:
                await go.wait()
                return Deleted(args.id)

            dispatcher = daemon.dispatcher({"pipeline.delete": slow})
            began_ms = daemon.clock.now_us // 1000

            async def ask(name: str, left_ms: int) -> None:
                args = b'{"id":"%b"}' % name.encode()
                frame = CommandFrame(command="pipeline.delete", args=args, principal=ADMIN)
                frame.deadline_unix_ms = began_ms + left_ms
                told.append((name, (await dispatcher.carry_out(frame, Gateway())).code))

            waiting = asyncio.gather(*(ask(*one) for one in [("a", 60_000), ("b", 60), ("c", 20), ("d", 40)]))
            while len(told) < 3:
                await turn()
            assert told == [(name, "deadline_exceeded") for name in "cdb"]
            go.set()
            await waiting
            assert told[3] == ("a", "")

    asyncio.run(story())


def test_a_fault_of_ours_is_internal_and_tells_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            path = "/a/path of this machine"

            async def breaks(_context: Context, _args: Any) -> Deleted:
                raise TimeoutError(path)

            def breaks_at_once(_context: Context, _args: Any) -> Deleted:
                raise KeyError(path)

            dispatcher = daemon.dispatcher({"pipeline.get": breaks, "pipeline.list": breaks_at_once})
            for name in ("pipeline.get", "pipeline.list"):
                args = b'{"id":"x"}' if name == "pipeline.get" else b"{}"
                reply = await dispatcher.carry_out(CommandFrame(command=name, args=args, principal=ADMIN), Gateway())
                assert reply.code == "internal"
                assert b"path" not in reply.problem

    asyncio.run(story())


def test_an_accepted_command_carries_its_execution(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            seen: list[Context] = []

            def accept(context: Context, _args: Any) -> Accepted:
                seen.append(context)
                return Accepted(Deleted("e1"), "e1", replayed=True)

            dispatcher = daemon.dispatcher({"pipeline.run": accept})
            frame = CommandFrame(seq=3, command="pipeline.run", args=b'{"id":"x"}', principal=ADMIN, wait_ms=5)
            frame.idempotency_key, frame.environment, frame.client_address = "k", "prod", "10.0.0.1"
            reply = dispatcher.prepare(frame, Gateway())
            assert isinstance(reply, ReplyFrame)
            assert (reply.seq, reply.accepted_id, reply.replayed) == (3, "e1", True)
            frame.environment = "dev"
            dispatcher.prepare(frame, Gateway())
            first, second = seen
            assert (first.idempotency_key, first.wait_ms, first.client_address) == ("k", 5, "10.0.0.1")
            assert first.body_hash != second.body_hash

    asyncio.run(story())


def test_only_a_gateway_says_where_a_command_comes_from(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            seen: list[str] = []

            def log_in(context: Context, _args: Any) -> Deleted:
                seen.append(context.client_address)
                return Deleted("x")

            dispatcher = daemon.dispatcher({"auth.login": log_in})
            args = b'{"username":"bob","password":"wrong"}'
            frame = CommandFrame(command="auth.login", args=args, client_address="10.0.0.1")
            for caller in (Gateway(), Nobody("9.9.9.9")):
                dispatcher.prepare(frame, caller)
            assert seen == ["10.0.0.1", "9.9.9.9"]

    asyncio.run(story())
