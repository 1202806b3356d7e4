"""Plans as the daemon gives them; that they come true is held by properties/test_plans.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.daemon_parts import ADMIN, Parts, parts

from flx_api.daemon.journal import RowChange
from flx_api.daemon.plans import change_of
from flx_api.daemon.trust import Gateway
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, Principal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from flx_api.daemon.handlers import Context
    from flx_api.models.plan import Change

VIEWER = Principal(subject="v", tenant="default", roles=["what", "viewer"])
OTHER = Principal(subject="o", tenant="other", roles=["admin"])
PIPELINE = {"name": "p", "extractor": "tap-a", "loader": "target-b", "description": "words"}


def run(folder: Path, story: Callable[[Parts], Awaitable[None]]) -> None:
    async def staged() -> None:
        async with parts(folder) as daemon:
            await story(daemon)

    asyncio.run(staged())


async def planned(daemon: Parts, command: str, args: Any = None, **frame: Any) -> Any:
    return await daemon.result(command, args, dry_run=True, **frame)


def test_a_plan_says_what_would_be_and_what_decided(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        plan = await planned(daemon, "pipeline.create", PIPELINE, idempotency_key="k")
        fields = {"description": "words", "tasks": [["tap-a", "target-b"]], "environment": None, "tags": []}
        made: dict[str, Any] = {**fields, "revision": 1, "created_by": "ann"}
        made |= {"retries": 0, "retry_backoff_s": 10, "retry_on": ["failed", "crashed"]}
        assert plan == {
            "command": "pipeline.create",
            "outcome": "ok",
            "permission": {
                "permission": "pipeline.create",
                "allowed": True,
                "by": "role",
                "role": "admin",
                "rule": "*",
            },
            "limits": [],
            "errors": [],
            "changes": [{"entity": "pipeline", "id": "p", "action": "create", "before": None, "after": made}],
            "key": "new",
            "replays": None,
            "run": None,
        }
        await daemon.result("pipeline.create", PIPELINE, idempotency_key="k")
        again = await planned(daemon, "pipeline.create", PIPELINE, idempotency_key="k")
        assert (again["outcome"], again["changes"], again["key"]) == ("ok", [], "replayed")
        reused = await planned(daemon, "pipeline.create", {**PIPELINE, "name": "q"}, idempotency_key="k")
        assert (reused["outcome"], reused["key"], reused["errors"][0]["status"]) == ("refused", "reused", 422)
        update = await planned(daemon, "pipeline.update", {"id": "p", "description": "", "environment": None})
        changed = {"before": {"description": "words", "revision": 1}, "after": {"description": "", "revision": 2}}
        assert update["changes"] == [{"entity": "pipeline", "id": "p", "action": "update", **changed}]
        gone = await planned(daemon, "pipeline.delete", {"id": "p"})
        assert gone["changes"] == [{"entity": "pipeline", "id": "p", "action": "delete", "before": made, "after": None}]

    run(tmp_path, story)


def test_every_field_at_fault_is_told(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        plan = await planned(daemon, "pipeline.create", {"name": "UPPER", "extra": 1})
        (error,) = plan["errors"]
        assert (plan["outcome"], error["code"], error["retryable"]) == ("refused", "validation_failed", False)
        assert [found["field"] for found in error["errors"]] == ["args.name", "args.extra"]
        near = await planned(daemon, "command.describe", {"name": "pipeline.rum"})
        assert (near["errors"][0]["code"], near["errors"][0]["suggestions"][0]) == ("unknown_command", "pipeline.run")

    run(tmp_path, story)


def test_who_may_not_is_told_so_and_nothing_else(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        await daemon.result("pipeline.create", PIPELINE)
        for args in (PIPELINE, {**PIPELINE, "name": "free"}, {"nonsense": 1}):
            plan = await planned(daemon, "pipeline.create", args, principal=VIEWER)
            assert (plan["outcome"], plan["changes"], len(plan["errors"])) == ("refused", [], 1)
            assert (plan["errors"][0]["code"], plan["errors"][0]["errors"]) == ("forbidden", [])
            assert plan["permission"] == {
                "permission": "pipeline.create",
                "allowed": False,
                "by": "none",
                "role": None,
                "rule": None,
            }
        assert (await planned(daemon, "pipeline.get", {"id": "p"}, principal=VIEWER))["permission"]["role"] == "viewer"
        assert (await planned(daemon, "auth.logout", principal=VIEWER))["permission"]["by"] == "everyone"

    run(tmp_path, story)


def test_of_another_tenant_nothing_is_told(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        await daemon.result("pipeline.create", PIPELINE)
        for command in ("pipeline.update", "pipeline.delete", "pipeline.get"):
            theirs = await planned(daemon, command, {"id": "p"}, principal=OTHER)
            nobodys = await planned(daemon, command, {"id": "q"}, principal=OTHER)
            assert theirs == nobodys
            assert theirs["errors"][0]["code"] == "not_found"
        mine = await planned(daemon, "pipeline.create", PIPELINE, principal=OTHER)
        assert (mine["outcome"], mine["changes"][0]["action"]) == ("ok", "create")

    run(tmp_path, story)


def test_a_log_in_is_a_try_and_gives_no_token(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        user = {"username": "bob", "password": "secret-pass", "roles": ["viewer"]}
        added = await daemon.run("user.add", user, dry_run=True)
        assert b"secret" not in added.result
        assert b"argon2" not in added.result
        await daemon.result("user.add", user)
        right = {"username": "bob", "password": "secret-pass"}
        plan = await planned(daemon, "auth.login", right, principal=None)
        assert (plan["outcome"], plan["permission"]["by"]) == ("ok", "public")
        assert "token" not in str(plan)
        for _ in range(5):
            wrong = await daemon.problem("auth.login", {**right, "password": "?"}, principal=None, dry_run=True)
            assert wrong["code"] == "invalid_credentials"
        limited = await daemon.problem("auth.login", right, principal=None, dry_run=True)
        assert (limited["code"], limited["retry_after_s"] > 0) == ("rate_limited", True)

    run(tmp_path, story)


def test_what_is_no_judgement_is_the_answer(tmp_path: Path) -> None:
    async def story(daemon: Parts) -> None:
        def breaks(_context: Context, _args: Any) -> None:
            raise KeyError

        frame = CommandFrame(command="pipeline.get", args=b'{"id":"x"}', principal=ADMIN, dry_run=True)
        reply = await daemon.dispatcher({"pipeline.get": breaks}).carry_out(frame, Gateway())  # type: ignore[dict-item]
        assert reply.code == "internal"
        assert (await daemon.problem("pipeline.lst", dry_run=True))["code"] == "unknown_command"
        assert (await daemon.problem("pipeline.list", dry_run=True, principal=None))["code"] == "missing_token"
        assert (await daemon.problem("pipeline.list", b"{", dry_run=True))["code"] == "invalid_json"
        await daemon.journal.close()
        stopping = await daemon.problem("pipeline.delete", {"id": "x"}, dry_run=True)
        assert stopping["code"] == "shutting_down"

    run(tmp_path, story)


REVOCATION = {"id": "r", "tenant": "t", "kind": "jti", "value": "v", "issued_before": None, "expires_at": 9}
REVOCATION |= {"reason": "", "created_us": 1, "created_by": "ann"}
SHOWN = {name: value for name, value in REVOCATION.items() if name not in {"id", "tenant", "created_us"}}


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (RowChange("revocations", None, REVOCATION), ("revocation", None, "create", None, SHOWN)),
        (RowChange("revocations", REVOCATION, None), ("revocation", "r", "delete", SHOWN, None)),
        (
            RowChange("revocations", REVOCATION, {**REVOCATION, "expires_at": None, "created_us": 5}),
            ("revocation", "r", "update", {"expires_at": 9}, {"expires_at": None}),
        ),
        (RowChange("revocations", REVOCATION, {**REVOCATION, "created_us": 5}), None),
        (RowChange("attempts", None, {"id": "a"}), None),
    ],
)
def test_a_row_is_shown_by_its_fields_that_differ(row: RowChange, shown: tuple[Any, ...] | None) -> None:
    found: Change | None = change_of(row)
    if found is None:
        assert shown is None
    else:
        assert (found.entity, found.id, found.action, found.before, found.after) == shown
