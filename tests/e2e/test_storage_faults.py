"""The database's disk fails, fills up, is locked or loses power, seen over HTTP: honest answers, reads that go on.

The daemon is on a disk of the tests' own (`tests/faults/disk.py`). What it cannot store it says so; nothing of it is
there afterwards; and it goes on by itself when the disk does.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.faults.disk import Disk
from tests.service import Service, copy_project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TASKS = [["tap-nyc", "target-jsonl"]]
CLIENTS = 8
CUTS = 4


@contextlib.contextmanager
def on_a_disk(project: Path, meltano_env: Path) -> Iterator[tuple[Service, Disk]]:
    """A service, not started, whose database is on a disk that can fail."""
    (project / ".flx").mkdir(mode=0o700)
    disk = Disk(project / ".flx" / "flx.db", project.parent / "disk")
    made = Service(project, environ={"FLX_MELTANO": str(meltano_env), **disk.environ})
    try:
        yield made, disk
        made.stop()
    finally:
        made.kill_all()


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, prepared_plugins: Path, meltano_env: Path
) -> Iterator[tuple[Service, Disk]]:
    """One for all faults that a service lives through."""
    project = copy_project(tmp_path_factory.mktemp("faults") / "nyc", plugins=prepared_plugins)
    with on_a_disk(project, meltano_env) as (service, disk):
        service.start()
        yield service, disk


def create(http: httpx.Client, name: str) -> httpx.Response:
    body = {"command": "pipeline.create", "args": {"name": name, "tasks": TASKS}}
    return http.post("/v1/execute", json=body, headers={"Idempotency-Key": name})


def names(service: Service) -> set[str]:
    found: set[str] = set()
    page: dict[str, Any] = {"next_cursor": None}
    while page["next_cursor"] or not found:
        page = service.command("pipeline.list", {"limit": 500, "cursor": page["next_cursor"]})
        found |= {pipeline["name"] for pipeline in page["items"]}
    return found


@contextlib.contextmanager
def locked(disk: Disk) -> Iterator[None]:
    """Another process writes, and does not come to an end."""
    with closing(sqlite3.connect(disk.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


FAULTS: dict[str, tuple[Callable[[Disk], AbstractContextManager[None]], int, str]] = {
    "fsync-fails": (lambda disk: disk.failing_fsyncs(errno.EIO), 503, "storage_unavailable"),
    "write-fails": (lambda disk: disk.failing_writes(errno.EIO), 503, "storage_unavailable"),
    "full": (lambda disk: disk.failing_writes(errno.ENOSPC), 507, "insufficient_storage"),
    "read-only": (lambda disk: disk.failing_writes(errno.EROFS), 503, "storage_unavailable"),
    "locked": (locked, 503, "storage_unavailable"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_stored_is_refused_reads_go_on_and_it_heals(stage: tuple[Service, Disk], fault: str) -> None:
    service, disk = stage
    begin, status, code = FAULTS[fault]
    before = names(service)
    with begin(disk):
        answer = create(service.http, fault)
        assert answer.status_code == status, answer.text
        problem = answer.json()
        assert (problem["code"], problem["retryable"]) == (code, True)
        assert names(service) == before, "nothing of it is there, and reads go on"
        run = service.http.post("/v1/pipelines/nyc-to-jsonl/run", json={})
        assert (run.status_code, run.json()["code"]) == (status, code)
        journal = service.command("system.status")["components"]["journal"]
        assert not journal["healthy"]
    again = create(service.http, fault)
    assert again.is_success, again.text
    assert not again.json()["meta"].get("replayed"), "the refused one left no key"
    assert names(service) == {*before, fault}
    assert service.command("execution.list")["items"] == [], "no run began that was not written down"
    assert service.command("system.status")["components"]["journal"]["healthy"]


def test_an_fsync_that_fails_once_is_one_refusal(stage: tuple[Service, Disk]) -> None:
    service, disk = stage
    disk.fail_fsync(errno.EIO, 1)
    assert [create(service.http, "once").status_code for _ in range(2)] == [503, 200]


def test_a_reader_beside_it_disturbs_nothing(stage: tuple[Service, Disk]) -> None:
    """A backup holds a snapshot as long as it likes."""
    service, disk = stage
    with closing(sqlite3.connect(disk.database, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM events").fetchone()
        assert create(service.http, "beside-a-reader").is_success


def test_what_was_answered_before_a_loss_of_power_is_answered_again(nyc_project: Path, meltano_env: Path) -> None:
    """Commands from several clients, the power cut in their midst: each answered key has its effect and its answer."""
    dice = Random(5)
    answered: dict[str, dict[str, Any]] = {}
    with on_a_disk(nyc_project, meltano_env) as (service, disk):
        epochs = set()
        for cut in range(CUTS):
            service.start()
            epochs.add(service.command("system.info")["epoch"])
            enough = dice.randrange(20, 120)
            with ThreadPoolExecutor(CLIENTS) as clients:
                for client in range(CLIENTS):
                    clients.submit(_create_until_the_end, service, f"c{cut}-{client}", answered)
                service.until(lambda: len(answered) >= enough, "commands are answered")  # noqa: B023 - called here
                service.kill_all()
            service.disconnect()
            (service.data_dir / "endpoints.json").unlink(missing_ok=True)
            disk.cut_power(dice)
        service.start()
        assert {service.command("system.info")["epoch"]} == epochs
        assert answered.keys() <= names(service)
        for name, result in answered.items():
            again = create(service.http, name)
            assert again.is_success, again.text
            assert (again.json()["result"], again.json()["meta"].get("replayed")) == (result, True)


def _create_until_the_end(service: Service, prefix: str, answered: dict[str, dict[str, Any]]) -> None:
    headers = {"Authorization": f"Bearer {service.token()}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=30) as http, contextlib.suppress(httpx.HTTPError):
        for number in range(10_000):
            answer = create(http, f"{prefix}-{number}")
            if answer.is_success:
                answered[f"{prefix}-{number}"] = answer.json()["result"]
