"""Ids of executions."""

from __future__ import annotations

import uuid

from flx_api.daemon.executions.ids import uuid7_factory


def test_ids_are_uuid7_of_the_clock() -> None:
    made = uuid.UUID(uuid7_factory(lambda: 1_700_000_000_123_456, lambda _bits: 0)())
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == 1_700_000_000_123


def test_ids_increase_within_a_millisecond_and_when_the_clock_steps_back() -> None:
    times = iter([5_000_000] * 10_000 + [1_000_000] * 10)
    make = uuid7_factory(lambda: next(times))
    ids = [make() for _ in range(10_010)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
