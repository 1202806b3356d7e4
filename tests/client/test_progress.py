"""How far a client has come: single cases. Stories with cuts are in properties/test_client_progress.py."""

from __future__ import annotations

import pytest

from flx_api.client import progress
from flx_api.client.errors import SubscriptionRefused
from flx_api.client.progress import Gap, Progress
from flx_api.models.message import Error, Event, Heartbeat, Ping, Pong, Subscribe, Subscribed, Unsubscribe, Unsubscribed


def event(topic: str, seq: int, prev: int, pos: str = "p", epoch: str = "e") -> Event:
    return Event(topic, seq, prev, epoch, 0, pos, None)


def test_one_topic_goes_on_behind_its_last_event() -> None:
    one = Progress(["t"])
    assert [Subscribe("t"), Ping()] == one.begin()
    assert [] == one.take(Subscribed("t", "4"))
    assert {"t": "4"} == one.positions
    first = event("t", 5, 3, "5")
    assert [first] == one.take(first)
    assert [Subscribe("t", "5"), Ping()] == one.begin()


def test_several_go_on_together_once_they_are_level() -> None:
    two = Progress(["a", "b"], {"a": "1"})
    assert [Subscribe("a", "1"), Subscribe("b"), Ping()] == two.begin()
    two.take(Subscribed("a", "4"))
    two.take(event("a", 3, 0, "3"))
    two.take(Subscribed("b", "5"))
    assert {"a": "1", "b": "5"} == two.positions
    two.take(Pong(0))
    assert {"a": "5", "b": "5"} == two.positions
    two.take(event("a", 6, 3, "6"))
    assert [Subscribe("a", "6"), Subscribe("b", "6"), Ping()] == two.begin()


def test_what_comes_twice_is_told_once() -> None:
    one = Progress(["a", "b"], "0")
    one.begin()
    first = event("a", 1, 0)
    assert [first] == one.take(first)
    assert [] == one.take(first)


def test_a_broken_chain_is_a_gap() -> None:
    one = Progress(["a.*"])
    one.begin()
    one.take(event("a.x", 3, 2))
    one.take(event("a.y", 4, 1))
    late = event("a.x", 9, 7)
    assert [Gap("missing", "a.x", 3, 9), late] == one.take(late)
    well = event("a.y", 10, 4)
    assert [well] == one.take(well)


def test_after_a_gap_that_was_told_a_new_chain_begins() -> None:
    one = Progress(["a"])
    one.begin()
    one.take(event("a", 3, 2))
    assert [Gap("evicted")] == one.take(Error("gap", "m", "evicted", "e", "9"))
    assert {"a": "9"} == one.positions
    late = event("a", 9, 8)
    assert [late] == one.take(late)
    assert [] == one.take(event("a", 3, 2))


def test_a_gap_of_one_topic_ends_the_chain_of_that_one_alone() -> None:
    one = Progress(["*"])
    one.begin()
    for topic in "ab":
        one.take(event(topic, 3, 0))
    assert [Gap("evicted", "a", 3, 9)] == one.take(Error("gap", "m", "evicted", "e", event="a", after=3, before=9))
    assert [] == one.take(event("a", 3, 0))
    late = event("a", 9, 8)
    assert [late] == one.take(late)
    assert [Gap("missing", "b", 3, 9), event("b", 9, 8)] == one.take(event("b", 9, 8))
    assert [Gap("evicted", "b.*")] == one.take(Error("gap", "m", "evicted", "e", event="b.*"))
    again = event("b", 20, 19)
    assert [again] == one.take(again)


def test_events_may_come_between_the_numbers_of_a_gap() -> None:
    one = Progress(["a"])
    one.begin()
    one.take(event("a", 1, 0))
    gap = Error("gap", "m", "superseded", "e", event="a", after=1, before=9)
    assert [Gap("superseded", "a", 1, 9)] == one.take(gap)
    for well in (event("a", 4, 3), event("a", 7, 6), event("a", 9, 8)):
        assert [well] == one.take(well)
    late = event("a", 12, 10)
    assert [Gap("missing", "a", 9, 12), late] == one.take(late)
    # What was told of one history says nothing of another.
    assert [Gap("epoch", "a")] == one.take(event("a", 2, 1, epoch="f"))[:1]
    assert [Gap("missing", "a", 2, 6)] == one.take(event("a", 6, 5, epoch="f"))[:1]


def test_another_epoch_is_a_gap_once() -> None:
    one = Progress(["a"])
    one.begin()
    one.take(event("a", 3, 2))
    assert [Gap("epoch")] == one.take(Error("gap", "m", "epoch", "f", "0"))
    anew = event("a", 1, 0, epoch="f")
    assert [anew] == one.take(anew)
    untold = event("a", 1, 0, epoch="g")
    assert [Gap("epoch", "a"), untold] == one.take(untold)


def test_topics_of_different_epochs_are_no_gap() -> None:
    one = Progress(["*"])
    one.begin()
    for number in range(1, 4):
        for topic, epoch in (("a", "e"), ("bench.b", "of this gateway alone")):
            found = event(topic, number, number - 1, epoch=epoch)
            assert [found] == one.take(found)


def test_a_refusal_names_its_topic_which_is_not_asked_for_again() -> None:
    two = Progress(["a", "b"])
    two.begin()
    two.take(Subscribed("a", "1"))
    with pytest.raises(SubscriptionRefused) as caught:
        two.take(Error("forbidden", "no"))
    assert ("b", "forbidden", "forbidden: b: no") == (caught.value.topic, caught.value.code, str(caught.value))
    assert ("a",) == two.topics
    two.take(Pong(0))
    assert two.level
    with pytest.raises(SubscriptionRefused, match=r"^x: y$"):
        two.take(Error("x", "y"))


def test_topics_come_and_go() -> None:
    one = Progress(["a"])
    one.begin()
    one.take(Subscribed("a", "1"))
    one.take(Pong(0))
    given = one.positions
    assert [Subscribe("b", "7"), Ping()] == one.subscribe("b", "7")
    assert not one.level
    one.take(event("a", 2, 0, "8"))
    assert {"a": "1", "b": "7"} == one.positions
    assert {"a": "1"} == given
    one.take(Subscribed("b", "8"))
    one.take(Pong(0))
    assert {"a": "8", "b": "8"} == one.positions
    assert [Unsubscribe("a")] == one.unsubscribe("a")
    one.take(Unsubscribed("a"))
    one.take(Heartbeat(0))
    one.subscribe("a")
    # What came while nobody listened is not missing.
    late = event("a", 9, 8)
    assert [late] == one.take(late)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REMEMBERED", 2)
    one = Progress(["*"])
    one.begin()
    for seq, topic in enumerate("abc", 1):
        one.take(event(topic, seq, 0))
    assert [("b", False), ("c", False)] == list(one._heard)
