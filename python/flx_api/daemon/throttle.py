"""How often somebody may try a password: per account and per address, more slowly after each failure.

Strategy: five failures are free; each one after doubles the time until the next try, up to a quarter of an hour. An
hour without a try forgets. Nobody can lock an account for good, and a success forgets the account's failures.

Rules:
- Pure: `now_s` is an argument.
- Bounded: the keys longest unused are dropped first. A try that is refused does not count as a failure.
"""

from __future__ import annotations

from typing import NamedTuple

FREE_FAILURES = 5
FIRST_DELAY_S = 1.0
MAX_DELAY_S = 900.0
FORGET_S = 3600.0


class _Record(NamedTuple):
    failures: int
    last_s: float


class Throttle:
    """Failures by key.

    Args:
        max_keys: how many keys are remembered.
    """

    def __init__(self, max_keys: int = 16_384) -> None:
        self._records: dict[str, _Record] = {}
        self._max_keys = max_keys

    def wait_s(self, key: str, now_s: float) -> float:
        """Seconds until this key may be tried again; 0 when it may be now."""
        record = self._records.get(key)
        if record is None or record.failures < FREE_FAILURES:
            return 0.0
        if now_s - record.last_s >= FORGET_S:
            return 0.0
        # The exponent is bounded as well: a float of 2**2000 does not exist.
        delay: float = min(FIRST_DELAY_S * 2.0 ** min(record.failures - FREE_FAILURES, 32), MAX_DELAY_S)
        return max(record.last_s + delay - now_s, 0.0)

    def failed(self, key: str, now_s: float) -> None:
        """A try of this key failed."""
        record = self._records.pop(key, None)
        stale = record is None or now_s - record.last_s >= FORGET_S
        self._records[key] = _Record(1 if stale or record is None else record.failures + 1, now_s)
        while len(self._records) > self._max_keys:
            del self._records[next(iter(self._records))]

    def succeeded(self, key: str) -> None:
        """A try of this key succeeded: its failures are forgotten."""
        self._records.pop(key, None)

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._records)
