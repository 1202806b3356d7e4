"""Two services on one real Redis keep one limit over HTTP, by the bounds of docs/decisions/0005, also without Redis.

Each service has one worker, so the fleet has two nodes. A strict and a fast policy are about one page each and count by
key, so each story has a limit of its own. Whether nodes went on alone is read from their logs: on a busy machine they
may do so although Redis is there, and then the wider bound is the one that holds.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.barrage import Crowd, admitted, most_in_a_window
from tests.redis_server import RedisServer
from tests.service import Service, copy_project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.barrage import Answer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NODES = 2
LIMIT = 48
SHARE, DEBT = LIMIT // NODES, 1
WINDOW_S = 2.0
GRACE_S = 1.0
STRICT, FAST, LONG_STRICT, LONG_FAST = "/", "/.well-known/jwks.json", "/openapi.json", "/docs"
POLICIES = [
    {"name": name, "by": "api_key", "limit": LIMIT, "window": window, "routes": [page], "mode": mode}
    for name, window, page, mode in (
        ("strict", "2s", STRICT, "strict"),
        ("fast", "2s", FAST, "fast"),
        ("long-strict", "60s", LONG_STRICT, "strict"),
        ("long-fast", "60s", LONG_FAST, "fast"),
    )
]
_KEYS = (f"key-{number}" for number in count())


class Fleet:
    """The services and their Redis."""

    def __init__(self, services: list[Service], redis: RedisServer) -> None:
        self.services = services
        self.redis = redis

    @property
    def urls(self) -> list[str]:
        """Where the services are."""
        return [service.url for service in self.services]

    @property
    def times_away(self) -> list[int]:
        """How often each service began to go on without Redis."""
        return [service.log.read_text().count('"event":"leases.away"') for service in self.services]

    def ready(self) -> list[tuple[int, str]]:
        """What each service says about itself."""
        answers = [httpx.get(f"{url}/ready", timeout=10) for url in self.urls]
        return [(answer.status_code, " ".join(answer.json()["reasons"])) for answer in answers]

    async def until_ready(self) -> None:
        """Wait until all have their leases."""
        await self.until(lambda: all(status == 200 for status, _ in self.ready()), "not all are ready")

    async def until(self, what: Callable[[], bool], otherwise: str) -> None:
        """Wait for something that others do."""
        deadline = time.monotonic() + 20
        while not await asyncio.to_thread(what):
            assert time.monotonic() < deadline, otherwise
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, prepared_plugins: Path, meltano_env: Path) -> Iterator[Fleet]:
    redis = RedisServer(tmp_path_factory.mktemp("redis"), durable=True)
    redis.start()
    environ = {
        "FLX_MELTANO": str(meltano_env),
        "FLX_REDIS_URL": redis.url,
        "FLX_RATE_LIMITS": json.dumps(POLICIES),
    }
    folder = tmp_path_factory.mktemp("fleet")
    services = [
        Service(copy_project(folder / f"node-{number}", plugins=prepared_plugins), environ=environ)
        for number in range(NODES)
    ]
    try:
        with ThreadPoolExecutor(NODES) as pool:
            list(pool.map(Service.start, services))
        yield Fleet(services, redis)
        for service in services:
            service.stop()
    finally:
        for service in services:
            service.kill_all()
        redis.kill()


def _refusals_name_the_policy(answers: list[Answer], name: str, window: int) -> None:
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    for answer in refused:
        found = json.loads(answer.body)
        assert "application/problem+json" == answer.headers["content-type"]
        assert ("rate_limited", f"The policy {name} allows {LIMIT} in {window} s") == (found["code"], found["detail"])
        assert f'"{name}";q={LIMIT};w={window}' == answer.headers["ratelimit-policy"]
        assert re.fullmatch(rf'"{name}";r=0;t=\d+', answer.headers["ratelimit"])
        # Redis may have been told late, and a lease counts a window longer than it is good.
        assert 1 <= int(answer.headers["retry-after"]) <= 2 * window + 1
    for answer in admitted(answers):
        assert answer.headers["ratelimit"].startswith(f'"{name}";r=')


async def _flood(fleet: Fleet, page: str) -> list[Answer]:
    """Requests over both services, as fast as they go, on a limit of their own: until it is used, and many more.

    A node that refuses at once can refuse hundreds before Redis, whose disk is busy, has leased it anything.
    """
    await fleet.until_ready()
    key, deadline = next(_KEYS), time.monotonic() + 20
    async with Crowd(fleet.urls, 12) as crowd:
        answers = await crowd.burst(page, key, 100)
        while len(admitted(answers)) < LIMIT:
            assert time.monotonic() < deadline, f"only {len(admitted(answers))} of {LIMIT} were admitted"
            answers += await crowd.burst(page, key, 100)
        return answers + await crowd.burst(page, key, 500)


def test_strict_admits_exactly_the_limit(fleet: Fleet) -> None:
    answers = asyncio.run(_flood(fleet, LONG_STRICT))
    assert LIMIT == len(admitted(answers))
    assert {0, 1} == {answer.server for answer in admitted(answers)}
    # 503 where Redis took longer than a request waits.
    assert {200, 429} <= {answer.status for answer in answers} <= {200, 429, 503}
    _refusals_name_the_policy(answers, "long-strict", 60)


def test_fast_admits_the_limit_and_at_most_its_debts(fleet: Fleet) -> None:
    before = fleet.times_away
    answers = asyncio.run(_flood(fleet, LONG_FAST))
    alone = NODES * SHARE if fleet.times_away != before else 0
    assert LIMIT <= len(admitted(answers)) <= LIMIT + NODES * DEBT + alone
    assert {0, 1} == {answer.server for answer in admitted(answers)}
    assert {200, 429} == {answer.status for answer in answers}, "no request waits for Redis, none fails for want of it"
    _refusals_name_the_policy(answers, "long-fast", 60)


@pytest.mark.parametrize("kept", [True, False], ids=["data-kept", "data-lost"])
def test_redis_is_killed_and_comes_back(fleet: Fleet, kept: bool) -> None:
    """The load goes on all the time: twice the limit at each service, on a strict and on a fast policy."""
    times: dict[str, float] = {}
    before = fleet.times_away

    async def story() -> tuple[list[Answer], list[Answer]]:
        await fleet.until_ready()
        over = asyncio.Event()
        async with Crowd(fleet.urls, 12) as one, Crowd(fleet.urls, 12) as other, asyncio.TaskGroup() as tasks:
            rate, key = 2 * LIMIT / WINDOW_S, next(_KEYS)
            strict = tasks.create_task(one.steady(STRICT, key, rate, over))
            fast = tasks.create_task(other.steady(FAST, key, rate, over))
            await asyncio.sleep(2 * WINDOW_S)  # of load
            fleet.redis.kill()
            times["killed"] = time.monotonic()
            await fleet.until(lambda: all(status == 503 for status, _ in fleet.ready()), "they do not miss Redis")
            assert all("limits: Redis does not answer" in reason for _, reason in fleet.ready())
            times["away"] = time.monotonic()
            await asyncio.sleep(2 * WINDOW_S)  # of load
            if not kept:
                fleet.redis.forget()
            times["started"] = time.monotonic()
            await asyncio.to_thread(fleet.redis.start)
            await fleet.until_ready()
            times["back"] = time.monotonic()
            await asyncio.sleep(WINDOW_S + GRACE_S)  # the time after which the bounds are the narrow ones again
            times["settled"] = time.monotonic()
            await asyncio.sleep(2 * WINDOW_S)  # of load
            over.set()
        return strict.result(), fast.result()

    strict, fast = asyncio.run(story())

    def between(answers: list[Answer], since: str, until: str | None = None) -> list[Answer]:
        end = times[until] if until else float("inf")
        return [answer for answer in answers if times[since] <= answer.began and answer.ended < end]

    # Strict never admits more. Without Redis it spends what it holds, and then says so.
    assert most_in_a_window(strict, WINDOW_S) <= LIMIT
    assert {200, 429, 503} == {answer.status for answer in strict}
    alone = [answer for answer in between(strict, "away", "started") if answer.began > times["away"] + WINDOW_S]
    assert {503} == {answer.status for answer in alone}
    assert "upstream_unavailable" == json.loads(alone[0].body)["code"]
    assert 1 <= int(alone[0].headers["retry-after"])

    # Fast goes on with its share, on each service.
    assert {200, 429} == {answer.status for answer in fast}
    assert most_in_a_window(fast, WINDOW_S) <= LIMIT + NODES * DEBT + NODES * SHARE
    alone = [answer for answer in between(fast, "away", "started") if answer.began > times["away"] + WINDOW_S / 4]
    assert {0, 1} == {answer.server for answer in admitted(alone)}
    assert most_in_a_window(between(fast, "away", "started"), WINDOW_S) <= LIMIT + NODES * DEBT + NODES * SHARE
    later = [answer for answer in between(fast, "killed", "started") if answer.began > times["away"] + WINDOW_S]
    assert most_in_a_window(later, WINDOW_S) <= NODES * max(SHARE, DEBT)

    # One window and the grace after it is back all is as before, and the limit is used.
    steady = [now - then for now, then in zip(fleet.times_away, before, strict=True)] == [1] * NODES
    for answers, most in ((strict, LIMIT), (fast, LIMIT + NODES * (DEBT if steady else DEBT + SHARE))):
        settled = between(answers, "settled")
        assert LIMIT // 2 <= most_in_a_window(settled, WINDOW_S) <= most
    _refusals_name_the_policy(between(strict, "settled"), "strict", 2)
    _refusals_name_the_policy(between(fast, "settled"), "fast", 2)
