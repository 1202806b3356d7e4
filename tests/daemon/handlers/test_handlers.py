"""Commands as a trusted gateway sends them, down to the database and back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.daemon.daemon_parts import parts

from flx_api.commands import COMMANDS
from flx_api.daemon.handlers import HANDLERS
from flx_api.proto.flx.v1.daemon_pb2 import Principal

if TYPE_CHECKING:
    from pathlib import Path

MINE = {"name": "mine", "tasks": [["tap-a", "target-b"], ["tool:build"]], "tags": ["x", "x"]}
OTHER_TENANT = Principal(subject="eve", tenant="other", roles=["admin"])
BOB = Principal(subject="bob", tenant="default", roles=["admin"])


def test_every_command_has_a_handler_and_every_handler_a_command() -> None:
    assert set(HANDLERS) == set(COMMANDS)


def test_the_project_its_plugins_and_its_environments(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            found = await daemon.result("project.get")
            assert (found["id"], found["plugins"], found["jobs"]) == ("test", 3, 1)
            assert await daemon.result("project.validate") == {"valid": True, "errors": []}
            (tmp_path / ".meltano" / "extractors" / "tap-a" / "venv").mkdir(parents=True)
            items = (await daemon.result("plugin.list"))["items"]
            assert {item["name"]: item["installed"] for item in items} == {
                "tap-a": True,
                "target-b": False,
                "tool": False,
            }
            (only,) = (await daemon.result("plugin.list", {"type": "loaders"}))["items"]
            assert only["name"] == "target-b"
            environments = (await daemon.result("environment.list"))["items"]
            assert environments == [{"name": "dev", "default": True}, {"name": "prod", "default": False}]

    asyncio.run(story())


def test_the_token_in_a_plugins_pip_url_is_not_shown(tmp_path: Path) -> None:
    url = "git+https://u:tok@en@host/r.git@v1"
    project = f"plugins: {{extractors: [{{name: t, namespace: t, executable: t, pip_url: '{url} plain'}}]}}"

    async def story() -> None:
        async with parts(tmp_path, project) as daemon:
            (only,) = (await daemon.result("plugin.list"))["items"]
            assert only["pip_url"] == "git+https://***@host/r.git@v1 plain"

    asyncio.run(story())


def test_a_broken_project_is_named_field_by_field_and_does_not_stop_the_daemon(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path, "jobs: 7\n") as daemon:
            assert (await daemon.result("project.validate"))["valid"] is False
            assert (await daemon.problem("pipeline.list"))["code"] == "project_invalid"
            status = await daemon.result("system.status")
            assert (status["status"], status["components"]["project"]["healthy"]) == ("degraded", False)

    asyncio.run(story())


def test_a_pipeline_from_creation_to_deletion_with_its_events(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            made = await daemon.result("pipeline.create", MINE)
            assert (made["source"], made["revision"], made["tags"], made["created_by"]) == ("api", 1, ["x"], "ann")
            assert await daemon.result("pipeline.get", {"id": "mine"}) == made
            changed = await daemon.result("pipeline.update", {"id": "mine", "description": "d", "revision": 1})
            assert (changed["revision"], changed["description"], changed["tasks"]) == (2, "d", MINE["tasks"])
            stale = await daemon.problem("pipeline.update", {"id": "mine", "description": "e", "revision": 1})
            assert stale["code"] == "precondition_failed"
            stale = await daemon.problem("pipeline.delete", {"id": "mine", "revision": 1})
            assert stale["code"] == "precondition_failed"
            assert await daemon.result("pipeline.delete", {"id": "mine", "revision": 2}) == {
                "id": "mine",
                "deleted": True,
            }
            assert (await daemon.problem("pipeline.get", {"id": "mine"}))["code"] == "not_found"
            rows = daemon.journal.events_after(0, 9)
            assert [row.topic for row in rows] == ["pipeline_events"] * 3
            assert [row.data.split(b'"')[3] for row in rows] == [b"created", b"updated", b"deleted"]

    asyncio.run(story())


def test_jobs_of_meltano_yml_are_pipelines_that_nobody_can_change(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            found = await daemon.result("pipeline.get", {"id": "load"})
            assert (found["source"], found["revision"]) == ("project", 1)
            for command in ("pipeline.update", "pipeline.delete"):
                assert (await daemon.problem(command, {"id": "load"}))["code"] == "managed_by_project"
            assert (await daemon.problem("pipeline.create", {**MINE, "name": "load"}))["code"] == "already_exists"
            await daemon.result("pipeline.create", MINE)
            assert (await daemon.problem("pipeline.create", MINE))["code"] == "already_exists"

    asyncio.run(story())


def test_extractor_and_loader_are_short_for_tasks(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            short = {"name": "p", "extractor": "tap-a", "loader": "target-b", "transform": "tool:build"}
            assert (await daemon.result("pipeline.create", short))["tasks"] == [["tap-a", "target-b"], ["tool:build"]]
            both = await daemon.problem("pipeline.create", {**MINE, "extractor": "tap-a"})
            assert [error["field"] for error in both["errors"]] == ["args.extractor"]
            half = await daemon.problem("pipeline.create", {"name": "q", "extractor": "tap-a"})
            assert [error["field"] for error in half["errors"]] == ["args.loader"]
            none = await daemon.problem("pipeline.create", {"name": "q"})
            assert [error["field"] for error in none["errors"]] == ["args.tasks"]

    asyncio.run(story())


def test_a_block_that_the_project_has_not_is_named_by_its_place(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            tasks = [["tap-a", "target-b"], ["toool:build"]]
            problem = await daemon.problem("pipeline.create", {"name": "p", "tasks": tasks})
            assert (problem["code"], problem["errors"][0]["field"]) == ("validation_failed", "args.tasks[1][0]")
            assert problem["suggestions"] == ["tool"]
            short = await daemon.problem("pipeline.create", {"name": "p", "extractor": "tap-a", "loader": "nope"})
            assert short["errors"][0]["field"] == "args.loader"
            away = await daemon.problem("pipeline.create", {**MINE, "environment": "moon"})
            assert away["errors"][0]["field"] == "args.environment"
            await daemon.result("pipeline.create", MINE)
            changed = await daemon.problem("pipeline.update", {"id": "mine", "tasks": [["nope"]]})
            assert changed["errors"][0]["field"] == "args.tasks[0][0]"

    asyncio.run(story())


def test_one_key_makes_one_pipeline(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            first = await daemon.run("pipeline.create", MINE, idempotency_key="k")
            again = await daemon.run("pipeline.create", MINE, idempotency_key="k")
            assert (first.replayed, again.replayed) == (False, True)
            assert first.result == again.result
            other = await daemon.problem("pipeline.create", {**MINE, "name": "p"}, idempotency_key="k")
            assert other["code"] == "idempotency_key_reuse"
            # Another subject's same key is another key.
            mine_too = await daemon.problem("pipeline.create", MINE, idempotency_key="k", principal=BOB)
            assert mine_too["code"] == "already_exists"
            # What failed is not remembered.
            await daemon.problem("pipeline.create", {"name": "p", "tasks": [["nope"]]}, idempotency_key="l")
            await daemon.result("pipeline.create", {**MINE, "name": "p"}, idempotency_key="l")
            long = await daemon.problem("pipeline.create", MINE, idempotency_key="k" * 256)
            assert long["code"] == "invalid_request"

    asyncio.run(story())


def test_a_pipeline_shows_how_it_did_last_and_is_kept_while_it_runs(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await daemon.result("pipeline.create", MINE)
            await daemon.add_execution("e1", "mine", "failed", 1)
            await daemon.add_execution("e2", "mine", "running", 2)
            await daemon.add_execution("e3", "mine", "failed", 9, tenant="other")
            found = await daemon.result("pipeline.get", {"id": "mine"})
            assert (found["active_execution"], found["last_execution"], found["last_status"]) == ("e2", "e2", "running")
            assert (await daemon.problem("pipeline.delete", {"id": "mine"}))["code"] == "conflict"
            await daemon.add_execution("e4", "load", "succeeded", 3)
            items = (await daemon.result("pipeline.list"))["items"]
            assert [(item["id"], item["active_execution"], item["last_execution"]) for item in items] == [
                ("load", None, "e4"),
                ("mine", "e2", "e2"),
            ]

    asyncio.run(story())


def test_a_pipeline_says_what_becomes_of_failed_attempts(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            usual = {"retries": 0, "retry_backoff_s": 10, "retry_on": ["failed", "crashed"]}
            made = await daemon.result("pipeline.create", MINE)
            assert usual == {name: made[name] for name in usual}
            mine = {"retries": 3, "retry_backoff_s": 0, "retry_on": ["timed_out"]}
            changed = await daemon.result("pipeline.update", {"id": "mine", **mine})
            assert mine == {name: changed[name] for name in mine}
            (listed,) = (await daemon.result("pipeline.list", {"source": "api"}))["items"]
            assert mine == {name: listed[name] for name in mine}
            wrong = await daemon.problem("pipeline.update", {"id": "mine", "retries": 11, "retry_on": ["cancelled"]})
            assert [error["field"] for error in wrong["errors"]] == ["args.retries", "args.retry_on[0]"]

    asyncio.run(story())


def test_pages_of_pipelines(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            for number in range(5):
                await daemon.result("pipeline.create", {**MINE, "name": f"p{number}", "tags": [f"t{number % 2}"]})
            seen, cursor = [], None
            while True:
                page = await daemon.result("pipeline.list", {"limit": 2, "cursor": cursor})
                assert page["total"] == 6
                seen += [item["id"] for item in page["items"]]
                cursor = page["next_cursor"]
                if cursor is None:
                    break
            assert seen == ["load", "p0", "p1", "p2", "p3", "p4"]
            assert (await daemon.result("pipeline.list", {"tag": "t1"}))["total"] == 2
            assert (await daemon.result("pipeline.list", {"source": "project"}))["total"] == 1
            assert (await daemon.problem("pipeline.list", {"cursor": "?"}))["code"] == "validation_failed"

    asyncio.run(story())


def test_another_tenant_sees_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await daemon.result("pipeline.create", MINE)
            for command in ("pipeline.get", "pipeline.update", "pipeline.delete"):
                problem = await daemon.problem(command, {"id": "mine"}, principal=OTHER_TENANT)
                assert problem["code"] == "not_found"
            listed = await daemon.result("pipeline.list", principal=OTHER_TENANT)
            assert [item["id"] for item in listed["items"]] == ["load"]
            await daemon.result("pipeline.create", MINE, principal=OTHER_TENANT)

    asyncio.run(story())


def test_echo_gives_back_the_bytes(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            raw = b' {"b" : 1.50, "a":"\\u0041" } '
            assert (await daemon.run("system.echo", raw)).result == raw
            assert (await daemon.problem("system.echo", b'{"a":1,"a":2}'))["code"] == "invalid_json"
            assert (await daemon.problem("system.echo", b"[" * 1000))["code"] == "json_too_deep"

    asyncio.run(story())


def test_status_info_and_commands(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            status = await daemon.result("system.status")
            assert (status["status"], status["active_runs"], status["queued_runs"], status["run_slots"]) == (
                "healthy",
                1,
                2,
                3,
            )
            assert status["uptime_s"] == 5.0
            assert (await daemon.result("system.info"))["epoch"] == daemon.journal.epoch
            listed = (await daemon.result("command.list"))["items"]
            assert [item["name"] for item in listed] == list(COMMANDS)
            for item in listed:
                found = await daemon.result("command.describe", {"name": item["name"]})
                assert found["args_schema"]
                assert found["result_schema"]
            unknown = await daemon.problem("command.describe", {"name": "pipeline.lst"})
            assert "pipeline.list" in unknown["suggestions"]

    asyncio.run(story())


def test_a_user_logs_in_with_the_password_it_was_made_with(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            user = {"username": "bob", "password": "correct horse", "roles": ["operator"]}
            assert (await daemon.result("user.add", user))["tenant"] == "default"
            assert (await daemon.problem("user.add", user))["code"] == "already_exists"
            odd = await daemon.problem("user.add", {**user, "username": "eve", "roles": ["viewer", "root"]})
            assert [error["field"] for error in odd["errors"]] == ["args.roles[1]"]
            login = {"username": "bob", "password": "correct horse"}
            found = await daemon.result("auth.login", login, principal=None, client_address="10.0.0.1")
            assert (found["subject"], found["roles"], found["token_type"]) == ("bob", ["operator"], "Bearer")
            wrong = await daemon.problem("auth.login", {**login, "password": "wrong"}, principal=None)
            nobody = await daemon.problem("auth.login", {**login, "username": "nobody"}, principal=None)
            assert wrong == nobody
            assert wrong["code"] == "invalid_credentials"

    asyncio.run(story())
