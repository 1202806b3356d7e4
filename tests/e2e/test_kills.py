"""kill -9 of anything: no orphan, no stuck `running`, no secret left, the journal intact, the true result told."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.gated_tap import RECORDS, GatedTap
from tests.service import processes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

KILLS = 20
VICTIMS = ("daemon", "zygote", "run", "server", "worker")
OVER = {"succeeded", "succeeded_with_warnings", "failed", "cancelled", "crashed", "timed_out"}


def database(service: Service) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{service.data_dir / 'flx.db'}?mode=ro", uri=True)


def pid_of(service: Service, victim: str, execution: str) -> int:
    """The process that a kill is meant for."""
    if victim == "run":
        with closing(database(service)) as connection:
            (pid,) = connection.execute("select pid from attempts where id = ?", (execution,)).fetchone()
        return int(pid)
    words = {
        "daemon": "daemon_process",
        "zygote": "zygote.py serve",
        "server": "gateway_process",
        "worker": "gateway_process",
    }
    lines = processes_of(service.project)
    found = [int(line.split()[0]) for line in lines if words[victim] in line]
    if victim != "daemon":
        # Forked children bear their parent's command line: server -> worker, daemon -> zygote -> keeper -> Meltano.
        parent = {"zygote": "daemon_process", "server": "flx_api serve", "worker": "gateway_process"}[victim]
        above = {int(line.split()[0]) for line in lines if parent in line}
        found = [pid for pid in found if parent_of(pid) in above]
    assert 1 == len(found), (victim, found, lines)
    return found[0]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until(condition: Callable[[], Any], what: str, timeout_s: float = 30) -> None:
    """Return when the condition holds; connection errors mean not yet."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def counted(service: Service, execution: str) -> int:
    counts = service.http.get(f"/v1/executions/{execution}/streams").json().get("counts") or {}
    return max(counts.values(), default=0)


def in_the_middle(service: Service, execution: str) -> bool:
    return counted(service, execution) >= RECORDS // 2


def is_over(service: Service, execution: str) -> bool:
    return service.http.get(f"/v1/executions/{execution}").json()["status"] in OVER


def test_random_kills(start_service: Callable[..., Service], nyc_project: Path) -> None:
    """Twenty kills in the middle of runs: each ends with its true result, and nothing lives on unseen."""
    dice = random.Random(20261123)
    tap = GatedTap(nyc_project)
    service = start_service()
    ends: dict[str, str] = {}
    for number in range(KILLS):
        victim = VICTIMS[number % len(VICTIMS)] if number < len(VICTIMS) else dice.choice(VICTIMS)
        tap.close()
        until(lambda: service.http.get("/ready").status_code == 200, "the service is ready before the run")
        answer = service.http.post(f"/v1/pipelines/{tap.job}/run", json={})
        assert 202 == answer.status_code, (number, victim, answer.text)
        execution = answer.headers["location"].rsplit("/", 1)[1]
        until(partial(in_the_middle, service, execution), f"{number}: the run is in its middle")
        os.kill(pid_of(service, victim, execution), signal.SIGKILL)
        tap.open()
        until(
            partial(is_over, service, execution),
            f"{number}: the run whose {victim} was killed is over",
        )
        over = service.http.get(f"/v1/executions/{execution}").json()
        ends[execution] = over["status"]
        expected = {"crashed"} if victim == "run" else {"succeeded"}
        assert over["status"] in expected, (number, victim, over)
        assert victim == "run" or over["records"] == RECORDS, (victim, over)
        until(lambda: service.http.get("/ready").status_code == 200, f"{number}: ready again after {victim}")
    until(lambda: not [p for p in processes_of(service.project) if "tap-gated" in p], "no tap lives on", 10)
    assert [] == [str(path) for path in service.data_dir.glob("runs/*/sys")]
    assert [] == [str(path) for path in service.data_dir.glob("runs/**/*config.json")]
    with closing(database(service)) as connection:
        assert ("ok",) == connection.execute("pragma integrity_check").fetchone()
        assert ends == dict(connection.execute("select id, status from executions").fetchall())
        rows = connection.execute("select seq, prev, topic from events order by seq").fetchall()
    heads: dict[str, int] = {}
    for seq, prev, topic in rows:
        assert heads.get(topic, 0) == prev, (seq, topic)
        heads[topic] = seq
    assert list(range(rows[0][0], rows[-1][0] + 1)) == [row[0] for row in rows]


def test_the_supervisor_killed_in_the_middle(start_service: Callable[..., Service], nyc_project: Path) -> None:
    """Kill -9 of `flx serve` ends its children but not the run; the next `flx serve` adopts it to its true end."""
    tap = GatedTap(nyc_project)
    service = start_service()
    answer = service.http.post(f"/v1/pipelines/{tap.job}/run", json={})
    execution = answer.headers["location"].rsplit("/", 1)[1]
    until(partial(in_the_middle, service, execution), "the run is in its middle")
    service.kill()
    until(
        lambda: not [p for p in processes_of(service.project) if "daemon_process" in p or "gateway_process" in p],
        "daemon and gateway ended with their supervisor",
    )
    (service.data_dir / "endpoints.json").unlink(missing_ok=True)
    second = start_service()
    assert "running" == second.http.get(f"/v1/executions/{execution}").json()["status"]
    tap.open()
    over = second.wait(execution)
    assert ("succeeded", RECORDS) == (over["status"], over["records"]), over


def test_stopping_cancels_runs(start_service: Callable[..., Service], nyc_project: Path) -> None:
    """SIGTERM to `flx serve` cancels what runs and ends everything within ten seconds."""
    tap = GatedTap(nyc_project)
    service = start_service()
    answer = service.http.post(f"/v1/pipelines/{tap.job}/run", json={})
    execution = answer.headers["location"].rsplit("/", 1)[1]
    until(partial(in_the_middle, service, execution), "the run is in its middle")
    began = time.monotonic()
    assert 0 == service.stop()
    assert time.monotonic() - began < 10
    with closing(database(service)) as connection:
        assert [("cancelled",)] == connection.execute("select status from executions").fetchall()
    assert [] == [str(path) for path in service.data_dir.glob("runs/*/sys")]
