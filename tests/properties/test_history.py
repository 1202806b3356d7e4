"""The checker itself: it must see each broken promise, and none where all were kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.history import Seen, faults

ACK = Seen("k", "acknowledged", "e")
AGAIN = ACK._replace(replayed=True)
UNKNOWN = Seen("k", "unknown")
REFUSED = Seen("k", "refused")


@pytest.mark.parametrize(
    ("history", "effects"),
    [
        ([], {}),
        ([ACK], {"k": ["e"]}),
        ([ACK, AGAIN, AGAIN], {"k": ["e"]}),
        ([UNKNOWN, AGAIN], {"k": ["e"]}),
        ([UNKNOWN], {}),
        ([UNKNOWN], {"k": ["e"]}),
        ([REFUSED, UNKNOWN, ACK], {"k": ["e"]}),
        ([REFUSED, REFUSED], {}),
        ([REFUSED, UNKNOWN], {"k": ["e"]}),
    ],
)
def test_kept_promises(history: list[Seen], effects: dict[str, list[str]]) -> None:
    assert faults(history, effects) == []


@pytest.mark.parametrize(
    ("history", "effects", "word"),
    [
        ([ACK], {}, "lost"),
        ([ACK, UNKNOWN], {}, "lost"),
        ([ACK], {"k": ["e", "e"]}, "happened 2 times"),
        ([UNKNOWN], {"k": ["e", "f"]}, "happened 2 times"),
        ([ACK, Seen("k", "acknowledged", "f", replayed=True)], {"k": ["e"]}, "answered in 2 ways"),
        ([ACK], {"k": ["f"]}, "something else"),
        ([ACK, ACK], {"k": ["e"]}, "the first"),
        ([REFUSED], {"k": ["e"]}, "refused and happened"),
        ([], {"k": ["e"]}, "nobody asked"),
        ([Seen("l", "unknown")], {"k": ["e"]}, "nobody asked"),
    ],
)
def test_broken_promises(history: list[Seen], effects: dict[str, list[str]], word: str) -> None:
    assert any(word in fault for fault in faults(history, effects))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["lose ask", "lose answer", "answer"])), max_size=12))
def test_a_service_that_keeps_them_is_never_accused(tries: list[tuple[str, str]]) -> None:
    """A model that does what it promises, under losses on both ways."""
    done: dict[str, list[str]] = {}
    history = []
    for key, fate in tries:
        if fate == "lose ask":
            history.append(Seen(key, "unknown"))
            continue
        replayed = key in done
        done.setdefault(key, [f"effect of {key}"])
        acknowledged = Seen(key, "acknowledged", done[key][0], replayed)
        history.append(acknowledged if fate == "answer" else Seen(key, "unknown"))
    assert faults(history, done) == []
