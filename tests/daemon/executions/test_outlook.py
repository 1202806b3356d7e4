"""What a new execution would wait for, against the plan that would let it start."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.executions.outlook import waits
from flx_api.daemon.executions.planning import Waiting, startable
from flx_api.daemon.executions.store import Plan, Stored
from flx_api.models.execution import Execution
from flx_api.models.plan import Wait

STATE_IDS = st.lists(st.sampled_from("abcd"), max_size=3, unique=True)


def stored(key: str, state_ids: list[str], tenant: str = "default") -> Stored:
    shown = Execution(key, "p", "queued", "api", "ann", None, "incremental", tuple(state_ids), 1, 1)
    return Stored(shown, tenant, Plan((), ()), None, key, None)


@given(STATE_IDS, st.lists(STATE_IDS, max_size=5), st.lists(STATE_IDS, max_size=3), st.integers(-1, 4))
def test_nothing_is_in_the_way_exactly_when_it_would_start(
    wanted: list[str], queue: list[list[str]], active: list[list[str]], free: int
) -> None:
    waiting = [stored(f"q{number}", ids) for number, ids in enumerate(queue)]
    going = [stored(f"a{number}", ids) for number, ids in enumerate(active)]
    found = waits(wanted, "default", waiting, going, free)
    line = [Waiting(one.id, frozenset(one.execution.state_ids)) for one in waiting]
    starts = startable([*line, Waiting("me", frozenset(wanted))], [frozenset(ids) for ids in active], free)
    assert ("me" in starts) == (found == ())
    for wait in found:
        if wait.reason == "state_id":
            other = next(one for one in (*going, *waiting) if one.id == wait.execution)
            assert wait.state_id in other.execution.state_ids


def test_what_goes_on_is_named_before_what_waits_and_another_tenants_is_not() -> None:
    found = waits(
        ["x", "y", "z"],
        "default",
        [stored("q", ["x", "z"]), stored("mine", ["y"])],
        [stored("a", ["x"]), stored("theirs", ["y"], "other")],
        0,
    )
    assert found == (
        Wait(reason="state_id", state_id="x", execution="a"),
        Wait(reason="state_id", state_id="y", execution=None),
        Wait(reason="state_id", state_id="z", execution="q"),
        Wait(reason="slot"),
    )
