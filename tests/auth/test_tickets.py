"""Tickets: one use, half a minute, any worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.gateway_app import settings

from flx_api._core import Principal
from flx_api.auth.keys import ticket_key
from flx_api.auth.tickets import LIFETIME_S, Tickets
from flx_api.config import secret_of

if TYPE_CHECKING:
    import pytest

KEY = b"k" * 32
ANNA = Principal(subject="anna", tenant="t", roles=("viewer", "editor"), token_id="j", expires_at=99)


def test_a_ticket_works_once() -> None:
    tickets = Tickets(KEY)
    ticket = tickets.issue(ANNA, 0)
    assert tickets.redeem(ticket, 1) == ANNA
    assert tickets.redeem(ticket, 1) is None
    assert tickets.redeem(ticket, LIFETIME_S - 0.1) is None


def test_a_ticket_of_one_worker_works_with_another() -> None:
    made = settings()
    one, other = Tickets(ticket_key(made)), Tickets(ticket_key(made))
    assert other.redeem(one.issue(ANNA, 0), 1) == ANNA
    bare = Principal(subject="bert")
    assert other.redeem(one.issue(bare, 0), 1) == bare
    assert secret_of(made) != ticket_key(made)


def test_what_was_not_issued_is_worth_nothing() -> None:
    tickets = Tickets(KEY)
    payload, signature = tickets.issue(ANNA, 0).split(".")
    forged = Tickets(b"another").issue(ANNA, 0)
    changed = ("A" if payload[0] != "A" else "B") + payload[1:]
    for ticket in ("", ".", "another", "ä.ö", "\udce4.x", payload, f"{payload}.", f"{changed}.{signature}", forged):
        assert tickets.redeem(ticket, 1) is None
    assert tickets.redeem(f"{payload}.{signature}", 1) == ANNA
    assert "kkk" not in repr(tickets)


def test_an_old_ticket_is_worth_nothing_and_used_ones_are_forgotten() -> None:
    tickets = Tickets(KEY)
    assert tickets.redeem(tickets.issue(ANNA, 0), LIFETIME_S) is None
    for second in range(1000):
        assert tickets.redeem(tickets.issue(ANNA, second), second) == ANNA
    assert len(tickets._used) <= LIFETIME_S + 1


def test_what_cannot_be_remembered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.auth.tickets._MAX_USED", 1)
    tickets = Tickets(KEY)
    assert tickets.redeem(tickets.issue(ANNA, 0), 0) == ANNA
    late = tickets.issue(ANNA, 29)
    assert tickets.redeem(late, 29) is None
    assert tickets.redeem(late, 30) == ANNA
