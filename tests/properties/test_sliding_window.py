"""The sliding window against its naive twin: the exact list of admitted times.

Uniform traffic proves nothing here; the arrivals sit on slot edges (1/64 of the window), just beside them and at the
far end, where counters that weight their oldest bucket let nearly twice the limit through.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flx_api._core import SlidingWindow

MS = 1_000_000
FIXED = settings(derandomize=True, database=None, max_examples=100)


class Log:
    """Every admitted unit of one key, for ever."""

    def __init__(self) -> None:
        self.times: list[int] = []

    def within(self, now_ns: int, span_ns: int) -> int:
        return sum(1 for at in self.times if now_ns - at < span_ns)


def arrivals(window_ms: int) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    """Lists of (nanoseconds since the last burst, hits in the burst, cost of a hit)."""
    slot = window_ms * MS // 64
    step = st.one_of(
        st.sampled_from(
            [0, 0, 0, 1, slot - 1, slot, slot + 1, 32 * slot, 63 * slot, 64 * slot - 1, 64 * slot, 65 * slot]
        ),
        st.integers(0, 70 * slot),
    )
    return st.lists(st.tuples(step, st.integers(1, 50), st.integers(1, 3)), min_size=1, max_size=40)


@given(
    limit=st.one_of(st.integers(3, 64), st.integers(65, 200)),
    start=st.integers(0, 2**60),
    bursts=arrivals(1000),
)
@FIXED
def test_never_over_the_limit_and_never_refused_for_nothing(
    limit: int, start: int, bursts: list[tuple[int, int, int]]
) -> None:
    """Admitted units of any true window stay within the limit; a refusal means it was used within 65/64 of one."""
    window = SlidingWindow(limit, 1000, max_bytes=100_000)
    log, now, span = Log(), start, 1000 * MS
    for step, hits, cost in bursts:
        now += step
        for _ in range(hits):
            admitted, remaining, reset_ns = window.hit(b"key", now, cost)
            if not admitted:
                assert log.within(now, span * 65 // 64 + 1) + cost > limit
                assert 0 < reset_ns <= span * 65 // 64
                if limit <= 64:
                    assert remaining == limit - log.within(now, span), "small limits are exact"
                break
            log.times += [now] * cost
            assert log.within(now, span) <= limit
            assert remaining <= limit - log.within(now, span)


@given(limit=st.sampled_from([1, 5, 64, 65, 150]), bursts=arrivals(640))
@FIXED
def test_reset_is_when_the_request_fits(limit: int, bursts: list[tuple[int, int, int]]) -> None:
    """After `reset_ns` the refused request fits, and not a nanosecond before."""
    window, now = SlidingWindow(limit, 640), 10**18
    for step, hits, _ in bursts:
        now += step
        for _ in range(hits):
            admitted, _, reset_ns = window.hit(b"key", now)
            if not admitted:
                assert not window.hit(b"key", now + reset_ns - 1)[0]
                now += reset_ns
                assert window.hit(b"key", now)[0]


@given(
    limit=st.sampled_from([1, 3, 65]),
    hits=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 4), st.integers(0, 3 * MS)), max_size=600),
)
@settings(FIXED, max_examples=40)
def test_crowding_gives_nobody_quota_back(limit: int, hits: list[tuple[int, int, int]]) -> None:
    """With room for a few dozen keys and many more arriving, the limit still holds for every single one."""
    window, now, span = SlidingWindow(limit, 64, max_bytes=16_000), 0, 64 * MS
    logs: dict[int, Log] = {}
    for key, burst, step in hits:
        now += step
        log = logs.setdefault(key, Log())
        for _ in range(burst):
            if window.hit(str(key).encode(), now)[0]:
                assert log.within(now, span) < limit
                log.times.append(now)


def test_a_burst_at_the_edge_does_not_double() -> None:
    """100 a minute: a burst at the end of one minute and another at the start of the next are one window."""
    window = SlidingWindow(100, 60_000)
    edge = 60_000 * MS * 1000
    admitted = sum(window.hit(b"key", edge - 1)[0] for _ in range(200))
    admitted += sum(window.hit(b"key", edge + 59_999 * MS - 1)[0] for _ in range(200))
    assert admitted == 100


def test_a_clock_that_jumps_back_stands_still() -> None:
    """A smaller `now_ns` counts as the largest seen, so it neither frees nor loses anything."""
    window = SlidingWindow(1, 1000)
    assert window.hit(b"key", 10**12)[0]
    assert not window.hit(b"key", 5)[0]
    assert not window.hit(b"key", 10**12 + 999 * MS)[0]
    assert window.hit(b"key", 10**12 + 1000 * MS)[0]


@pytest.mark.parametrize(
    ("limit", "window_ms", "max_bytes"), [(0, 1000, 10**6), (1, 0, 10**6), (1, 10**15, 10**6), (1, 1000, 0)]
)
def test_absurd_windows_are_refused(limit: int, window_ms: int, max_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"limit|window_ms|max_bytes"):
        SlidingWindow(limit, window_ms, max_bytes=max_bytes)


def test_absurd_hits_are_refused() -> None:
    window = SlidingWindow(1, 1000)
    with pytest.raises(ValueError, match="cost"):
        window.hit(b"key", 0, 0)
    for never in (-1, -(2**64), 2**64):
        with pytest.raises(OverflowError):
            window.hit(b"key", never)
    with pytest.raises(TypeError):
        window.hit(b"key", "0")  # type: ignore[arg-type]
    assert window.hit(b"late", 2**64 - 1)[0]
    assert window.hit(b"key", 0) == (True, 0, 1000 * MS)
