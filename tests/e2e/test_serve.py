"""`flx serve` as its user meets it: it starts, survives its parts' crashes, and leaves nothing when it ends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.service import flx, processes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.service import Service

    Start = Callable[..., Service]

pytestmark = pytest.mark.e2e


def _wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _ready(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/ready", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def test_it_serves_and_ends_with_nothing_left(start_service: Start) -> None:
    service = start_service()
    assert 200 == httpx.get(f"{service.url}/health").status_code
    assert 0o600 == stat.S_IMODE((service.data_dir / "endpoints.json").stat().st_mode)
    assert "API" in service.log.read_text()
    began = time.monotonic()
    assert 0 == service.stop()
    assert time.monotonic() - began < 10


def test_a_minted_token_and_a_made_user_get_in(start_service: Start) -> None:
    service = start_service()
    environ = {**os.environ, "FLX_PROJECT": str(service.project)}
    minted = subprocess.run(
        flx("token", "mint", "--sub", "me", "--role", "viewer"), env=environ, capture_output=True, text=True, check=True
    ).stdout.strip()
    answer = httpx.get(f"{service.url}/v1/pipelines", headers={"Authorization": f"Bearer {minted}"})
    assert {"nyc-to-jsonl", "nyc-warehouse"} == {item["id"] for item in answer.json()["items"]}
    password = "correct horse battery"
    add = flx("user", "add", "me", "--role", "operator", "--password-stdin")
    for expected in (0, 1):  # the second time the name is taken
        done = subprocess.run(add, env=environ, input=password, capture_output=True, text=True, check=False)
        assert expected == done.returncode, done.stderr
    assert done.stderr.startswith("already_exists: ")
    login = httpx.post(f"{service.url}/auth/login", json={"username": "me", "password": password})
    assert ("operator",) == tuple(login.json()["roles"])


def test_a_second_service_on_the_same_folder_is_refused(start_service: Start) -> None:
    service = start_service()
    done = subprocess.run(
        flx("serve", "--project", str(service.project), "--port", "0"), capture_output=True, text=True, check=False
    )
    assert (2, 1) == (done.returncode, done.stderr.count("\n"))
    assert done.stderr.startswith("FLX_DATA_DIR: ")
    assert _ready(service), "the first one goes on"


def test_killed_parts_are_started_again(start_service: Start) -> None:
    service = start_service()
    gateway = service.child("gateway_process")
    os.kill(gateway, signal.SIGKILL)
    # The listening socket is the supervisor's: the connection waits, it is not refused.
    assert httpx.get(f"{service.url}/health", timeout=20).status_code == 200
    assert gateway != service.child("gateway_process")
    daemon = service.child("daemon_process")
    os.kill(daemon, signal.SIGKILL)
    _wait_for(lambda: _ready(service) and service.http.get("/v1/pipelines").is_success, "the daemon is not back")
    assert daemon != service.child("daemon_process")


def test_nothing_outlives_a_killed_supervisor(start_service: Start) -> None:
    service = start_service()
    service.signal(signal.SIGKILL)
    assert -signal.SIGKILL == service.ended()
    _wait_for(lambda: not processes_of(service.project), "processes outlived the supervisor")
    (service.data_dir / "endpoints.json").unlink()
    service.start()  # what it left does not stand in the way
    assert _ready(service)


def test_stopping_ends_a_run(start_service: Start) -> None:
    service = start_service()
    answer = service.http.post("/v1/pipelines/nyc-to-jsonl/run", json={})
    assert 202 == answer.status_code, answer.text
    execution = answer.headers["location"].rsplit("/", 1)[-1]
    _wait_for(lambda: service.http.get(f"/v1/executions/{execution}").json()["status"] == "running", "it does not run")
    began = time.monotonic()
    assert 0 == service.stop()
    assert time.monotonic() - began < 10
    service.start()
    assert "cancelled" == service.http.get(f"/v1/executions/{execution}").json()["status"]


def test_run_and_logs_from_the_command_line(start_service: Start) -> None:
    service = start_service()
    environ = {**os.environ, "FLX_PROJECT": str(service.project)}
    done = subprocess.run(
        flx("run", "nyc-to-jsonl", "--follow"), env=environ, capture_output=True, text=True, check=False, timeout=110
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    execution, *lines = done.stdout.splitlines()
    assert "succeeded, 30,911 records, verified" == lines[-1]
    logs = subprocess.run(flx("logs", execution), env=environ, capture_output=True, text=True, check=True).stdout
    assert "Run completed" in logs
