"""Ids of executions: UUID version 7, so that they sort by the time they were made.

Rules:
- The clock and the random source are arguments.
- Ids of one factory are strictly increasing, also within one millisecond and when the clock steps back: the order of
  ids is the order of acceptance, and paging by id is paging by age.
"""

from __future__ import annotations

import secrets
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_VERSION = 7 << 76
_VARIANT = 2 << 62
_COUNTER_BITS = 12
_TAIL_BITS = 62


def uuid7_factory(clock: Callable[[], int], random_bits: Callable[[int], int] = secrets.randbits) -> Callable[[], str]:
    """A function that makes a new id at each call.

    Args:
        clock: microseconds since the epoch.
        random_bits: as `secrets.randbits`.
    """
    last = 0

    def make() -> str:
        nonlocal last
        # Milliseconds and a counter are one number: when the counter runs over, time is borrowed from the next one.
        last = max(last + 1, (clock() // 1000) << _COUNTER_BITS)
        milliseconds, counter = last >> _COUNTER_BITS, last & ((1 << _COUNTER_BITS) - 1)
        value = milliseconds << 80 | _VERSION | counter << 64 | _VARIANT | random_bits(_TAIL_BITS)
        return str(uuid.UUID(int=value))

    return make
