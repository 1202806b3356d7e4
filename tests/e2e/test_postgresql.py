"""The service with its database on a real PostgreSQL: the same commands, real runs, a server that crashes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.gated_tap import RECORDS, GatedTap
from tests.service import processes_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx
    from tests.postgres_server import PostgresServer
    from tests.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

HEALED_S = 5


def create(service: Service, name: str) -> httpx.Response:
    args = {"name": name, "tasks": [["tap-nyc", "target-jsonl"]], "tags": ["b", "a"]}
    body = {"command": "pipeline.create", "args": args}
    return service.http.post("/v1/execute", json=body, headers={"Idempotency-Key": name})


def test_a_service_lives_on_postgresql(start_service: Callable[..., Service], postgres: PostgresServer) -> None:
    """Every kind of row is written and read again, also by the next daemon; nothing is left in a file."""
    url = postgres.database()
    service = start_service({"FLX_DATABASE_URL": url})
    assert create(service, "mine").is_success
    assert create(service, "mine").json()["meta"]["replayed"]
    again = create(service, "mine2").json()["result"]
    changed = {"id": "mine2", "description": "\u00e4", "revision": again["revision"]}
    assert service.command("pipeline.update", changed)["description"] == "\u00e4"
    planned = service.http.post(
        "/v1/execute", json={"command": "pipeline.delete", "args": {"id": "mine2"}, "dry_run": True}
    )
    assert planned.is_success, planned.text
    service.command("pipeline.delete", {"id": "mine2"})
    (schedule,) = service.command("schedule.list")["items"]
    assert not service.command("schedule.disable", {"name": schedule["name"]})["enabled"]
    service.command("token.revoke", {"subject": "nobody", "reason": "a test"})
    run = service.http.post("/v1/pipelines/mine/run", json={}, headers={"Idempotency-Key": "run"})
    execution = run.headers["location"].rsplit("/", 1)[1]
    over = service.wait(execution)
    assert over["status"] == "succeeded", over
    streams = service.http.get(f"/v1/executions/{execution}/streams").json()
    assert service.stop() == 0

    second = start_service({"FLX_DATABASE_URL": url})
    assert second.http.get(f"/v1/executions/{execution}").json() == over
    assert second.http.get(f"/v1/executions/{execution}/streams").json() == streams
    again_run = second.http.post("/v1/pipelines/mine/run", json={}, headers={"Idempotency-Key": "run"})
    assert again_run.headers["location"] == run.headers["location"]
    listed = second.command("pipeline.list")["items"]
    assert "mine" in {pipeline["name"] for pipeline in listed}
    assert [item["value"] for item in second.command("token.revocations")["items"]] == ["nobody"]
    assert len(second.command("execution.list", {"pipeline": "mine"})["items"]) == 1
    assert not (second.data_dir / "flx.db").exists()
    assert "postgresql" not in second.log.read_text()


def test_a_server_that_crashes_is_503_and_the_run_goes_on(
    start_service: Callable[..., Service], postgres: PostgresServer, nyc_project: Path
) -> None:
    """Its end comes while the server is away, and is told in full when that is back."""
    tap = GatedTap(nyc_project)
    service = start_service({"FLX_DATABASE_URL": postgres.database()})
    run = service.http.post(f"/v1/pipelines/{tap.job}/run", json={})
    execution = run.headers["location"].rsplit("/", 1)[1]
    streams = f"/v1/executions/{execution}/streams"
    service.until(lambda: bool(service.http.get(streams).json().get("counts")), "the run is in its middle")
    keeper = [line for line in processes_of(service.project) if "tap-gated" in line]
    assert keeper
    postgres.crash()
    try:
        refused = create(service, "mine")
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
        listed = service.http.get("/v1/executions")
        assert (listed.status_code, listed.json()["code"]) == (503, "storage_unavailable")
        assert service.http.get("/health").is_success
        tap.open()
        service.until(
            lambda: not [line for line in processes_of(service.project) if "tap-gated" in line], "the run has ended"
        )
    finally:
        postgres.start()
    deadline = time.monotonic() + HEALED_S
    while not (create(service, "mine").is_success and service.http.get("/v1/executions").is_success):
        assert time.monotonic() < deadline, "it does not heal"
        time.sleep(0.05)
    over = service.wait(execution)
    assert (over["status"], over["records"], over["verdict"]) == ("succeeded", RECORDS, "verified"), over


def test_what_it_cannot_keep_is_told(start_service: Callable[..., Service], postgres: PostgresServer) -> None:
    """A NUL in a text is the caller's fault; a long subject is no fault at all."""
    service = start_service({"FLX_DATABASE_URL": postgres.database()})
    body = {"name": "nul", "tasks": [["tap-nyc", "target-jsonl"]], "description": "a\0b"}
    answer = service.http.post("/v1/pipelines", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text
    headers = {"Authorization": f"Bearer {service.token(sub='s' * 1000)}", "Idempotency-Key": "long"}
    answer = service.http.post("/v1/pipelines", json={**body, "description": ""}, headers=headers)
    assert answer.status_code == 201, answer.text


def test_a_second_daemon_on_one_database_does_not_start(
    start_service: Callable[..., Service], postgres: PostgresServer, nyc_project: Any, meltano_env: Any
) -> None:
    """It says so in one line; another project's service needs another database."""
    from tests.service import Service as Another
    from tests.service import copy_project

    url = postgres.database()
    service = start_service({"FLX_DATABASE_URL": url})
    project = copy_project(nyc_project.parent / "other", plugins=nyc_project)
    other = Another(project, environ={"FLX_MELTANO": str(meltano_env), "FLX_DATABASE_URL": url})
    other.launch()
    try:
        assert other.ended(30) == 2
    finally:
        other.kill_all()
    assert "FLX_DATABASE_URL: another daemon uses this database" in other.log.read_text()
    assert create(service, "mine").is_success
