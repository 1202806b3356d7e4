"""Positions: the hub's text and the plain way to write it are one, and what we did not make is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.positions import encode

from flx_api._core import Hub
from flx_api.events.position import Position, execution_of_log

numbers = st.integers(0, 2**53 - 1)


def refusal(text: str) -> str | None:
    hub = Hub("local")
    hub.restart("e", 0, "start", 0)
    conn = hub.connect("default", "anna", ["app"], dialect="plain")
    assert conn is not None
    return hub.subscribe(conn, ["app.x"], text, 0)[0]


@given(st.text(max_size=40), numbers, st.dictionaries(st.text(max_size=10), numbers, max_size=5))
def test_every_position_is_taken_back(epoch: str, seq: int, logs: dict[str, int]) -> None:
    assert refusal(encode(Position(epoch, seq, logs))) is None


def test_a_position_of_the_hub_is_written_as_ever() -> None:
    hub = Hub("local")
    conn = hub.connect("default", "anna", ["log"], dialect="plain")
    assert conn is not None
    hub.restart("e", 7, "start", 0)
    hub.append([("default", "execution.x.log", 3, 2, 1, b"0")], 0)
    text = hub.subscribe(conn, ["execution.*"], None, 0)[1][0]
    assert f'"pos":"{encode(Position("e", 7, {"x": 3}))}"' in text
    assert Position(*hub.position()) == Position("e", 7, {"x": 3})


def test_our_own_position_is_taken_back_with_many_logs_being_written() -> None:
    position = Position("e" * 32, 10**9, {f"{number:032x}": 10**9 for number in range(500)})
    assert refusal(encode(position)) is None


@pytest.mark.parametrize("text", ["", "?", "bm8", "WyJlIiwtMSx7fV0", "WyJlIiwxLHt9LDFd", "A" * 50_000, "é"])
def test_anything_else_is_refused(text: str) -> None:
    assert refusal(text) == "not_a_position"


def test_log_topics_are_known_by_their_shape() -> None:
    assert execution_of_log("execution.x1.log") == "x1"
    assert execution_of_log("execution.x1.status") is None
    assert execution_of_log("app.log") is None
