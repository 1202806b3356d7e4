"""Schedules through the real service: Meltano runs in both forms, firings survive kills, each happens once.

Strategy: schedules of every minute, on a wall clock that is put forward to a few seconds before the next one. Whatever
is waited for is an event, the end of an execution or the moment itself. What happened is read from the journal
afterwards: it must tell of each minute once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import websockets
from tests.e2e.scripted_project import MELTANO_YML, make_project
from tests.e2e.wall_clock import MINUTE_S, WallClock
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MINUTE_US = MINUTE_S * 1_000_000
LEFT_S = 3.0
SCHEDULES = """
jobs:
- {name: load, tasks: [tap-scripted target-scripted]}
schedules:
- {name: every, interval: '* * * * *', job: load, env: {TAP_SCRIPTED_WORD: of-every}}
- {name: old, interval: '* * * * *', extractor: tap-scripted, loader: target-scripted, transform: skip,
   env: {TAP_SCRIPTED_WORD: of-old}}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of small scripts with a schedule of each form."""
    folder = make_project(tmp_path / "scripted")
    (folder / "meltano.yml").write_text(MELTANO_YML + SCHEDULES)
    tap = folder / "tap.py"
    tap.write_text(
        tap.read_text().replace(
            'mode = os.environ.get("TAP_SCRIPTED_MODE", "")',
            'mode = os.environ.get("TAP_SCRIPTED_MODE", "")\n'
            '(here / f"word-{os.getpid()}").write_text(os.environ.get("TAP_SCRIPTED_WORD", ""))',
        )
    )
    return folder


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    """The service's clock."""
    return WallClock(tmp_path)


@pytest.fixture
def service(project: Path, meltano_env: Path, clock: WallClock) -> Iterator[Service]:
    """A service on it, not started."""
    ours = {"FLX_SCHEDULES": "on", "FLX_TIMEZONE": "America/New_York", **clock.environ}
    made = Service(project, environ={"FLX_MELTANO": str(meltano_env), **ours})
    try:
        yield made
        made.stop()
    finally:
        made.kill_all()


async def fired(service: Service, clock: WallClock, count: int) -> list[dict[str, Any]]:
    """The next so many events of type `fired`, as a WebSocket hears them; soon, by this clock."""
    found: list[dict[str, Any]] = []
    headers = {"Authorization": f"Bearer {service.token('viewer')}"}
    async with websockets.connect(f"{service.ws_url}/ws/schedules", additional_headers=headers) as socket:
        await socket.send(json.dumps({"type": "subscribe", "event": "schedule_events"}))
        while json.loads(await asyncio.wait_for(socket.recv(), 10))["type"] != "subscribed":
            pass
        await asyncio.to_thread(clock.approach_minute, LEFT_S)
        while len(found) < count:
            message = json.loads(await asyncio.wait_for(socket.recv(), 2 * MINUTE_S))
            if message["type"] == "event" and message["data"]["type"] == "fired":
                found.append(message["data"])
    return found


def journalled(service: Service, kind: str) -> list[dict[str, Any]]:
    """The events of one type, oldest first."""
    with closing(sqlite3.connect(f"file:{service.data_dir / 'flx.db'}?mode=ro", uri=True)) as connection:
        rows = connection.execute("select data from events where topic = 'schedule_events' order by seq").fetchall()
    return [event for (data,) in rows if (event := json.loads(data))["type"] == kind]


def test_both_forms_fire_and_run(service: Service, clock: WallClock) -> None:
    """A job, and an extractor with a loader, whose state is kept under the schedule's name."""
    service.start()
    listed = service.http.get("/v1/schedules", params={"coming": 2}).json()
    assert ("America/New_York", True) == (listed["timezone"], listed["firing"])
    assert [2, 2] == [len(item["next_us"]) for item in listed["items"]]
    events = asyncio.run(fired(service, clock, 2))
    by_name = {event["schedule"]: event for event in events}
    assert {"every", "old"} == by_name.keys()
    for name, pipeline, states in (
        ("every", "load", ["dev:tap-scripted-to-target-scripted"]),
        ("old", "schedule:old", ["old"]),
    ):
        over = service.wait(by_name[name]["execution"])
        assert over["status"] in {"succeeded", "succeeded_with_warnings"}, over
        assert (pipeline, "schedule", f"schedule:{name}", states, 2) == (
            over["pipeline"],
            over["trigger"],
            over["triggered_by"],
            over["state_ids"],
            over["records"],
        )
        shown = service.http.get(f"/v1/schedules/{name}").json()
        assert by_name[name]["fire_us"] <= shown["last_fired_us"]
    assert {"of-every", "of-old"} == {file.read_text() for file in service.project.glob("word-*")}
    with closing(sqlite3.connect(service.project / ".meltano" / "meltano.db")) as connection:
        kept = {state_id for (state_id,) in connection.execute("select state_id from state")}
    assert {"dev:tap-scripted-to-target-scripted", "old"} <= kept


