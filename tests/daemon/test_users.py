"""Logging in, and how that is slowed down."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import argon2
import msgspec
import pytest
from sqlalchemy import select, update
from tests.daemon.daemon_parts import parts, turn

from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.daemon.journal.tables import users as table
from flx_api.daemon.users import Users, default_hasher
from flx_api.errors import RateLimited, Unauthenticated, Unavailable
from flx_api.proto.flx.v1.daemon_pb2 import Principal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon.daemon_parts import Parts


async def bob(daemon: Parts) -> None:
    await daemon.users.add("bob", "correct horse", ("viewer",), DEFAULT_TENANT)


async def fails(daemon: Parts, name: str, address: str = "") -> None:
    with pytest.raises(Unauthenticated):
        await daemon.users.log_in(name, "wrong", address)


def test_the_default_is_what_owasp_asks_for() -> None:
    hasher = default_hasher()
    assert (hasher.type, hasher.memory_cost, hasher.time_cost, hasher.parallelism) == (
        argon2.Type.ID,
        19 * 1024,
        2,
        1,
    )


def test_the_sixth_wrong_login_must_wait_and_other_users_need_not(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            await daemon.users.add("eve", "correct horse", ("viewer",), DEFAULT_TENANT)
            for number in range(5):
                await fails(daemon, "bob", f"10.0.0.{number}")
            with pytest.raises(RateLimited) as refused:
                await daemon.users.log_in("bob", "correct horse", "10.0.0.9")
            assert refused.value.retry_after_s == 1
            assert (await daemon.users.log_in("eve", "correct horse", "10.0.0.9")).username == "eve"
            daemon.clock.now_us += 1_000_000
            assert (await daemon.users.log_in("bob", "correct horse", "10.0.0.9")).roles == ("viewer",)

    asyncio.run(story())


def test_one_address_cannot_try_many_accounts(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            for number in range(5):
                await fails(daemon, f"user{number}", "10.0.0.1")
            with pytest.raises(RateLimited):
                await daemon.users.log_in("bob", "correct horse", "10.0.0.1")

    asyncio.run(story())


def test_the_addresses_of_one_network_are_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            for number in range(5):
                await fails(daemon, f"user{number}", f"2001:db8::{number}")
            with pytest.raises(RateLimited):
                await daemon.users.log_in("bob", "correct horse", "2001:db8::ffff")
            assert await daemon.users.log_in("bob", "correct horse", "2001:db8:0:1::1")

    asyncio.run(story())


def test_an_account_of_ones_own_gives_no_tries_of_others_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            for number in range(5):
                assert await daemon.users.log_in("bob", "correct horse", "10.0.0.1")
                await fails(daemon, f"user{number}", "10.0.0.1")
            with pytest.raises(RateLimited):
                await daemon.users.log_in("user9", "wrong", "10.0.0.1")

    asyncio.run(story())


def test_whoever_gets_in_after_all_has_not_failed(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            for _ in range(3):
                for _ in range(4):
                    await fails(daemon, "bob", "10.0.0.1")
                assert await daemon.users.log_in("bob", "correct horse", "10.0.0.1")

    asyncio.run(story())


def test_a_database_that_is_away_is_nobodys_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)

            def away(_username: str) -> None:
                raise Unavailable(code="storage_unavailable")

            with monkeypatch.context() as patched:
                patched.setattr(daemon.users, "_find", away)
                for _ in range(9):
                    with pytest.raises(Unavailable):
                        await daemon.users.log_in("bob", "correct horse", "10.0.0.1")
            assert await daemon.users.log_in("bob", "correct horse", "10.0.0.1")

    asyncio.run(story())


def test_tries_at_the_same_time_are_counted_one_by_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            tries = (daemon.users.log_in("bob", "wrong", "") for _ in range(20))
            results = await asyncio.gather(*tries, return_exceptions=True)
            kinds = [type(result) for result in results]
            assert kinds == [Unauthenticated] * 5 + [RateLimited] * 15

    asyncio.run(story())


def test_an_unknown_user_costs_a_hash_too(tmp_path: Path) -> None:
    class Counting(argon2.PasswordHasher):
        verified = 0

        def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002
            self.verified += 1
            return super().verify(hash, password)

    async def story() -> None:
        async with parts(tmp_path) as daemon:
            hasher = Counting(time_cost=1, memory_cost=8, parallelism=1)
            users = Users(daemon.journal, daemon.clock, hasher)
            with pytest.raises(Unauthenticated):
                await users.log_in("nobody", "wrong", "")
            # The password of the dummy itself opens nothing either.
            with pytest.raises(Unauthenticated):
                await users.log_in("nobody", "", "")
            assert hasher.verified == 2
            users.close()

    asyncio.run(story())


def test_a_hash_with_old_parameters_is_renewed_when_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            newer = Users(
                daemon.journal, daemon.clock, argon2.PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
            )

            async def full(_change: object) -> None:
                raise Unavailable(code="insufficient_storage")

            with monkeypatch.context() as patched:
                patched.setattr(daemon.journal, "write", full)
                assert await newer.log_in("bob", "correct horse", "")
            await newer.log_in("bob", "correct horse", "")
            with daemon.journal.read() as connection:
                assert "m=16,t=2,p=1" in connection.execute(select(table.c.password_hash)).scalar_one()
            await newer.log_in("bob", "correct horse", "")
            newer.close()

    asyncio.run(story())


def test_a_disabled_user_cannot_log_in(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            await daemon.journal.write(lambda tx: tx.connection.execute(update(table).values(disabled=True)).rowcount)
            with pytest.raises(Unauthenticated):
                await daemon.users.log_in("bob", "correct horse", "")

    asyncio.run(story())


def test_a_change_of_a_user_ends_its_tokens_with_one_event(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            before = daemon.journal.seq
            changed = await daemon.result("user.update", {"username": "bob", "roles": ["operator"]})
            assert (changed["roles"], changed["disabled"], changed["tenant"]) == (["operator"], False, "default")
            (event,) = daemon.journal.events_after(before, 10)
            told = msgspec.json.decode(event.data)
            assert (event.topic, told["type"], told["kind"], told["value"]) == (
                "revocation_events",
                "revoked",
                "subject",
                "bob",
            )
            assert told["issued_before"] == daemon.clock.now_us // 1_000_000
            assert (await daemon.users.log_in("bob", "correct horse", "")).roles == ("operator",)
            assert (await daemon.result("user.update", {"username": "bob", "disabled": True}))["disabled"] is True
            await fails(daemon, "bob")
            with pytest.raises(Unauthenticated):
                await daemon.users.log_in("bob", "correct horse", "")
            last = daemon.journal.seq
            await daemon.result("user.update", {"username": "bob", "disabled": False})
            assert daemon.journal.seq == last, "to enable a user ends nothing"
            await daemon.result("user.update", {"username": "bob", "password": "battery staple"})
            assert (await daemon.users.log_in("bob", "battery staple", "")).username == "bob"
            await fails(daemon, "bob")

    asyncio.run(story())


def test_what_cannot_be_changed_about_a_user(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            assert (await daemon.problem("user.update", {"username": "bob"}))["code"] == "validation_failed"
            odd = await daemon.problem("user.update", {"username": "bob", "roles": ["root"]})
            assert [error["field"] for error in odd["errors"]] == ["args.roles[0]"]
            assert (await daemon.problem("user.update", {"username": "eve", "disabled": True}))["code"] == "not_found"
            eve = Principal(subject="eve", tenant="other", roles=["admin"])
            others = await daemon.problem("user.update", {"username": "bob", "disabled": True}, principal=eve)
            assert others["code"] == "not_found"

    asyncio.run(story())


def test_while_a_change_is_written_down_nobody_logs_in(tmp_path: Path) -> None:
    """The change ends tokens of until when it was made: one that is made before it is stored would outlive it."""

    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            write, stored = daemon.journal.write, asyncio.Event()

            async def slowly(change: Any) -> Any:
                await stored.wait()
                return await write(change)

            daemon.journal.write = slowly  # type: ignore[assignment, method-assign]
            change = asyncio.create_task(daemon.result("user.update", {"username": "bob", "disabled": True}))
            await turn()
            with pytest.raises(Unavailable, match="being changed"):
                await daemon.users.log_in("bob", "correct horse", "")
            stored.set()
            await change
            with pytest.raises(Unauthenticated):
                await daemon.users.log_in("bob", "correct horse", "")

    asyncio.run(story())


def test_a_login_that_was_overtaken_by_a_change_makes_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await bob(daemon)
            verify = daemon.users._verify
            loop = asyncio.get_running_loop()

            def slowly(password_hash: str, password: str) -> bool:
                change = daemon.result("user.update", {"username": "bob", "roles": ["operator"]})
                asyncio.run_coroutine_threadsafe(change, loop).result(10)
                return verify(password_hash, password)

            monkeypatch.setattr(daemon.users, "_verify", slowly)
            with pytest.raises(Unauthenticated):
                await daemon.users.log_in("bob", "correct horse", "")

    asyncio.run(story())
