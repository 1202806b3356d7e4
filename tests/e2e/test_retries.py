"""Failed attempts through the whole service: REST, the followed log, and a restart in the pause."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.scripted_project import make_project, until
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

# Fails as long as there is a file `broken`.
TAP = """#!/usr/bin/env python3
import os, pathlib, sys
here = pathlib.Path(os.environ["MELTANO_PROJECT_ROOT"])
if "--discover" not in sys.argv and (here / "broken").exists():
    raise OSError("the source is away")
os.execv(sys.executable, [sys.executable, str(here / "works.py"), *sys.argv[1:]])
"""


@pytest.fixture
def service(tmp_path: Path, meltano_env: Path) -> Iterator[Service]:
    project = make_project(tmp_path / "project")
    (project / "tap.py").rename(project / "works.py")
    (project / "tap.py").write_text(TAP)
    (project / "tap.py").chmod(0o755)
    (project / "broken").touch()
    running = Service(project, environ={"FLX_MELTANO": str(meltano_env)})
    try:
        yield running.start()
        running.stop()
    finally:
        running.kill_all()


def make(service: Service, name: str, **more: Any) -> str:
    blocks = {"extractor": "tap-scripted", "loader": "target-scripted"}
    answer = service.http.post("/v1/pipelines", json={"name": name, **blocks, **more})
    assert answer.status_code == 201, answer.text
    started = service.http.post(f"/v1/pipelines/{name}/run")
    assert started.status_code == 202, started.text
    return str(started.json()["id"])


def attempts(service: Service, execution: str) -> list[tuple[str, str]]:
    items = service.http.get(f"/v1/executions/{execution}/attempts").json()["items"]
    return [(one["trigger"], one["status"]) for one in items]


def status(service: Service, execution: str) -> str:
    return str(service.http.get(f"/v1/executions/{execution}").json()["status"])


def test_attempts_by_hand_and_by_themselves(service: Service) -> None:
    execution = make(service, "at-once", retries=1, retry_backoff_s=0)
    lines: list[str] = []

    def follow() -> None:
        path = f"/v1/executions/{execution}/logs"
        headers = {"Accept": "text/plain"}
        with service.http.stream("GET", path, params={"follow": "true"}, headers=headers) as answer:
            lines.extend(answer.iter_lines())

    following = threading.Thread(target=follow)
    following.start()
    over = service.wait(execution)
    assert (over["status"], over["attempts"]) == ("failed", 2)
    assert "the source is away" in over["error"]
    following.join(60)
    # The stream goes on through both attempts and ends with the execution.
    assert sum("Run completed" in line for line in lines) == 2
    (service.project / "broken").unlink()
    again = service.http.post(f"/v1/executions/{execution}/retry", headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.headers["location"]) == (202, f"/v1/executions/{execution}")
    assert service.wait(execution)["status"].startswith("succeeded")
    replay = service.http.post("/v1/commands/execution.retry", json={"id": execution}, headers={"Idempotency-Key": "k"})
    assert (replay.status_code, replay.json()["meta"]["replayed"]) == (202, True)
    assert [trigger for trigger, _ in attempts(service, execution)] == ["run", "automatic", "manual"]
    refused = service.http.post(f"/v1/executions/{execution}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


def test_a_pause_goes_on_through_a_restart_and_ends_by_cancelling(service: Service) -> None:
    execution = make(service, "later", retries=3, retry_backoff_s=3600)
    until(lambda: status(service, execution) == "retrying", "the pause")
    pause = service.http.get(f"/v1/executions/{execution}").json()["retry_at_us"]
    service.stop()
    service.start()
    found = service.http.get(f"/v1/executions/{execution}").json()
    assert (found["status"], found["retry_at_us"]) == ("retrying", pause)
    busy = service.http.post("/v1/pipelines/later/run")
    assert (busy.status_code, busy.json()["code"]) == (409, "already_running")
    assert service.http.delete(f"/v1/executions/{execution}").json()["status"] == "cancelled"
    assert attempts(service, execution) == [("run", "failed")]
