"""Which gateways there are."""

from __future__ import annotations

from flx_api.events.members import ALIVE_S, EXPIRE_S, Members
from flx_api.models.connection import GatewayProcess

ME, OTHER = GatewayProcess("0a", "here", 1), GatewayProcess("0b", "there", 2)


def alive(members: Members, until_s: float, *who: GatewayProcess, since_s: float = 0) -> None:
    """Signs of life of these until then."""
    now_s = since_s
    while now_s <= until_s:
        for process in who:
            members.hear(process, now_s)
        members.expire(now_s)
        now_s += ALIVE_S


def test_who_has_heard_the_bus_long_enough_knows_all() -> None:
    members = Members(ME.id)
    assert not members.is_settled(100)
    alive(members, 10, ME, OTHER)
    assert {OTHER.id: OTHER} == members.others
    assert not members.is_settled(2)
    assert members.is_settled(10)
    # It hears nothing, not even itself.
    assert not members.is_settled(10 + 3 * ALIVE_S)
    members.hear(ME, 100)
    assert not members.is_settled(100)
    assert members.is_settled(103.5)
    members.lose(103)
    assert not members.is_settled(103.5)


def test_who_says_goodbye_is_gone_and_who_says_nothing_after_a_while() -> None:
    members = Members(ME.id)
    alive(members, 4, ME, OTHER)
    members.leave(OTHER.id)
    members.leave("nobody")
    assert {} == members.others
    members.hear(OTHER, 4)
    alive(members, 4 + EXPIRE_S, ME, since_s=4)
    assert {OTHER.id: OTHER} == members.others
    alive(members, 5 + EXPIRE_S, ME, since_s=5 + EXPIRE_S)
    assert {} == members.others


def test_a_bus_that_carries_nothing_says_nothing_about_others() -> None:
    members = Members(ME.id)
    members.hear(OTHER, 0)
    members.expire(100)
    assert {OTHER.id: OTHER} == members.others
    members.hear(ME, 100)
    members.expire(101)
    assert {OTHER.id: OTHER} == members.others
    alive(members, 102 + EXPIRE_S, ME, since_s=102)
    assert {} == members.others
