"""Whether a failed attempt is followed by another one, and after what pause.

Strategy: the pause doubles with each try and is drawn from its upper half, so that many runs that failed together (a
database that was away) do not come back together.

Rules:
- Pure: a policy, how the attempt ended, how many tries there were, and a random number in; a pause or None out.
- Nobody's will is undone: what was cancelled is never tried again, and what succeeded has no need to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api.daemon.executions.states import Event
    from flx_api.models.pipeline import RetryOn, RetryPolicy

LONGEST_S: Final = 3600
_SECOND_US = 1_000_000
_KINDS: Mapping[Event, RetryOn] = {
    "failure": "failed",
    "unable": "failed",
    "vanished": "crashed",
    "timeout": "timed_out",
}


def pause_us(policy: RetryPolicy, event: Event, tries: int, jitter: float) -> int | None:
    """Microseconds until the next attempt; None when there is none.

    Args:
        policy: of the pipeline, as it was accepted.
        event: how this attempt ended.
        tries: how many attempts there were since somebody asked for the run, this one included.
        jitter: in [0, 1).
    """
    if tries > policy.retries or _KINDS.get(event) not in policy.on:
        return None
    return int(_longest_us(policy, tries) * (0.5 + jitter / 2))


def left_us(policy: RetryPolicy, tries: int, at_us: int, now_us: int) -> int:
    """Microseconds that are left of a pause after so many tries, which ends at a time of the wall clock.

    That clock may have been put back since: no pause is longer than it can have been drawn.
    """
    return min(max(0, at_us - now_us), _longest_us(policy, tries))


def _longest_us(policy: RetryPolicy, tries: int) -> int:
    # Beyond the hour doubling further means nothing, and the numbers would grow without end.
    return int(min(policy.backoff_s * 2 ** min(tries - 1, 12), LONGEST_S) * _SECOND_US)
