"""The state machine of an execution: one table, and its picture made from it.

Strategy: `TABLE` maps (state, event) to the next state; nothing else in the package writes a status. Events are what
was seen or asked for, states are what is true afterwards. The documentation's diagram is the text of `diagram()`.

Rules:
- Pure. What is not in the table cannot happen: `after` raises, and the transaction that asked for it is rolled back.
- A final state has one way out, and only by somebody's hand: another attempt of what has not succeeded.
- `cancelling` may still end in any final state: a run that ended before the signal reached it keeps its true end.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api.models.execution import Status

Event = Literal[
    "start",
    "unable",
    "release",
    "cancel",
    "requeue",
    "retry",
    "due",
    "again",
    "success",
    "success_with_warnings",
    "failure",
    "stopped",
    "timeout",
    "vanished",
]

EVENTS: Mapping[Event, str] = MappingProxyType(
    {
        "start": "a slot and its state ids are free",
        "unable": "no process could be made, or it ended before it was released",
        "release": "the process is committed and its gate was opened",
        "cancel": "somebody asked for its end",
        "requeue": "an earlier daemon ended before the process was released: nothing has happened",
        "retry": "the attempt failed, and its pipeline allows another one",
        "due": "the pause before the next attempt is over",
        "again": "somebody asked for another attempt",
        "success": "exit 0",
        "success_with_warnings": "exit 0, but the ledger has something to say",
        "failure": "a plugin or Meltano failed",
        "stopped": "it ended because of the cancellation",
        "timeout": "it ran longer than it may",
        "vanished": "the process is gone and left no exit record",
    }
)

_ENDS: Mapping[Event, Status] = {
    "success": "succeeded",
    "success_with_warnings": "succeeded_with_warnings",
    "failure": "failed",
    "timeout": "timed_out",
    "vanished": "crashed",
}

COMES_BACK: frozenset[Status] = frozenset({"failed", "cancelled", "timed_out", "crashed"})
"""What may be tried again by hand."""

TABLE: Mapping[tuple[Status, Event], Status] = MappingProxyType(
    {
        ("queued", "start"): "starting",
        ("queued", "cancel"): "cancelled",
        ("starting", "release"): "running",
        ("starting", "unable"): "failed",
        ("starting", "requeue"): "queued",
        ("starting", "cancel"): "cancelling",
        ("starting", "retry"): "retrying",
        ("running", "cancel"): "cancelling",
        ("running", "retry"): "retrying",
        ("retrying", "due"): "queued",
        ("retrying", "cancel"): "cancelled",
        **{("running", event): end for event, end in _ENDS.items()},
        **{("cancelling", event): end for event, end in _ENDS.items()},
        ("cancelling", "stopped"): "cancelled",
        ("cancelling", "unable"): "cancelled",
        **{(state, "again"): "queued" for state in sorted(COMES_BACK)},
    }
)

STATES: tuple[Status, ...] = (
    "queued",
    "starting",
    "running",
    "cancelling",
    "retrying",
    "succeeded",
    "succeeded_with_warnings",
    "failed",
    "cancelled",
    "timed_out",
    "crashed",
)
INITIAL: Status = "queued"
FINAL: frozenset[Status] = COMES_BACK | frozenset({"succeeded", "succeeded_with_warnings"})
ACTIVE: frozenset[Status] = frozenset(STATES) - FINAL
# These hold a slot and their state ids.
HOLDING: frozenset[Status] = ACTIVE - {INITIAL, "retrying"}


class ImpossibleError(Exception):
    """An event that the table does not know in this state: a fault of ours, or a race that another writer won."""

    def __init__(self, state: Status, event: Event) -> None:
        super().__init__(f"{event} is not possible in {state}")
        self.state = state
        self.event = event


def after(state: Status, event: Event) -> Status:
    """The state after an event.

    Raises:
        ImpossibleError: the table has no such way.
    """
    try:
        return TABLE[state, event]
    except KeyError:
        raise ImpossibleError(state, event) from None


def diagram() -> str:
    """The machine as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {INITIAL}"]
    lines += [f"    {state} --> {end}: {event}" for (state, event), end in TABLE.items()]
    lines += [f"    {state} --> [*]" for state in STATES if state in FINAL]
    return "\n".join(lines) + "\n"
