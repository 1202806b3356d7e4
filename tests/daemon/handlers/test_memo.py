"""Kept answers are those of the present version, and only so many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.handlers.memo import Memo


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2))))
def test_an_answer_is_never_of_another_version(asked: list[tuple[int, int]]) -> None:
    """Whatever was asked before, the answer is the one that asking anew would give."""
    memo = Memo(size=3)
    for key, version in asked:
        assert f"{key}.{version}".encode() == memo.get(key, version, f"{key}.{version}".encode)


def test_what_is_kept_is_not_made_again_and_the_oldest_is_forgotten() -> None:
    memo, made = Memo(size=2), []

    def make(key: str) -> bytes:
        made.append(key)
        return key.encode()

    for key in ("a", "b", "a", "c", "a", "b"):
        memo.get(key, 1, lambda key=key: make(key))  # type: ignore[misc]
    assert ["a", "b", "c", "b"] == made
