"""The log of ephemeral events against a list that forgets nothing."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from flx_api.events.ephemeral_log import EphemeralEvent, EphemeralLog, Once


@given(st.lists(st.integers(0, 900), max_size=60), st.integers(0, 70), st.integers(1, 20), st.integers(1, 3000))
def test_what_is_after_a_number_comes_or_is_said_to_be_lost(sizes: list[int], seq: int, limit: int, room: int) -> None:
    log = EphemeralLog("e", lambda: 7, events=16, size=8_000)
    told = [EphemeralEvent("t", "app.x", 7, b"%d" % number + b" " * size) for number, size in enumerate(sizes)]
    for event in told:
        log.append(event.tenant, event.topic, event.data)
    assert len(told) == log.seq
    kept = 0
    while kept < min(16, len(told)) and (kept == 0 or sum(len(e.data) + 200 for e in told[-kept - 1 :]) <= 8_000):
        kept += 1
    expected = "epoch" if seq > len(told) else "evicted" if seq < len(told) - kept else ""
    assert expected == log.lost("e", seq)
    assert "epoch" == log.lost("other", seq)
    if not expected:
        found = log.after(seq, limit, room)
        assert told[seq : seq + len(found)] == found
        assert len(found) <= limit
        assert bool(found) == (seq < len(told))
        assert sum(len(event.data) + 200 for event in found[:-1]) < room


def test_who_waits_is_woken_and_a_repetition_is_nothing_new() -> None:
    async def story() -> None:
        log = EphemeralLog("e", lambda: 7, events=2)
        waiting = asyncio.ensure_future(log.changed(0))
        await asyncio.sleep(0)
        assert not waiting.done()
        for key in ("a", "a", "b", "a", "c", "a"):
            assert log.append("t", "app.x", b"1", Once(key, "1"))
            assert not log.append("t", "app.x", b"2", Once(key, "2"))
        # Two are remembered, so the first is forgotten with the third.
        assert 4 == log.seq
        assert await waiting

    asyncio.run(story())
