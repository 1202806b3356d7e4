"""Positions: opaque for clients, refused when we did not make them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.errors import InvalidRequest
from flx_api.events.position import Position, decode, encode, execution_of_log

numbers = st.integers(0, 2**53 - 1)


@given(st.text(max_size=40), numbers, st.dictionaries(st.text(max_size=10), numbers, max_size=5))
def test_what_was_encoded_is_decoded(epoch: str, seq: int, logs: dict[str, int]) -> None:
    position = Position(epoch, seq, logs)
    assert decode(encode(position)) == position


def test_our_own_position_is_taken_back_with_many_logs_being_written() -> None:
    position = Position("e" * 32, 10**9, {f"{number:032x}": 10**9 for number in range(500)})
    assert decode(encode(position)) == position


@pytest.mark.parametrize("text", ["", "?", "bm8", "WyJlIiwtMSx7fV0", "WyJlIiwxLHt9LDFd", "A" * 50_000, "é"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        decode(text)


def test_log_topics_are_known_by_their_shape() -> None:
    assert execution_of_log("execution.x1.log") == "x1"
    assert execution_of_log("execution.x1.status") is None
    assert execution_of_log("app.log") is None
