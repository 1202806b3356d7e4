"""What an execution that came now would wait for.

Rules:
- Pure: the queue, what goes on and the free slots in; what stands in the way out. It starts at once exactly when
  `startable` would start it behind the whole queue.
- Another tenant's execution is not named; that a state id or a slot is taken would show anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flx_api.daemon.executions.planning import Waiting, startable
from flx_api.models.plan import Wait

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flx_api.daemon.executions.store import Stored


def waits(
    wanted: Iterable[str], tenant: str, queue: Sequence[Stored], active: Sequence[Stored], free_slots: int
) -> tuple[Wait, ...]:
    """What an execution would wait for; nothing: it would start at once.

    Args:
        wanted: the state ids it will write.
        tenant: whose it is.
        queue: what waits, oldest first.
        active: what is starting, running or being cancelled.
        free_slots: how many more runs may go on at the same time.
    """
    ahead: dict[str, Stored] = {}
    for other in (*active, *queue):
        for state_id in other.execution.state_ids:
            ahead.setdefault(state_id, other)
    found = [
        Wait(
            reason="state_id",
            state_id=state_id,
            execution=ahead[state_id].id if ahead[state_id].tenant == tenant else None,
        )
        for state_id in wanted
        if state_id in ahead
    ]
    waiting = [Waiting(one.id, frozenset(one.execution.state_ids)) for one in queue]
    before = startable(waiting, (frozenset(one.execution.state_ids) for one in active), free_slots)
    if len(before) >= free_slots:
        found.append(Wait(reason="slot"))
    return tuple(found)
