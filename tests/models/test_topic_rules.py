"""Rules of topics: the first that fits counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flx_api._core import Hub
from flx_api.models.topic_rules import TopicRule, closed_to, expires, expiries, remembered, rule_of

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map(".".join)
PATTERNS = st.one_of(WORDS, WORDS.map(lambda words: f"{words}.*"), st.just("*")).map(lambda rest: f"app.{rest}")


def slowly(pattern: str, topic: str) -> bool:
    """Word by word."""
    wanted, words = pattern.split("."), topic.split(".")
    if wanted[-1] == "*":
        return len(words) >= len(wanted) and words[: len(wanted) - 1] == wanted[:-1]
    return wanted == words


@given(st.lists(PATTERNS, max_size=5), WORDS.map(lambda rest: f"app.{rest}"))
def test_the_first_that_fits_counts(patterns: list[str], topic: str) -> None:
    rules = [TopicRule(pattern, max_bytes=number) for number, pattern in enumerate(patterns, 1)]
    found = rule_of(rules, topic)
    expected = next((number for number, pattern in enumerate(patterns, 1) if slowly(pattern, topic)), None)
    assert expected == (None if found is None else found.max_bytes)


@given(
    st.lists(st.tuples(PATTERNS, st.none() | st.integers(1, 5)), max_size=5),
    WORDS.map(lambda rest: f"app.{rest}"),
    st.integers(0, 6),
)
def test_an_event_expires_by_the_first_rule_that_fits(
    said: list[tuple[str, int | None]], topic: str, age_h: int
) -> None:
    hour_us = 3_600_000_000
    now_us = 100 * hour_us
    found = expiries([TopicRule(pattern, retention_h=hours) for pattern, hours in said], now_us)
    hours = next((hours for pattern, hours in said if slowly(pattern, topic)), None)
    assert (hours is not None and age_h > hours) == expires(found, topic, now_us - age_h * hour_us)
    assert (found != []) == any(hours for _, hours in said), "nothing is looked for in vain"


def test_a_rule_is_closed_to_who_has_none_of_its_roles() -> None:
    rules = [TopicRule("app.a"), TopicRule("app.b.*", subscribe=("x", "y")), TopicRule("app.c", subscribe=())]
    assert [("app.a", False), ("app.b.*", False), ("app.c", True)] == closed_to(rules, ["y"])
    assert [("app.a", False), ("app.b.*", True), ("app.c", True)] == closed_to(rules, [])


def test_what_is_remembered_is_told_to_the_hub_in_its_units() -> None:
    assert ("app.a", None, None, None, None) == remembered(TopicRule("app.a"))
    rule = TopicRule("app.*", latest="id", history_bytes=4096, history_events=7, history_s=3)
    assert ("app.*", "id", 4096, 7, 3000) == remembered(rule)
    hub = Hub("local", rules=[remembered(rule)])
    hub.restart("e", 0, "start", 0)
    conn = hub.connect("t", "anna", ["app"], "plain")
    assert conn is not None
    hub.subscribe(conn, ["app.x"], None, 0)
    hub.append([("t", "app.x", seq, seq - 1, 0, b"0") for seq in range(1, 10)], 0)
    ((_, frames),) = hub.take(1_000_000, 10)
    assert 1 + 7 == len(frames), "a gap, and the events"
