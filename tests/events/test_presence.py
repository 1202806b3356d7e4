"""Presence over gateways that miss messages, die and come back, against what is really so.

Strategy: a world of gateways whose connections come and go. A bus carries what they tell to everybody who is there, may
lose some of it for some, and says so as buses do, or stays silent where a number is missing. After everything has come
to rest each gateway knows exactly who is there, and what it told is what it knows.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from flx_api.events.presence import ALIVE_S, EXPIRE_S, RETURN_S, Presence, Tidings

TURN_S = 0.25
SUBJECTS, TOPICS, GATEWAYS = ("ann", "bert"), ("app.a", "app.b"), 3


class World:
    """Some gateways, the bus between them, and the truth."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.made = 0
        self.rosters: dict[int, Presence] = {}
        self.told: dict[int, dict[tuple[str, str], set[str]]] = {}
        self.truth: dict[int, Counter[tuple[str, str]]] = {}
        self.waiting: dict[int, list[tuple[str, str, str, bool]]] = {}
        # Of the next so many messages each is lost for this gateway.
        self.deaf: Counter[int] = Counter()
        for gateway in range(GATEWAYS):
            self.begin(gateway)

    def begin(self, gateway: int) -> None:
        if gateway not in self.rosters:
            self.made += 1
            self.rosters[gateway] = Presence(f"g{self.made}")
            self.told[gateway], self.truth[gateway], self.waiting[gateway] = {}, Counter(), []

    def die(self, gateway: int) -> None:
        for of in (self.rosters, self.told, self.truth, self.waiting):
            of.pop(gateway, None)

    def leave_well(self, gateway: int) -> None:
        if gateway in self.rosters:
            said = self.rosters[gateway].bye()
            self.die(gateway)
            self.carry(said)

    def move(self, gateway: int, subject: str, topic: str, *, here: bool) -> None:
        if gateway in self.rosters and (here or self.truth[gateway][subject, topic] > 0):
            self.truth[gateway][subject, topic] += 1 if here else -1
            self.waiting[gateway].append(("t", topic, subject, here))

    def carry(self, tidings: Tidings) -> None:
        for gateway, roster in self.rosters.items():
            if self.deaf[gateway] > 0:
                self.deaf[gateway] -= 1
            else:
                roster.take(tidings, self.now_s)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.now_s += TURN_S
            for gateway, roster in list(self.rosters.items()):
                changes, self.waiting[gateway] = self.waiting[gateway], []
                for tidings in list(roster.note(changes, self.now_s)):
                    self.carry(tidings)
                roster.expire(self.now_s)
                for change in roster.news(self.now_s):
                    present = self.told[gateway].setdefault((change.tenant, change.topic), set())
                    assert not present & set(change.joined)
                    assert set(change.left) <= present | set(change.joined)
                    present |= set(change.joined)
                    present -= set(change.left)
                    assert change.present == len(present)

    def judge(self) -> None:
        for gateway, roster in self.rosters.items():
            assert roster.is_whole
            for topic in TOPICS:
                present = {
                    subject for counts in self.truth.values() for subject in SUBJECTS if counts[subject, topic] > 0
                }
                assert present == roster.members("t", topic), (gateway, topic)
                assert present == self.told[gateway].get(("t", topic), set())


GATEWAY, SUBJECT, TOPIC = st.integers(0, GATEWAYS - 1), st.sampled_from(SUBJECTS), st.sampled_from(TOPICS)
DEEDS = st.one_of(
    st.tuples(st.just("move"), GATEWAY, SUBJECT, TOPIC, st.booleans()),
    st.tuples(st.just("move"), GATEWAY, SUBJECT, TOPIC, st.booleans()),
    st.tuples(st.just("turn"), st.integers(1, 12)),
    st.tuples(st.just("deaf"), GATEWAY, st.integers(1, 4)),
    st.tuples(st.just("loss"), GATEWAY),
    st.tuples(st.just("die"), GATEWAY),
    st.tuples(st.just("leave"), GATEWAY),
    st.tuples(st.just("begin"), GATEWAY),
)


@given(st.lists(DEEDS, max_size=60))
def test_when_all_is_quiet_everybody_knows_who_is_there(deeds: list[tuple[object, ...]]) -> None:
    world = World()
    for deed in deeds:
        match deed:
            case ("move", int() as gateway, str() as subject, str() as topic, bool() as here):
                world.move(gateway, subject, topic, here=here)
            case ("turn", int() as times):
                world.turn(times)
            case ("deaf", int() as gateway, int() as count):
                world.deaf[gateway] = count
            case ("loss", int() as gateway):
                if gateway in world.rosters:
                    world.rosters[gateway].lose()
            case ("die", int() as gateway):
                world.die(gateway)
            case ("leave", int() as gateway):
                world.leave_well(gateway)
            case (_, int() as gateway):
                world.begin(gateway)
    world.deaf.clear()
    world.turn(int((EXPIRE_S + RETURN_S + 3 * ALIVE_S) / TURN_S))
    world.judge()


def test_a_gateway_that_is_killed_is_gone_within_its_bound_and_not_at_once() -> None:
    world = World()
    world.move(0, "ann", "app.a", here=True)
    world.turn(int(2 * EXPIRE_S / TURN_S))
    world.die(0)
    world.turn(int((EXPIRE_S - ALIVE_S) / TURN_S))
    assert {"ann"} == world.told[1]["t", "app.a"]
    world.turn(int((ALIVE_S + RETURN_S) / TURN_S) + 2)
    assert set() == world.told[1]["t", "app.a"]
    world.judge()


def test_who_is_back_soon_was_never_gone() -> None:
    world = World()
    world.move(0, "ann", "app.a", here=True)
    world.turn(2)
    world.move(0, "ann", "app.a", here=False)
    world.turn(3)
    # At another gateway.
    world.move(1, "ann", "app.a", here=True)
    told: list[object] = []
    for _ in range(40):
        world.now_s += TURN_S
        for gateway, roster in world.rosters.items():
            changes, world.waiting[gateway] = world.waiting[gateway], []
            for tidings in list(roster.note(changes, world.now_s)):
                world.carry(tidings)
            told += roster.news(world.now_s)
    assert [] == told
    world.judge()


def test_a_bus_that_is_away_says_nothing_about_others() -> None:
    world = World()
    world.move(0, "ann", "app.a", here=True)
    world.turn(4)
    world.deaf.update(dict.fromkeys(range(GATEWAYS), 1_000_000))
    world.turn(int(3 * EXPIRE_S / TURN_S))
    assert {"ann"} == world.told[1]["t", "app.a"]
    world.deaf.clear()
    world.turn(int(2 * ALIVE_S / TURN_S))
    assert {"ann"} == world.told[1]["t", "app.a"]
    world.judge()


def test_many_are_told_in_parts() -> None:
    world = World()
    for number in range(1_203):
        world.waiting[0].append(("t", "app.a", f"s{number}", True))
    world.turn(2)
    assert 1_203 == len(world.rosters[1].members("t", "app.a")) == len(world.told[2]["t", "app.a"])
    world.rosters[1].lose()
    world.turn(int(2 * ALIVE_S / TURN_S))
    assert world.rosters[1].is_whole
