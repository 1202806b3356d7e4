"""Revocations in the daemon: commands, rows, events, retention."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import func, select
from tests.daemon.daemon_parts import ADMIN, Parts, parts

from flx_api._core import Revocations as NativeSet
from flx_api.daemon.journal import Journal
from flx_api.daemon.journal.tables import revocations
from flx_api.daemon.revocations import KEPT_S, Revocations
from flx_api.errors import Unavailable
from flx_api.models.auth import STILL_S
from flx_api.proto.flx.v1.daemon_pb2 import Principal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

NOW_S = 1_700_000_000
YEAR_S = KEPT_S
EVE = Principal(subject="eve", tenant="other", roles=["admin"])
BOB = Principal(subject="bob", tenant="default", roles=[], token_id="bobs", expires_at=NOW_S + 60)


def play(folder: Path, story: Callable[[Parts], Coroutine[Any, Any, None]]) -> None:
    async def staged() -> None:
        async with parts(folder) as daemon:
            await story(daemon)

    asyncio.run(staged())


def events(daemon: Parts) -> list[tuple[str, str, dict[str, Any]]]:
    return [(row.topic, row.tenant, msgspec.json.decode(row.data)) for row in daemon.journal.events_after(0, 100)]


def rows(daemon: Parts) -> int:
    with daemon.journal.read() as connection:
        return connection.execute(select(func.count()).select_from(revocations)).scalar_one()


def test_a_revocation_is_a_row_and_an_event_and_is_listed_until_it_is_taken_back(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        args = {"jti": "a", "expires_at": NOW_S + 60, "reason": "lost"}
        made = await daemon.result("token.revoke", args)
        expected = {
            "kind": "jti",
            "value": "a",
            "tenant": "default",
            "issued_before": None,
            "expires_at": NOW_S + 60,
            "reason": "lost",
            "created_by": "ann",
        }
        assert expected == {name: made[name] for name in expected}
        assert [made] == (await daemon.result("token.revocations"))["items"]
        (event,) = events(daemon)
        told = {"type": "revoked", "kind": "jti", "value": "a", "issued_before": None, "expires_at": NOW_S + 60}
        assert ("revocation_events", "default", told) == event
        assert made == await daemon.result("token.restore", {"id": made["id"]})
        assert {"items": [], "next_cursor": None} == await daemon.result("token.revocations")
        assert ("restored", "a") == (events(daemon)[1][2]["type"], events(daemon)[1][2]["value"])
        assert "not_found" == (await daemon.problem("token.restore", {"id": made["id"]}))["code"]

    play(tmp_path, story)


def test_each_kind_has_bounds_of_its_own_when_none_are_given(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        bounds = {}
        for kind in ("jti", "session", "subject", "key"):
            made = await daemon.result("token.revoke", {kind: "x"})
            bounds[kind] = (made["issued_before"], made["expires_at"])
        assert {
            "jti": (None, NOW_S + YEAR_S),
            "session": (None, NOW_S + YEAR_S),
            "subject": (NOW_S, NOW_S + YEAR_S),
            "key": (None, None),
        } == bounds

    play(tmp_path, story)


def test_revoking_again_widens_and_never_narrows(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        first = await daemon.result("token.revoke", {"subject": "x", "issued_before": 50, "reason": "one"})
        again = await daemon.result("token.revoke", {"subject": "x", "issued_before": 40})
        assert first == again
        daemon.clock.now_us += 1_000_000
        later = await daemon.result("token.revoke", {"subject": "x", "reason": "two"})
        assert (first["id"], NOW_S + 1, "two") == (later["id"], later["issued_before"], later["reason"])
        other = await daemon.result("token.revoke", {"subject": "x"}, principal=EVE)
        assert other["id"] != first["id"]
        forever = await daemon.result("token.revoke", {"key": "k", "expires_at": NOW_S + 60})
        assert forever["expires_at"] == NOW_S + 60
        forever = await daemon.result("token.revoke", {"key": "k"})
        assert forever["expires_at"] is None
        forever = await daemon.result("token.revoke", {"key": "k", "expires_at": NOW_S + 60})
        assert forever["expires_at"] is None

    play(tmp_path, story)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"jti": "a", "subject": "b"},
        {"jti": ""},
        {"jti": "a\0b"},
        {"jti": "x" * 1025},
        {"jti": 1},
        {"jti": "a", "expires_at": NOW_S},
        {"jti": "a", "expires_at": -1},
        {"jti": "a", "expires_at": 1e300},
        {"jti": "a", "issued_before": "now"},
        {"jti": "a", "reason": "x" * 1001},
        {"kid": "a"},
    ],
)
def test_arguments_that_mean_nothing_are_refused_and_change_nothing(tmp_path: Path, args: dict[str, Any]) -> None:
    async def story(daemon: Parts) -> None:
        problem = await daemon.problem("token.revoke", args)
        assert "validation_failed" == problem["code"]
        assert problem["errors"]
        assert (0, []) == (rows(daemon), events(daemon))

    play(tmp_path, story)


def test_tenants_neither_see_nor_touch_each_others_and_keys_are_of_the_service(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        made = await daemon.result("token.revoke", {"jti": "a"})
        assert [] == (await daemon.result("token.revocations", principal=EVE))["items"]
        restore = await daemon.problem("token.restore", {"id": made["id"]}, principal=EVE)
        assert "not_found" == restore["code"]
        assert "forbidden" == (await daemon.problem("token.revoke", {"key": "k"}, principal=EVE))["code"]
        assert 1 == rows(daemon)

    play(tmp_path, story)


@pytest.mark.parametrize("command", ["token.revoke", "token.revocations", "token.restore"])
@pytest.mark.parametrize("role", ["viewer", "operator", "developer"])
def test_only_an_admin_may(tmp_path: Path, command: str, role: str) -> None:
    async def story(daemon: Parts) -> None:
        who = Principal(subject="x", tenant="default", roles=[role])
        assert "forbidden" == (await daemon.problem(command, {}, principal=who))["code"]

    play(tmp_path, story)


def test_pages_are_newest_first_and_hold_everything_once(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        for number in range(5):
            await daemon.result("token.revoke", {"jti": f"t{number}"})
        await daemon.result("token.revoke", {"subject": "s"})
        seen, cursor = [], None
        while True:
            args = {"limit": 2, "kind": "jti"} | ({} if cursor is None else {"cursor": cursor})
            page = await daemon.result("token.revocations", args)
            seen += [item["value"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert ["t4", "t3", "t2", "t1", "t0"] == seen

    play(tmp_path, story)


def test_whoever_has_a_token_may_end_it(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        assert {"revoked": "jti"} == await daemon.result("auth.logout", principal=BOB)
        (found,) = (await daemon.result("token.revocations"))["items"]
        assert ("jti", "bobs", NOW_S + 60, "bob") == (
            found["kind"],
            found["value"],
            found["expires_at"],
            found["created_by"],
        )
        in_session = Principal(subject="bob", token_id="other", session="s1")
        assert {"revoked": "session"} == await daemon.result("auth.logout", principal=in_session)
        assert {"revoked": "subject"} == await daemon.result("auth.logout", {"everywhere": True}, principal=BOB)
        found = (await daemon.result("token.revocations", {"kind": "subject"}))["items"][0]
        assert ("bob", NOW_S) == (found["value"], found["issued_before"])

    play(tmp_path, story)


def test_a_token_without_a_name_can_only_be_ended_with_all_others(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        for nameless in (Principal(subject="bob"), Principal(subject="bob", token_id="x" * 1025)):
            assert "conflict" == (await daemon.problem("auth.logout", principal=nameless))["code"]
            assert {"revoked": "subject"} == await daemon.result(
                "auth.logout", {"everywhere": True}, principal=nameless
            )
        assert "missing_token" == (await daemon.problem("auth.logout", principal=None))["code"]

    play(tmp_path, story)


def test_what_is_over_is_forgotten_when_no_clock_and_no_leeway_could_make_it_good(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        native = NativeSet()
        daemon.services.revocations.learn(native)
        await daemon.result("token.revoke", {"jti": "a", "expires_at": NOW_S + 10})
        await daemon.result("token.revoke", {"key": "k"})
        for later_s, in_force in ((10, ["a", "k"]), (STILL_S - 1, ["a", "k"]), (1, ["k"])):
            daemon.clock.now_us += later_s * 1_000_000
            assert ["k"] == [item["value"] for item in (await daemon.result("token.revocations"))["items"]]
            assert in_force == [item.value for page in daemon.services.revocations.snapshot() for item in page]
            await daemon.result("token.revoke", {"key": "k"})
            assert "a" not in in_force or native.revokes(subject="s", token_id="a")
            await daemon.journal.prune(0, 1000)
            assert len(in_force) == rows(daemon)

    play(tmp_path, story)


def test_they_are_known_after_a_restart_and_followed_by_the_daemons_own_set(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await daemon.result("token.revoke", {"subject": "x"})
            gone = await daemon.result("token.revoke", {"jti": "gone"})
            await daemon.result("token.restore", {"id": gone["id"]})
            clock = daemon.clock
        journal = await Journal.open(f"sqlite:///{tmp_path / 'flx.db'}", "test", clock)
        again, native = Revocations(journal, clock), NativeSet()
        again.learn(native)
        assert 1 == len(native)
        assert native.revokes(subject="x", issued_at=NOW_S)
        assert not native.revokes(subject="x", issued_at=NOW_S + 1)
        await journal.close()

    asyncio.run(story())


def test_the_daemons_own_set_follows_what_was_refused_and_found(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        native = NativeSet()
        daemon.services.revocations.learn(native)
        write = daemon.journal.write

        async def lost(change: Any) -> Any:
            await write(change)
            raise Unavailable(code="storage_unavailable")

        daemon.journal.write = lost  # type: ignore[assignment, method-assign]
        assert "storage_unavailable" == (await daemon.problem("token.revoke", {"jti": "a"}))["code"]
        assert not native.revokes(subject="s", token_id="a")
        daemon.journal._tell_found()
        assert native.revokes(subject="s", token_id="a")

    play(tmp_path, story)


def test_who_cannot_read_what_was_found_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.daemon.journal.journal._PAUSE_S", 0.0)

    async def story(daemon: Parts) -> None:
        native, reads, told = NativeSet(), ["refused", "done"], asyncio.Event()
        daemon.services.revocations.learn(native)
        await daemon.result("token.revoke", {"jti": "a"})
        native.replace_all([])

        def heard() -> None:
            if reads.pop(0) == "refused":
                raise Unavailable(code="storage_unavailable")
            told.set()

        daemon.journal.on_found(heard)
        daemon.journal._tell_found()
        async with asyncio.timeout(20):
            await told.wait()
        assert reads == []
        assert native.revokes(subject="s", token_id="a")

    play(tmp_path, story)


def test_the_daemons_own_set_follows_every_change(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        native = NativeSet()
        daemon.services.revocations.learn(native)
        made = await daemon.result("token.revoke", {"jti": "a", "expires_at": NOW_S + 60}, principal=ADMIN)
        assert native.revokes(subject="s", token_id="a")
        await daemon.result("token.restore", {"id": made["id"]})
        assert not native.revokes(subject="s", token_id="a")
        await daemon.result("token.revoke", {"jti": "a", "expires_at": NOW_S + 60})
        daemon.clock.now_us += 2 * 3_600_000_000
        await daemon.result("token.revoke", {"jti": "b"})
        assert not native.revokes(subject="s", token_id="a")
        assert 1 == len(native)

    play(tmp_path, story)
