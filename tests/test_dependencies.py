"""What a worker is made of."""

from __future__ import annotations

import asyncio

import pytest
from tests.gateway_app import running, settings

from flx_api.dependencies import Parts
from flx_api.errors import StartupError
from flx_api.upstream.endpoints import Endpoint


def test_parts_begin_and_end_without_a_daemon() -> None:
    async def story() -> None:
        parts = Parts(settings(), Endpoint(path="/nonexistent.sock"))
        await parts.start()
        assert parts.health.readiness().status == "not_ready"
        await parts.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(story())


def test_nothing_is_left_running() -> None:
    async def story() -> None:
        async with running() as gateway:
            assert set(gateway.parts.health.readiness().checks) == {"drain", "daemon", "revocations", "events"}

    asyncio.run(story())


def test_a_policy_that_the_core_refuses_is_said_at_the_start() -> None:
    limits = [{"name": "x", "by": "ip", "limit": 1, "window": "60s", "cost": 2}]

    async def story() -> None:
        with pytest.raises(StartupError, match="FLX_RATE_LIMITS"):
            Parts(settings(rate_limits=limits), Endpoint(path="/nonexistent.sock"))

    asyncio.run(story())
