"""What happened before a connection came: from the daemon, as fast as the connection takes it.

Strategy: where the hub's memory does not reach back to a position, the hub holds the connection, and what the daemon
has goes into it a batch at a time, until the memory joins on. Both faces do that in the same way; what they give to a
connection, and when that has room for more, is their own (`CatchingUp`).

Rule: whatever happens, the connection goes on: with all that it has missed, or with a gap that says why it has not.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from flx_api.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from flx_api.events.follower import Past
    from flx_api.events.position import Position

    History = Callable[[list[str], Position], AsyncGenerator[Past, None]]

_CATCH_UP_S: Final = 30.0


class CatchingUp(Protocol):
    """A connection that the hub holds."""

    def backfill(self, past: Past) -> bool | None:
        """Give it a batch: whether the memory joins on now; None when the history has ended."""
        ...

    async def room(self) -> None:
        """Wait until it has taken what it was given."""
        ...

    def give_up(self, reason: str) -> None:
        """Let it go on with a gap."""
        ...


async def catch_up(history: History, patterns: list[str], position: Position, connection: CatchingUp) -> None:
    """Feed a connection what the daemon has of some patterns since a position."""
    reason = "upstream_unavailable"
    batches = history(patterns, position)
    try:
        async with asyncio.timeout(_CATCH_UP_S):
            async for past in batches:
                if past.gap_reason or past.epoch != position.epoch:
                    reason = past.gap_reason or "epoch"
                    break
                done = connection.backfill(past)
                if done is None:
                    reason = "epoch"
                    break
                if done:
                    return
                await connection.room()
    except (TimeoutError, Unavailable):
        pass
    finally:
        # Left early, it would hold its stream until it is collected.
        await batches.aclose()
    connection.give_up(reason)
