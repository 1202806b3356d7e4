"""Four workers of one host share a limit without Redis: exactly it, also when one of them is killed in mid-run.

The windows lie in memory that the workers share, so it must not matter which of them a connection came to.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.barrage import LOST, Answer, Crowd, admitted

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.service import Service

    Start = Callable[..., Service]

pytestmark = pytest.mark.e2e

LIMIT, WORKERS, CONNECTIONS, REQUESTS = 50, 4, 32, 400
PATH = "/.well-known/jwks.json"
ENVIRON = {
    "FLX_WORKERS": str(WORKERS),
    "FLX_RATE_LIMITS": json.dumps(
        [{"name": "few", "by": "api_key", "limit": LIMIT, "window": "60s", "routes": [PATH]}]
    ),
}


def _wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _refusals_name_the_policy(answers: list[Answer]) -> None:
    for answer in answers:
        if answer.status == 429:
            assert '"few";q=50;w=60' == answer.headers["ratelimit-policy"]
            assert "few" in json.loads(answer.body)["detail"]
            assert 1 <= int(answer.headers["retry-after"]) <= 61


def _are_stopped(pids: list[int]) -> bool:
    """Whether all threads of these processes have stopped."""
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {"T"} == {task.read_text().rpartition(") ")[2][0] for task in tasks}


async def _connect(crowd: Crowd, workers: list[int]) -> None:
    """One connection to each worker: the others are stopped while it is taken."""
    for connection, chosen in enumerate(workers):
        others = [pid for pid in workers if pid != chosen]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        _wait_for(partial(_are_stopped, others), "a worker does not stop")
        try:
            assert 200 == (await crowd.ask(0, connection, "/health", "")).status
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("face", ["asgi", "lane"])
def test_four_workers_admit_together_what_one_would(start_service: Start, face: str) -> None:
    service = start_service(environ={**ENVIRON, "FLX_INTERFACE": face})

    async def story() -> list[Answer]:
        async with Crowd([service.url], CONNECTIONS) as crowd:
            return await crowd.burst(PATH, "one", REQUESTS)

    answers = asyncio.run(story())
    assert (LIMIT, REQUESTS - LIMIT) == (len(admitted(answers)), sum(answer.status == 429 for answer in answers))
    _refusals_name_the_policy(answers)
    # What is left is told by one count, whichever worker tells it.
    told = [int(answer.headers["ratelimit"].split(";")[1].removeprefix("r=")) for answer in admitted(answers)]
    assert list(range(LIMIT)) == sorted(told)


@pytest.mark.parametrize(("kills", "face"), [(0, "asgi"), (1, "asgi"), (2, "asgi"), (2, "lane")])
def test_a_killed_worker_takes_at_most_the_request_it_had(start_service: Start, kills: int, face: str) -> None:
    """Each worker has one request at a time here, so each that is killed can take one unit with it."""
    service = start_service(environ={**ENVIRON, "FLX_INTERFACE": face})
    _wait_for(lambda: len(service.workers) == WORKERS, "not all workers started")
    workers = service.workers
    victims, seen = workers[:kills], list[Answer]()

    def tell(answer: Answer) -> None:
        seen.append(answer)
        if victims and len(admitted(seen)) == LIMIT // (len(victims) + 1):
            os.kill(victims.pop(), signal.SIGKILL)

    async def story() -> list[Answer]:
        async with Crowd([service.url], WORKERS) as crowd:
            await _connect(crowd, workers)
            return await crowd.burst(PATH, "one", REQUESTS, tell)

    answers = asyncio.run(story())
    assert [] == victims, "all were killed in mid-run"
    lost = sum(answer.status == LOST for answer in answers)
    # The client that lost the first one may have come to the second, which then had two.
    assert lost <= sum(range(kills + 1))
    assert LIMIT - lost <= len(admitted(answers)) <= LIMIT
    assert {200, 429} == {answer.status for answer in answers} - {LOST}
    assert 429 == answers[-1].status
    _refusals_name_the_policy(answers)

    # It goes on: other workers take the places, and the windows are those of before.
    _wait_for(lambda: len(service.workers) == WORKERS, "a worker was not started again")

    async def again(key: str) -> list[Answer]:
        async with Crowd([service.url], CONNECTIONS) as crowd:
            return await crowd.burst(PATH, key, 2 * LIMIT)

    assert {429} == {answer.status for answer in asyncio.run(again("one"))}
    assert LIMIT == len(admitted(asyncio.run(again("two"))))
