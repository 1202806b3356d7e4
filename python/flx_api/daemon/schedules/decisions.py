"""What a schedule has to do at a moment: which firing is due, which were missed, from when on to look the next time.

Strategy: of each schedule one thing is remembered, `Past`: up to which moment it was decided about, under which rule.
Everything between that moment and now is new. Of the new firings the newest may still run when it is not too late for
it; the others, and that one too when it is too late, were missed. So a service that was down for a week tells what did
not happen and runs each schedule once at most, however often it would have fired.

    nothing remembered      count from now: what was never watched cannot be missed
    another rule            the same: the old rule's moments are over, the new one's begin where it was seen
    a moment ahead of now   the clock was put back: count from now. What has fired has its key and does not fire again

Rules:
- Pure: what is remembered, the rule and now in; a decision out. Nothing is done here.
- Deciding twice without remembering gives the same; that a firing happens once is held by its key (`firing_key`).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from flx_api.daemon.schedules.times import spell, times_between

if TYPE_CHECKING:
    from flx_api.daemon.schedules.times import Rule

COUNTED = 1000
"""So many missed firings are counted; of more it is said that there were more."""
_LONGEST_KEY = 255
_FIRST_LOOK_US = 3_600_000_000


class Past(NamedTuple):
    """What is remembered of a schedule: all moments up to this one were decided about, under the rule of this mark."""

    mark: str
    until_us: int


class Missed(NamedTuple):
    """Firings that did not happen; `more` when there were more than `firings`."""

    firings: int
    first_us: int
    last_us: int
    more: bool


class Decision(NamedTuple):
    """What to do now, and what to remember once it is done."""

    due_us: int | None
    missed: Missed | None
    past: Past


def decide(rule: Rule, past: Past | None, now_us: int, grace_us: int) -> Decision:
    """What a schedule has to do.

    Args:
        rule: when it fires.
        past: what is remembered, None for nothing.
        now_us: the present moment.
        grace_us: how late a firing may still run.
    """
    remember = Past(rule.mark, now_us)
    if past is None or past.mark != rule.mark:
        return Decision(None, None, remember)
    due_us = None
    for moment in times_between(rule, max(past.until_us, now_us - grace_us - 1), now_us):
        due_us = moment
    return Decision(due_us, _missed(rule, past.until_us, now_us, due_us), remember)


def is_news(decision: Decision, past: Past | None) -> bool:
    """Whether there is anything to do, or something to remember that cannot be found out again."""
    began_anew = past is None or past.mark != decision.past.mark or past.until_us > decision.past.until_us
    return began_anew or decision.due_us is not None or decision.missed is not None


def firing_key(name: str, moment_us: int) -> str:
    """The idempotency key of one firing; of a name that is too long for a key, its hash."""
    key = f"schedule:{name}:{spell(moment_us, 'UTC')}"
    return key if len(key) <= _LONGEST_KEY else firing_key(hashlib.sha256(name.encode()).hexdigest(), moment_us)


def _missed(rule: Rule, after_us: int, until_us: int, due_us: int | None) -> Missed | None:
    end_us = until_us if due_us is None else due_us - 1
    count, first_us, last_us = 0, None, after_us
    for moment in times_between(rule, after_us, end_us):
        if count == COUNTED:
            return Missed(count, first_us or moment, _newest(rule, last_us, end_us), more=True)
        count, last_us = count + 1, moment
        first_us = moment if first_us is None else first_us
    return None if first_us is None else Missed(count, first_us, last_us, more=False)


def _newest(rule: Rule, after_us: int, until_us: int) -> int:
    """The last moment up to an end, where there is one; looked for from the end back: years are too many to walk."""
    look_us = _FIRST_LOOK_US
    while not (found := [*times_between(rule, max(after_us, until_us - look_us), until_us)]):
        look_us *= 8
    return found[-1]
