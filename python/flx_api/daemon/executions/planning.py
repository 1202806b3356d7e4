"""Which waiting execution may start now.

Strategy: first come, first served, with two exceptions that follow from the rules: whoever cannot start does not keep
back those behind it, unless they want a state id that it waits for.

Rules:
- Pure: the queue in order, what is held, and the free slots in; ids out.
- Two runs never hold one state id at the same time. Meltano's own guard races and costs a failed run; this one does
  not.
- Nobody is overtaken on a state id: a waiting execution reserves its state ids against all behind it, so that a run
  of two pipelines is not starved by a stream of runs of one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Waiting(NamedTuple):
    """An execution in the queue and the state ids it will write."""

    id: str
    state_ids: frozenset[str]


def startable(queue: Iterable[Waiting], held: Iterable[frozenset[str]], free_slots: int) -> list[str]:
    """The ids that may start now, in order.

    Args:
        queue: what waits, oldest first.
        held: the state ids of each execution that is starting, running or being cancelled.
        free_slots: how many more runs may go on at the same time.
    """
    taken = {state_id for ids in held for state_id in ids}
    starts: list[str] = []
    for waiting in queue:
        if len(starts) >= free_slots:
            break
        if taken.isdisjoint(waiting.state_ids):
            starts.append(waiting.id)
        taken |= waiting.state_ids
    return starts
