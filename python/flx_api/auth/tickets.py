"""WebSocket tickets: a browser cannot set a header on a WebSocket, and a token in a URL ends in access logs.

A ticket stands for the principal that asked for it and lives 30 seconds. It carries what it stands for, signed with a
key that all workers of a host derive from the same secret, so that it does not matter which of them it comes back to.
Each worker remembers the tickets that were used with it: a ticket works once per worker, and so, with several workers,
at most as often as there are workers within its 30 seconds. It says who, and is signed, not encrypted.

Rules:
- Time comes in as an argument.
- Nothing of a ticket is looked at before its signature.
- A ticket is as revoked as its token is.
- What is remembered is bounded: when it is full, tickets are refused, never taken twice.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from flx_api._core import Principal
from flx_api.errors import TokenRejected
from flx_api.observability.metrics import UNKNOWN_TICKET

if TYPE_CHECKING:
    from flx_api._core import Revocations

LIFETIME_S: Final = 30
_MAX_USED: Final = 100_000


class _Content(msgspec.Struct, frozen=True, array_like=True):
    """What a ticket says."""

    id: str
    expires_s: float
    subject: str
    tenant: str | None
    roles: tuple[str, ...]
    token_id: str | None
    token_expires_s: int
    session: str | None = None
    issued_at: int | None = None
    key_id: str | None = None


_content = msgspec.json.Decoder(_Content)


class Tickets:
    """Issues and redeems the tickets of one process.

    Args:
        key: what tickets are signed with, the same for all workers (`flx_api.auth.keys.ticket_key`).
        revocations: what is asked about the token behind a ticket; None: nothing is ever revoked.
    """

    def __init__(self, key: bytes, revocations: Revocations | None = None) -> None:
        self._key = key
        self._revocations = revocations
        self._used: dict[str, float] = {}

    def issue(self, principal: Principal, now_s: float) -> str:
        """A new ticket for this principal."""
        content = _Content(
            secrets.token_urlsafe(16),
            now_s + LIFETIME_S,
            principal.subject,
            principal.tenant,
            principal.roles,
            principal.token_id,
            principal.expires_at,
            principal.session,
            principal.issued_at,
            principal.key_id,
        )
        payload = _text(msgspec.json.encode(content))
        return f"{payload}.{self._signature(payload)}"

    def redeem(self, ticket: str, now_s: float) -> Principal | None:
        """The principal behind a ticket, once; None when it was used, revoked, is too old or was never issued."""
        payload, _, signature = ticket.partition(".")
        # As bytes: compared as text, anything outside ASCII would raise.
        if not hmac.compare_digest(self._signature(payload).encode(), signature.encode("utf-8", "replace")):
            return None
        content = _content.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        self._forget_old(now_s)
        if now_s >= content.expires_s or content.id in self._used or len(self._used) >= _MAX_USED:
            return None
        # Longer than needed, so that the order of use is the order of forgetting.
        self._used[content.id] = now_s + LIFETIME_S
        if self._revokes(content):
            return None
        return Principal(
            subject=content.subject,
            tenant=content.tenant,
            roles=content.roles,
            token_id=content.token_id,
            expires_at=content.token_expires_s,
            session=content.session,
            issued_at=content.issued_at,
            key_id=content.key_id,
        )

    def admit(self, ticket: str | None, now_s: float) -> Principal:
        """Whom a ticket lets in: its token is good still.

        Raises:
            TokenRejected: there is none, or it is not good.
        """
        principal = None if ticket is None else self.redeem(ticket, now_s)
        if principal is None or principal.expires_at <= now_s:
            raise TokenRejected(UNKNOWN_TICKET)
        return principal

    def _revokes(self, content: _Content) -> bool:
        return self._revocations is not None and self._revocations.revokes(
            subject=content.subject,
            tenant=content.tenant,
            token_id=content.token_id,
            session=content.session,
            key_id=content.key_id,
            issued_at=content.issued_at,
        )

    def _signature(self, payload: str) -> str:
        return _text(hmac.digest(self._key, payload.encode("utf-8", "replace"), hashlib.sha256))

    def _forget_old(self, now_s: float) -> None:
        while self._used:
            oldest = next(iter(self._used))
            if self._used[oldest] > now_s:
                return
            del self._used[oldest]

    def __repr__(self) -> str:
        """Without the key."""
        return f"<Tickets {len(self._used)} used>"


def _text(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
