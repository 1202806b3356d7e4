"""Tickets: one use, half a minute."""

from __future__ import annotations

from flx_api._core import Principal
from flx_api.auth.tickets import LIFETIME_S, Tickets

ANNA = Principal(subject="anna")


def test_a_ticket_works_once() -> None:
    tickets = Tickets()
    ticket = tickets.issue(ANNA, 0)
    assert tickets.redeem(ticket, 1) == ANNA
    assert tickets.redeem(ticket, 1) is None
    assert tickets.redeem("another", 1) is None


def test_an_old_ticket_is_worth_nothing_and_takes_no_room() -> None:
    tickets = Tickets()
    assert tickets.redeem(tickets.issue(ANNA, 0), LIFETIME_S) is None
    for second in range(1000):
        tickets.issue(ANNA, second)
    assert len(tickets._tickets) <= LIFETIME_S + 1
