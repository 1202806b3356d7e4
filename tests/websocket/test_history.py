"""What happened before a connection came, given to a connection that only counts it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.errors import Unavailable
from flx_api.events.follower import Past
from flx_api.events.position import Position
from flx_api.websocket.history import catch_up, caught_up, pieces

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from flx_api.events.follower import Told


def batch(count: int, *, is_last: bool = False) -> Past:
    events: list[Told] = [("default", "app.x", seq, seq - 1, 0, b"1") for seq in range(1, count + 1)]
    return Past("e", events, count, is_last, "", 64 * count)


class Connection:
    """One that the memory joins on to after so many events."""

    def __init__(self, joins_on: int) -> None:
        self.joins_on = joins_on
        self.given: list[int] = []
        self.reasons: list[str] = []

    def backfill(self, past: Past) -> bool | None:
        self.given += [event[2] for event in past.events]
        return len(self.given) >= self.joins_on

    async def room(self) -> None:
        """There always is."""

    def give_up(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.mark.parametrize("error", [RuntimeError(), Unavailable(), None])
def test_whatever_breaks_the_connection_goes_on_with_a_gap(error: Exception | None) -> None:
    async def history(_topics: list[str], _position: Position) -> AsyncGenerator[Past, None]:
        yield batch(3)
        if error is not None:
            raise error

    connection = Connection(joins_on=4)
    asyncio.run(catch_up(history, ["app.x"], Position("e", 0), connection))
    assert ([1, 2, 3], ["upstream_unavailable"]) == (connection.given, connection.reasons)
    connection = Connection(joins_on=3)
    asyncio.run(catch_up(history, ["app.x"], Position("e", 0), connection))
    assert ([1, 2, 3], []) == (connection.given, connection.reasons)


@given(st.integers(0, 300), st.integers(0, 20_000), st.booleans())
def test_pieces_are_the_batch_and_only_the_last_says_where_it_ends(count: int, logs: int, is_last: bool) -> None:
    whole = batch(count, is_last=is_last)
    found = list(pieces(whole, logs))
    assert whole.events == [event for piece in found for event in piece.events]
    assert [(0, False)] * (len(found) - 1) + [(count, is_last)] == [
        (piece.journal_seq, piece.is_last) for piece in found
    ]
    # An event takes some sixty bytes for each log.
    assert all(len(piece.events) * 60 * logs <= 640 * 1024 or len(piece.events) == 1 for piece in found)
    assert logs > 25 or len(found) == 1


@given(
    st.lists(
        st.tuples(st.integers(0, 200), st.booleans(), st.sampled_from(["e", "f"]), st.sampled_from(["", "x"])),
        max_size=2,
    ),
    st.integers(0, 200),
    st.sampled_from([0, 3, 3000]),
)
def test_what_is_known_ends_a_history_only_where_that_would_end_too(
    told: list[tuple[int, bool, str, str]], joins_on: int, logs: int
) -> None:
    known = [batch(count, is_last=is_last)._replace(epoch=epoch, gap_reason=gap) for count, is_last, epoch, gap in told]
    position = Position("e", 0, {f"r{number}": 1 for number in range(logs)})

    async def history(_topics: list[str], _position: Position) -> AsyncGenerator[Past, None]:
        for past in known:
            yield past
        raise Unavailable

    twin, connection = Connection(joins_on), Connection(joins_on)
    asyncio.run(catch_up(history, ["app.x"], position, twin))
    if caught_up(known, position, connection):
        assert (twin.given, twin.reasons) == (connection.given, connection.reasons)
    else:
        # Nothing was said of a gap, and what was given is given again.
        assert not connection.reasons
        assert connection.given == twin.given[: len(connection.given)]
