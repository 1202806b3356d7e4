"""Which stream a command leaves on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flx_api.observability.metrics import PoolState
from flx_api.upstream import concurrency
from flx_api.upstream.shedding import PATIENT_S
from flx_api.upstream.streams import Overloaded, Streams

ORDINARY = concurrency.FIRST - int(concurrency.FIRST * concurrency.VITAL_SHARE + 0.999)


def carrier(place: tuple[int, str], outstanding: int = 0) -> Any:
    return SimpleNamespace(connection=SimpleNamespace(place=place), outstanding=outstanding)


def test_the_one_with_the_fewest_outstanding_and_those_with_equally_few_in_turn() -> None:
    streams = Streams(sheds=False)
    busy, one, other = (carrier((1, str(number)), number == 0) for number in range(3))
    for found in (busy, one, other):
        streams.add(found, 0.0)
    chosen = [streams.choose("pipeline.list", turn, 0.0, sort="ordinary") for turn in range(6)]
    assert {id(one), id(other)} == {id(found) for found, _ in chosen}
    assert {None} == {passage for _, passage in chosen}
    avoiding = [streams.choose("pipeline.list", turn, 0.0, sort="ordinary", avoid=(1, "1"))[0] for turn in range(6)]
    assert all(found is other for found in avoiding)
    assert streams.grouped is None


def test_what_one_daemon_cannot_take_goes_to_another() -> None:
    streams = Streams(sheds=True)
    one, other = carrier((1, "here")), carrier((2, "here"))
    streams.add(one, 0.0)
    half = streams.grouped
    streams.add(other, 0.0)
    assert (concurrency.FIRST / 2, concurrency.FIRST) == (half, streams.grouped)
    taken = [streams.choose("pipeline.list", 0, 0.0, sort="ordinary")[0] for _ in range(2 * ORDINARY)]
    assert (ORDINARY, ORDINARY) == (sum(found is one for found in taken), sum(found is other for found in taken))
    with pytest.raises(Overloaded) as refusal:
        streams.choose("pipeline.list", 0, 0.0, sort="ordinary")
    assert ("overloaded", 1) == (refusal.value.code, refusal.value.retry_after_s)
    assert (one, None) == streams.choose("execution.wait", 0, 0.0, sort=None)
    assert streams.choose("system.status", 0, 0.0, sort="ordinary")[1] is not None
    none = PoolState("1", 0, 0, 0, 0, 0, 0, 0)
    assert [(concurrency.FIRST, 0)] * 2 == [streams.told(none, number)[8:] for number in (1, 2)]


def test_one_that_does_not_answer_gets_nothing_while_another_does() -> None:
    streams = Streams(sheds=True)
    one, other = carrier((1, "here")), carrier((2, "here"))
    streams.add(one, 0.0)
    passages = [streams.choose("pipeline.list", 0, 0.0, sort="ordinary")[1] for _ in range(ORDINARY)]
    for passage in passages:
        assert passage is not None
        passage.unanswered(PATIENT_S, 0.0)
    with pytest.raises(Overloaded) as refusal:
        streams.choose("pipeline.list", 0, PATIENT_S, sort="ordinary")
    assert "upstream_unavailable" == refusal.value.code
    streams.add(other, PATIENT_S)
    assert all(streams.choose("pipeline.list", turn, PATIENT_S, sort="ordinary")[0] is other for turn in range(9))


def test_a_batch_leaves_where_there_is_room_for_all_of_it() -> None:
    streams = Streams(sheds=True)
    assert (0, None) == (streams.largest_group, streams.with_room(1, 0))
    one, other = carrier((1, "here")), carrier((2, "here"), 1)
    one.outbox, other.outbox = object(), object()
    for found in (one, other):
        streams.add(found, 0.0)
    # What one of them bears, and not what both do together.
    most = streams.largest_group
    assert most is not None
    assert (most, 2 * most) == (one.load.grouped, streams.grouped)
    assert (one, None) == (streams.with_room(most, 0), streams.with_room(most + 1, 0))
    one.load.enter_many(1, "grouped")
    assert (other, one) == (streams.with_room(most, 0), streams.with_room(most - 1, 0))
    for _ in range(50):
        other.load.broke(0.0, 0.5)
    assert (most, None) == (streams.largest_group, streams.with_room(most, 0))
    one.outbox = None
    assert streams.with_room(1, 0) is None
    unshed = Streams(sheds=False)
    unshed.ready.append(other)
    assert (None, other) == (unshed.largest_group, unshed.with_room(10_000, 0))
