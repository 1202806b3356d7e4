"""Who asks.

A principal is made in three places only: from a frame of a trusted gateway, from the claims of a client's own token,
and `ANONYMOUS` for commands that need none (`flx_api.daemon.trust`).
"""

from __future__ import annotations

import msgspec

from flx_api.daemon.journal import DEFAULT_TENANT


class Principal(msgspec.Struct, frozen=True):
    """A subject within a tenant and what it is allowed to do; and of its token what a revocation needs."""

    subject: str
    tenant: str
    roles: tuple[str, ...]
    token_id: str | None = None
    session: str | None = None
    expires_at: int | None = None


ANONYMOUS = Principal("", DEFAULT_TENANT, ())
"""Nobody: what a public command sees when no token came with it."""
