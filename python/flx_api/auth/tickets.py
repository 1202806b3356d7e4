"""WebSocket tickets: a browser cannot set a header on a WebSocket, and a token in a URL ends in access logs.

A ticket stands for the principal that asked for it, works once, and lives 30 seconds in the memory of this process.

Rules:
- Time comes in as an argument.
- The store is bounded: the oldest ticket goes when it is full, so that a flood costs its author's own tickets.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from flx_api._core import Principal

LIFETIME_S: Final = 30
_MAX_TICKETS: Final = 100_000


class Tickets:
    """The tickets of one process."""

    def __init__(self) -> None:
        self._tickets: dict[str, tuple[Principal, float]] = {}

    def issue(self, principal: Principal, now_s: float) -> str:
        """A new ticket for this principal."""
        self._forget_old(now_s)
        ticket = secrets.token_urlsafe(32)
        self._tickets[ticket] = (principal, now_s + LIFETIME_S)
        return ticket

    def redeem(self, ticket: str, now_s: float) -> Principal | None:
        """The principal behind a ticket, once; None when it was used, is too old or was never issued."""
        principal, expires_s = self._tickets.pop(ticket, (None, 0.0))
        return principal if now_s < expires_s else None

    def _forget_old(self, now_s: float) -> None:
        # Insertion order is order of expiry, since all tickets live equally long.
        while self._tickets:
            oldest = next(iter(self._tickets))
            if self._tickets[oldest][1] > now_s and len(self._tickets) < _MAX_TICKETS:
                return
            del self._tickets[oldest]
