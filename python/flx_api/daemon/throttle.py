"""How often somebody may try a password: per account and per address, more slowly after each failure.

Strategy: five failures are free; each one after doubles the time until the next try, up to a quarter of an hour. An
hour without a failure forgets. Nobody can lock an account for good, and a success forgets the account's failures.

Rules:
- Pure: `now_s` is an argument. A clock that is put back makes nobody wait longer.
- Bounded: the keys longest unused are dropped first. A try that is refused does not count as a failure.
- Of its address a success takes back only what was counted of its own account: who has one must not try others with it.
"""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

FREE_FAILURES = 5
FIRST_DELAY_S = 1.0
MAX_DELAY_S = 900.0
FORGET_S = 3600.0


class _Record(NamedTuple):
    failures: int
    last_s: float


class Try(NamedTuple):
    """A try that counts as a failure until more is known: when it was, and when there was one before, if any."""

    at_s: float
    before_s: float | None


def place_of(address: str) -> str:
    """What of an address is counted, as for limits (rust/core/src/admission/client.rs): IPv6 by its /64."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(IPv6Network((int(found) >> 64 << 64, 64)))


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
        if now_s < record.last_s:
            # The clock was put back: the pause begins anew, once.
            record = self._records[key] = _Record(record.failures, now_s)
        if now_s - record.last_s >= FORGET_S:
            return 0.0
        # The exponent is bounded as well: a float of 2**2000 does not exist.
        delay: float = min(FIRST_DELAY_S * 2.0 ** min(record.failures - FREE_FAILURES, 32), MAX_DELAY_S)
        return min(max(record.last_s + delay - now_s, 0.0), delay)

    def failed(self, key: str, now_s: float) -> Try:
        """A try of this key failed, or may yet."""
        record = self._records.pop(key, None)
        stale = record is None or now_s - record.last_s >= FORGET_S
        self._records[key] = _Record(1 if stale or record is None else record.failures + 1, now_s)
        while len(self._records) > self._max_keys:
            del self._records[next(iter(self._records))]
        return Try(now_s, None if stale or record is None else record.last_s)

    def succeeded(self, key: str) -> int:
        """A try of this key succeeded: its failures are forgotten. How many they were, this try included."""
        record = self._records.pop(key, None)
        return 0 if record is None else record.failures

    def take_back(self, key: str, count: int, tried: Try) -> None:
        """A try was none that failed: so many failures were not."""
        record = self._records.get(key)
        if record is None:
            return
        if record.failures <= count:
            del self._records[key]
            return
        before_s = tried.before_s if record.last_s == tried.at_s else None
        self._records[key] = _Record(record.failures - count, record.last_s if before_s is None else before_s)

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._records)
