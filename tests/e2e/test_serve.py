"""`flx serve` as its user meets it: it starts, survives its parts' crashes, and leaves nothing when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from grpclib.server import Server
from tests.gateway_process import free_port
from tests.service import Service, flx, processes_of
from tests.small_daemon import SmallDaemon, stop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


faces = pytest.mark.parametrize("environ", [{}, {"FLX_INTERFACE": "lane"}], ids=["granian", "lane"])


@faces
def test_it_serves_and_ends_with_nothing_left(start_service: Start, environ: dict[str, str]) -> None:
    service = start_service(environ=environ)
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


@faces
def test_killed_parts_are_started_again(start_service: Start, environ: dict[str, str]) -> None:
    service = start_service(environ=environ)
    gateway = service.child("gateway_process")
    os.kill(gateway, signal.SIGKILL)
    # The listening socket is the supervisor's: the connection waits, it is not refused.
    assert httpx.get(f"{service.url}/health", timeout=20).status_code == 200
    assert gateway != service.child("gateway_process")
    daemon = service.child("daemon_process")
    os.kill(daemon, signal.SIGKILL)
    _wait_for(lambda: _ready(service) and service.http.get("/v1/pipelines").is_success, "the daemon is not back")
    assert daemon != service.child("daemon_process")


def test_it_says_what_it_waits_for_and_goes_on_when_that_comes(tmp_path: Path) -> None:
    """A daemon elsewhere may come later, so its absence ends nothing; but nobody has to guess at it."""
    port, api_port = free_port(), free_port()
    environ = {
        "FLX_GRPC_DAEMON_HOST": "127.0.0.1",
        "FLX_GRPC_DAEMON_PORT": str(port),
        "FLX_API_PORT": str(api_port),
    }
    project = tmp_path / "project"
    project.mkdir()
    service = Service(project, environ=environ)

    async def story() -> None:
        daemon = Server([SmallDaemon()])
        await daemon.start("127.0.0.1", port)
        try:
            await asyncio.to_thread(service.until_ready)
            assert f"http://127.0.0.1:{api_port}" == service.url
            assert 0 == await asyncio.to_thread(service.stop)
        finally:
            await stop(daemon)

    reason = "daemon: the daemon cannot be reached: nothing listens there"
    line = f"flx serve: not ready yet, trying on: {reason} (FLX_GRPC_DAEMON_HOST=127.0.0.1, port {port})"
    try:
        service.launch()
        service.until(lambda: line in service.log.read_text(), "it does not say what it waits for")
        readiness = httpx.get(f"http://127.0.0.1:{api_port}/ready")
        assert (503, reason) == (readiness.status_code, readiness.json()["reasons"][0])
        asyncio.run(story())
        assert 1 == service.log.read_text().count("not ready yet"), "a reason is said once"
    finally:
        service.kill_all()


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
    dry = subprocess.run(
        flx("run", "nyc-to-jsonl", "--dry-run"), env=environ, capture_output=True, text=True, check=True
    )
    assert dry.stdout.splitlines()[0].startswith("would run: meltano run tap-nyc")
    assert "  starts at once" in dry.stdout.splitlines()
    assert [] == service.http.get("/v1/executions").json()["items"]
    none = subprocess.run(flx("run", "none", "--dry-run"), env=environ, capture_output=True, text=True, check=False)
    refused = "would be refused: not_found: There is no such pipeline."
    assert (1, refused) == (none.returncode, none.stdout.splitlines()[0])
    done = subprocess.run(
        flx("run", "nyc-to-jsonl", "--follow"), env=environ, capture_output=True, text=True, check=False, timeout=110
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    execution, *lines = done.stdout.splitlines()
    assert "succeeded, 30,911 records, verified" == lines[-1]
    logs = subprocess.run(flx("logs", execution), env=environ, capture_output=True, text=True, check=True).stdout
    assert "Run completed" in logs
