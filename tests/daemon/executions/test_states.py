"""The table and what is made from it."""

from __future__ import annotations

from typing import get_args

import pytest

from flx_api.daemon.executions.states import (
    ACTIVE,
    EVENTS,
    FINAL,
    HOLDING,
    STATES,
    TABLE,
    Event,
    ImpossibleError,
    after,
    diagram,
)
from flx_api.models.execution import Status


def test_states_and_events_are_those_of_the_models() -> None:
    assert set(STATES) == set(get_args(Status))
    assert set(EVENTS) == set(get_args(Event))
    assert {event for _, event in TABLE} == set(EVENTS)


def test_which_states_are_final_and_which_hold_a_slot() -> None:
    assert {"succeeded", "succeeded_with_warnings", "failed", "cancelled", "timed_out", "crashed"} == FINAL
    assert {"queued", "starting", "running", "cancelling", "retrying"} == ACTIVE
    assert {"starting", "running", "cancelling"} == HOLDING


def test_an_end_is_left_by_hand_alone_and_never_a_success() -> None:
    ways = {(state, event) for state, event in TABLE if state in FINAL}
    assert ways == {(state, "again") for state in ("failed", "cancelled", "timed_out", "crashed")}


def test_what_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(ImpossibleError, match="cancel is not possible in succeeded"):
        after("succeeded", "cancel")


def test_a_run_that_ended_right_before_its_cancellation_keeps_its_end() -> None:
    assert after("cancelling", "success") == "succeeded"
    assert after("cancelling", "failure") == "failed"
    assert after("cancelling", "stopped") == "cancelled"


def test_the_diagram_shows_every_way_once() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert len(lines) == len(set(lines)) == 2 + len(TABLE) + len(FINAL)
    assert "    queued --> starting: start" in lines
