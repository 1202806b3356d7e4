"""The state machine and the plan of executions against naive twins, on arbitrary histories."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.executions.planning import Waiting, startable
from flx_api.daemon.executions.states import ACTIVE, EVENTS, FINAL, INITIAL, STATES, TABLE, ImpossibleError, after

STATE_IDS = st.frozensets(st.sampled_from("abcd"), max_size=3)


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=30))
def test_no_history_leaves_a_final_state_by_itself_or_reaches_an_unknown_one(history: list[str]) -> None:
    state = INITIAL
    for event in history:
        try:
            state = after(state, event)  # type: ignore[arg-type]
        except ImpossibleError:
            assert (state, event) not in TABLE
            continue
        assert state in STATES
        if state in FINAL:
            assert all((state, any_event) not in TABLE for any_event in EVENTS if any_event != "again")


def test_every_state_can_be_reached_and_every_active_one_can_end() -> None:
    reached = {INITIAL}
    for _ in STATES:
        reached |= {end for (state, _), end in TABLE.items() if state in reached}
    assert reached == set(STATES)
    for start in ACTIVE:
        from_here = {start}
        for _ in STATES:
            from_here |= {end for (state, _), end in TABLE.items() if state in from_here}
        assert from_here & FINAL


@pytest.mark.parametrize("state", sorted(ACTIVE - {"cancelling"}))
def test_whatever_goes_on_can_be_cancelled(state: str) -> None:
    assert after(state, "cancel") in {"cancelled", "cancelling"}  # type: ignore[arg-type]


def naive_plan(queue: list[Waiting], held: list[frozenset[str]], free: int) -> list[str]:
    """Word for word: nobody ahead of it, running or waiting, wants what it wants, and there is a slot for it."""
    starts: list[str] = []
    for place, waiting in enumerate(queue):
        ahead = [*held, *(other.state_ids for other in queue[:place])]
        if len(starts) < free and not any(waiting.state_ids & others for others in ahead):
            starts.append(waiting.id)
    return starts


@given(st.lists(STATE_IDS, max_size=8), st.lists(STATE_IDS, max_size=4), st.integers(-2, 6))
def test_the_plan_is_the_naive_one(wanted: list[frozenset[str]], held: list[frozenset[str]], free: int) -> None:
    queue = [Waiting(str(number), ids) for number, ids in enumerate(wanted)]
    assert startable(queue, held, free) == naive_plan(queue, held, free)


@given(st.lists(STATE_IDS, min_size=1, max_size=12), st.integers(1, 4), st.randoms())
def test_everything_accepted_starts_in_the_end_and_nothing_overlaps(
    wanted: list[frozenset[str]], slots: int, chance: object
) -> None:
    queue = [Waiting(str(number), ids) for number, ids in enumerate(wanted)]
    running: dict[str, frozenset[str]] = {}
    started: list[str] = []
    while queue or running:
        for name in startable(queue, running.values(), slots - len(running)):
            waiting = next(one for one in queue if one.id == name)
            assert all(waiting.state_ids.isdisjoint(other) for other in running.values())
            # Whoever waits for one of its state ids came later.
            before = [one for one in queue if int(one.id) < int(name)]
            assert all(one.state_ids.isdisjoint(waiting.state_ids) for one in before)
            running[name] = waiting.state_ids
            queue.remove(waiting)
            started.append(name)
        assert len(running) <= slots
        assert running, "nothing runs and nothing can start"
        del running[chance.choice(sorted(running))]  # type: ignore[attr-defined]
    assert sorted(started, key=int) == [str(number) for number in range(len(wanted))]
