"""Cursors are opaque and only ours are taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.errors import ValidationFailed
from flx_api.models.listing import decode_cursor, encode_cursor


@given(st.text(min_size=1))
def test_round_trip(key: str) -> None:
    """A cursor gives back the key it was made of."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return
    assert key == decode_cursor(encode_cursor(key))


@pytest.mark.parametrize("cursor", ["!", "a b", "\N{SNOWMAN}", "_w", "abcde"])
def test_foreign_cursors_are_refused(cursor: str) -> None:
    """What we did not make is a validation error on `cursor`, not a fault."""
    with pytest.raises(ValidationFailed) as caught:
        decode_cursor(cursor)
    assert "cursor" == caught.value.errors[0].field


def test_no_cursor() -> None:
    """None stays None."""
    assert decode_cursor(None) is None
