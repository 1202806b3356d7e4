"""Many clients submit with keys, again and again, while gateway and daemon are killed: nothing that was acknowledged is
lost, nothing happens twice.

Strategy: two kinds of commands whose effects can be counted: revocations (each time one comes into force there is an
event) and runs of real Meltano (each is an execution that keeps its key). Clients repeat what failed with the same key,
repeat some of what was acknowledged, and send some requests twice at once. Kills follow the clients' progress, not a
clock. `tests/faults/history.py` judges; `FLX_SUBMITS=1000` is the long run (1,000 for each of 8 clients).

Rules:
- Processes are killed with SIGKILL and by their id; the supervisor brings them back.
- A client gives up on a key after `PATIENCE_S`: an unknown outcome must be known by then.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import time
from collections import defaultdict
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.e2e.scripted_project import make_project
from tests.faults.history import Seen, faults
from tests.gateway_process import free_port
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENTS = 8
SUBMITS = int(os.environ.get("FLX_SUBMITS", "60"))
KILLS = max(6, SUBMITS // 25)
VICTIMS = ("daemon", "worker", "server")
PATIENCE_S = 30.0
# One of so many commands is a run; a run takes half a second of both processors.
RUN_EVERY = 12
# What says that nothing was done, or that nobody knows.
_AGAIN = {408, 429, 500, 502, 503, 504}

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300 + SUBMITS * 4)]


@pytest.fixture
def service(tmp_path: Path, meltano_env: Path) -> Iterator[Service]:
    """A service over the scripted project with a pipeline for each client."""
    project = make_project(tmp_path / "project")
    jobs = "".join(f"- {{name: job-{n}, tasks: [tap-scripted target-scripted]}}\n" for n in range(CLIENTS))
    with (project / "meltano.yml").open("a") as file:
        file.write(f"jobs:\n{jobs}")
    # A port of its own, which it keeps when it is started again.
    environ = {"FLX_MELTANO": str(meltano_env), "FLX_RATE_LIMITS": "[]", "FLX_API_PORT": str(free_port())}
    running = Service(project, environ=environ)
    try:
        yield running.start()
        running.stop()
    finally:
        running.kill_all()


class Clients:
    """Eight of them, one history."""

    def __init__(self, service: Service, dice: random.Random) -> None:
        self.service = service
        self.history: list[Seen] = []
        self.done = 0
        self.progress = asyncio.Condition()
        self._dice = dice
        self._token = service.token(sub="client")

    async def all(self) -> None:
        """All submits of all clients."""
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        dice = random.Random(self._dice.random())
        async with httpx.AsyncClient(base_url=self.service.url, headers=headers, timeout=10) as http:
            for turn in range(SUBMITS):
                key = f"{number}-{turn}"
                ask = self._ask(key, number, is_run=turn % RUN_EVERY == number)
                tries = [self._submit(http, key, ask)]
                if dice.random() < 0.1:
                    tries.append(self._submit(http, key, ask))
                await asyncio.gather(*tries)
                if dice.random() < 0.2:
                    await self._submit(http, key, ask)
                async with self.progress:
                    self.done += 1
                    self.progress.notify_all()

    @staticmethod
    def _ask(key: str, number: int, *, is_run: bool) -> tuple[str, dict[str, Any]]:
        return ("pipeline.run", {"id": f"job-{number}"}) if is_run else ("token.revoke", {"jti": key})

    async def _submit(self, http: httpx.AsyncClient, key: str, ask: tuple[str, dict[str, Any]]) -> None:
        """Try until the outcome is known."""
        command, args = ask
        deadline = time.monotonic() + PATIENCE_S
        while True:
            seen = await self._try(http, key, command, args)
            self.history.append(seen)
            if seen.outcome != "unknown":
                return
            assert time.monotonic() < deadline, f"{key}: not known after {PATIENCE_S} s"
            await asyncio.sleep(0.02)

    async def _try(self, http: httpx.AsyncClient, key: str, command: str, args: dict[str, Any]) -> Seen:
        try:
            answer = await http.post(f"/v1/commands/{command}", json=args, headers={"Idempotency-Key": key})
        except httpx.HTTPError:
            return Seen(key, "unknown")
        if answer.status_code in _AGAIN or answer.json().get("code") == "idempotency_in_progress":
            return Seen(key, "unknown")
        if answer.status_code == 409:  # the client's pipeline is still running
            return Seen(key, "refused")
        assert answer.status_code in {200, 202}, answer.text
        told = answer.json()
        if command == "pipeline.run":
            assert answer.headers["location"] == f"/v1/executions/{told['id']}"
        return Seen(key, "acknowledged", told["result"]["id"], told["meta"].get("replayed", False))


async def kill_along(clients: Clients, dice: random.Random) -> list[str]:
    """Kill something each time that a part of all submits is done; what was killed."""
    total = CLIENTS * SUBMITS
    killed = []
    for number in range(1, KILLS + 1):
        goal = total * number // (KILLS + 1) + dice.randrange(max(1, total // (2 * (KILLS + 1))))
        async with clients.progress:
            await clients.progress.wait_for(lambda goal=goal: clients.done >= goal)  # type: ignore[misc]
        victim = VICTIMS[number % len(VICTIMS)]
        with suppress(OSError, ValueError, IndexError):  # it is being started again since the last kill
            os.kill(pid_of(clients.service, victim), signal.SIGKILL)
            killed.append(victim)
    return killed


async def restart_along(clients: Clients) -> None:
    """Stop the service in order when a third is done, and again when two are, and start it anew."""
    total = CLIENTS * SUBMITS
    for goal in (total // 3, 2 * total // 3):
        async with clients.progress:
            await clients.progress.wait_for(lambda goal=goal: clients.done >= goal)  # type: ignore[misc]
        assert 0 == await asyncio.to_thread(clients.service.stop)
        await asyncio.to_thread(clients.service.start)


def pid_of(service: Service, victim: str) -> int:
    if victim == "worker":
        return service.workers[0]
    return service.child({"daemon": "daemon_process", "server": "gateway_process"}[victim])


def effects(service: Service) -> dict[str, list[str]]:
    """What happened, by key: each coming into force of a revocation, each execution."""
    found: dict[str, list[str]] = defaultdict(list)
    with closing(sqlite3.connect(f"file:{service.data_dir / 'flx.db'}?mode=ro", uri=True)) as connection:
        ids = dict(connection.execute("select value, id from revocations").fetchall())
        for (data,) in connection.execute("select data from events where topic = 'revocation_events'"):
            value = json.loads(data)["value"]
            found[value].append(ids[value])
        for key, execution in connection.execute("select idempotency_key, id from executions"):
            found[key].append(execution)
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    return found


def test_nothing_acknowledged_is_lost_and_nothing_happens_twice(service: Service) -> None:
    seed = random.SystemRandom().randrange(2**32)
    dice = random.Random(seed)

    async def story() -> tuple[Clients, list[str]]:
        clients = Clients(service, dice)
        killing = asyncio.create_task(kill_along(clients, dice))
        await clients.all()
        return clients, await killing

    clients, killed = asyncio.run(story())
    assert set(killed) == set(VICTIMS), killed
    found = effects(service)
    assert faults(clients.history, found) == [], f"seed {seed}, killed {killed}"
    acknowledged = {seen.key for seen in clients.history if seen.outcome == "acknowledged"}
    refused = {seen.key for seen in clients.history if seen.outcome == "refused"}
    assert acknowledged | refused == {f"{number}-{turn}" for number in range(CLIENTS) for turn in range(SUBMITS)}
    runs = [key for key, ids in found.items() if ids[0] in acknowledged or "-" in ids[0]]
    assert len(acknowledged) >= CLIENTS * SUBMITS * 0.9, "too many were refused to say anything"
    assert runs
    assert any(seen.replayed for seen in clients.history)
    assert any(seen.outcome == "unknown" for seen in clients.history), "no kill hit a request"


def test_a_restart_under_load_loses_nothing(service: Service) -> None:
    async def story() -> Clients:
        clients = Clients(service, random.Random())
        restarting = asyncio.create_task(restart_along(clients))
        await clients.all()
        await restarting
        return clients

    clients = asyncio.run(story())
    assert faults(clients.history, effects(service)) == []
    assert any(seen.outcome == "unknown" for seen in clients.history), "no restart met a request"
    ended = service.http.get("/v1/executions", params={"limit": 200}).json()["items"]
    assert all(one["finished_us"] or one["status"] in {"queued", "starting", "running"} for one in ended)


def test_what_the_database_holds_is_found_by_its_key(service: Service) -> None:
    """A client that lost its answer looks, instead of trying again."""
    headers = {"Idempotency-Key": "mine"}
    answer = service.http.post("/v1/pipelines/job-0/run", headers=headers)
    os.kill(pid_of(service, "daemon"), signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = service.http.get("/v1/executions", params={"idempotency_key": "mine"})
        if found.status_code == 200:
            break
        assert time.monotonic() < deadline, found.text
        time.sleep(0.02)
    (only,) = found.json()["items"]
    assert answer.headers["location"] == f"/v1/executions/{only['id']}"
    assert service.http.get("/v1/executions", params={"idempotency_key": "other"}).json()["items"] == []
    assert service.wait(only["id"])["status"].startswith("succeeded")
