"""Connections to Redis as their users here want them: no retry, no probe and no deadline of their own.

Whoever holds one says how long a call may take and what a lost one means (`flx_api.limits.redis`,
`flx_api.events.redis_bus`).
"""

from __future__ import annotations

from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def pool_of(url: str, connect_s: float) -> ConnectionPool:
    """What makes connections to this address (`redis://`, `rediss://`, `unix://`), each within so many seconds."""
    return ConnectionPool.from_url(
        url,
        protocol=3,
        socket_timeout=None,
        socket_connect_timeout=connect_s,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        legacy_responses=False,
    )
