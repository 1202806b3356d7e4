"""What happened before a connection came: from the daemon, as fast as the connection takes it.

Strategy: where the hub's memory does not reach back to a position, the hub holds the connection, and what the daemon
has goes into it a batch at a time, until the memory joins on. Both faces do that in the same way; what they give to a
connection, and when that has room for more, is their own (`CatchingUp`).

Rules:
- Whatever happens, the connection goes on: with all that it has missed, or with a gap that says why it has not.
- What is given at once fits into what may wait for a connection, however long the position is that each event has.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from flx_api.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from flx_api.events.follower import Past
    from flx_api.events.position import Position

    History = Callable[[list[str], Position], AsyncGenerator[Past, None]]

_log = structlog.get_logger("flx.websocket")

_CATCH_UP_S: Final = 30.0
# Of frames that are given at once. Data of a batch, and what waits while there is room, are beside it.
_PIECE_BYTES: Final = 640 * 1024
# What an event takes beside its data, and each log of its position.
_EVENT_BYTES: Final = 300
_LOG_BYTES: Final = 64


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


def caught_up(known: list[Past], position: Position, connection: CatchingUp) -> bool:
    """Feed a connection what is known already, if it is all of it and fits at once: whether it needs no more.

    If it does, `catch_up` begins anew: the hub drops what a connection has.
    """
    if len(known) != 1 or not known[0].is_last or known[0].gap_reason or known[0].epoch != position.epoch:
        return False
    logs = len(position.logs) + sum(1 for event in known[0].events if event[3] == 0)
    first, *others = pieces(known[0], logs)
    return not others and connection.backfill(first) is True


async def catch_up(history: History, patterns: list[str], position: Position, connection: CatchingUp) -> None:
    """Feed a connection what the daemon has of some patterns since a position."""
    reason = "upstream_unavailable"
    batches = history(patterns, position)
    logs = len(position.logs)
    try:
        async with asyncio.timeout(_CATCH_UP_S):
            async for past in batches:
                if past.gap_reason or past.epoch != position.epoch:
                    reason = past.gap_reason or "epoch"
                    break
                # A log begins with the first event of its execution, and stays in the position.
                logs += sum(1 for event in past.events if event[3] == 0)
                done: bool | None = False
                for piece in pieces(past, logs):
                    done = connection.backfill(piece)
                    if done is not False:
                        break
                    await connection.room()
                if done:
                    return
                if done is None:
                    reason = "epoch"
                    break
    except (TimeoutError, Unavailable):
        pass
    except Exception:  # noqa: BLE001 - said and logged; the hub would hold the connection for ever
        _log.exception("history.unexpected")
    finally:
        # Left early, it would hold its stream until it is collected.
        await batches.aclose()
    connection.give_up(reason)


def pieces(past: Past, logs: int) -> Iterator[Past]:
    """A batch, or its parts, when each event of it comes with a position of so many logs."""
    most = max(1, _PIECE_BYTES // (_EVENT_BYTES + _LOG_BYTES * logs))
    rest = past.events
    while len(rest) > most:
        # How far the journal was considered, and that there is no more, goes for the last of them.
        yield past._replace(events=rest[:most], journal_seq=0, is_last=False)
        rest = rest[most:]
    yield past._replace(events=rest)
