"""When a token should be replaced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway_process import token

from flx_api.client.tokens import MARGIN_S, expiry_of, renewal_in_s


def test_the_end_is_read_from_the_token() -> None:
    assert 1_900_000_000 == expiry_of(token(exp=1_900_000_000))


@pytest.mark.parametrize(
    "text", ["", "opaque", "a.b", "a.b.c", "a.!!!.c", "a.bnVsbA.c", "a.e30.c", "a.eyJleHAiOiJ4In0.c"]
)
def test_what_says_no_end_has_none(text: str) -> None:
    assert expiry_of(text) is None


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_renewal_lies_between_now_and_the_end(expiry_s: float, now_s: float) -> None:
    due_s = renewal_in_s(expiry_s, now_s)
    left_s = max(expiry_s - now_s, 0)
    assert 0 <= due_s <= left_s
    assert due_s >= left_s - MARGIN_S
    assert due_s >= left_s / 2