def test_switched_off_and_run_by_hand(service: Service, clock: WallClock) -> None:
    """What is disabled does not fire, and by hand it still runs, once for a key."""
    clock.leave_minute()
    service.start()
    for name in ("every", "old"):
        assert service.http.post(f"/v1/schedules/{name}/disable").json()["enabled"] is False
    answers = [
        service.http.post("/v1/schedules/old/run", json={}, headers={"Idempotency-Key": "once"}) for _ in range(2)
    ]
    assert [202, 202] == [answer.status_code for answer in answers]
    location, again = (answer.headers["location"] for answer in answers)
    assert location == again
    over = service.wait(location.rsplit("/", 1)[1])
    assert over["status"] in {"succeeded", "succeeded_with_warnings"}, over
    assert ("api", "tester", 2) == (over["trigger"], over["triggered_by"], over["records"])
    assert [] == journalled(service, "fired")
    viewer = {"Authorization": f"Bearer {service.token('viewer')}"}
    assert 403 == service.http.post("/v1/schedules/old/enable", headers=viewer).status_code
    assert 404 == service.http.get("/v1/schedules/nothing").status_code


def test_runs_of_the_old_form_end_like_any_other(service: Service, clock: WallClock) -> None:
    """Cancelled, out of time, failed, in full: `meltano elt` is judged as `meltano run` is."""
    clock.leave_minute()
    service.start()
    for name in ("every", "old"):
        service.http.post(f"/v1/schedules/{name}/disable")
    hold, tap = service.project / "hold", service.project / "tap.py"

    def begin(**args: Any) -> str:
        for file in service.project.glob("started-*"):
            file.unlink()
        answer = service.http.post("/v1/schedules/old/run", json=args)
        assert 202 == answer.status_code, answer.text
        return str(answer.headers["location"]).rsplit("/", 1)[1]

    hold.touch()
    execution = begin()
    service.until(lambda: bool([*service.project.glob("started-*")]), "the tap has started")
    assert "already_running" == service.http.post("/v1/schedules/old/run", json={}).json()["code"]
    service.http.delete(f"/v1/executions/{execution}")
    assert "cancelled" == service.wait(execution)["status"]
    late = service.wait(begin(timeout_s=1))
    assert ("timed_out", "The run took longer than 1 s.") == (late["status"], late["error"])
    hold.unlink()
    full = service.wait(begin(refresh="full"))
    assert ("full", 2) == (full["refresh"], full["records"])
    words = tap.read_text()
    tap.write_text("#!/bin/sh\nexit 3\n")
    failed = service.wait(begin())
    assert "failed" == failed["status"]
    assert "tap-scripted ended with exit code 3" in failed["error"]
    tap.write_text(words)
    again = service.http.post(f"/v1/executions/{failed['id']}/retry")
    assert 202 == again.status_code, again.text
    over = service.wait(failed["id"])
    assert over["status"] in {"succeeded", "succeeded_with_warnings"}, over
    assert (2, 2) == (over["attempts"], over["records"])
    assert "of-old" == max(service.project.glob("word-*"), key=lambda file: file.stat().st_mtime_ns).read_text()


def test_kills_around_the_moment_of_firing(service: Service, clock: WallClock) -> None:
    """Kill -9 of the daemon right before it is time, and as soon as it has fired: each minute is told of once."""
    service.start()
    killed = 0
    for early_s in (0.4, 0.05):
        service.until(partial(is_ready, service, but_not=killed), "the service is ready before it is time")
        boundary = clock.approach_minute(LEFT_S)
        while clock.now_s() < boundary - early_s:
            time.sleep(0.005)
        os.kill(service.child("daemon_process"), signal.SIGKILL)
        service.until(partial(are_told, service, boundary * 1_000_000), f"both schedules have fired for {boundary}")
        killed = service.child("daemon_process")
        os.kill(killed, signal.SIGKILL)
    service.until(partial(is_ready, service, but_not=killed), "the service is ready again")
    for name in ("every", "old"):
        minutes = [event["fire_us"] for event in told(service) if event["schedule"] == name]
        assert len(minutes) >= 2
        assert list(range(minutes[0], minutes[-1] + 1, MINUTE_US)) == minutes
    with closing(sqlite3.connect(f"file:{service.data_dir / 'flx.db'}?mode=ro", uri=True)) as connection:
        began = connection.execute("select id from executions where \"trigger\" = 'schedule'").fetchall()
        keys = connection.execute("select key from idempotency where tenant = ''").fetchall()
    assert sorted(event["execution"] for event in journalled(service, "fired")) == sorted(key for (key,) in began)
    assert len(keys) == len(told(service))


def is_ready(service: Service, but_not: int) -> bool:
    """Whether it says so, and with another daemon than this process."""
    try:
        return service.child("daemon_process") != but_not and service.http.get("/ready").status_code == 200
    except (OSError, ValueError):
        return False  # there is none just now


def are_told(service: Service, fire_us: int) -> bool:
    """Whether both schedules have said what became of a time."""
    return 2 == [event["fire_us"] for event in told(service)].count(fire_us)


def told(service: Service) -> list[dict[str, Any]]:
    """Firings, and those that were skipped since the run before was not over."""
    return sorted((*journalled(service, "fired"), *journalled(service, "skipped")), key=lambda event: event["fire_us"])
