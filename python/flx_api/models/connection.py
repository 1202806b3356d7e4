"""Live connections, as those see them who run the service."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from flx_api.models.auth import ClaimText
from flx_api.models.listing import Limit

ConnectionId = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[1-9][0-9]{0,18}$(?!\n)")]
ClientId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:@-]{1,128}$(?!\n)")]


class ConnectionListArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page of the tenant's connections to the gateway process that is asked, oldest first; those of one subject with
    `subject`.
    """

    limit: Limit = 50
    cursor: str | None = None
    subject: ClaimText | None = None


class Connection(msgspec.Struct, frozen=True):
    """A live connection. `since_us` is in microseconds, `expires_at` (of its token) in seconds since 1970;
    `listener` is the main port's or the native one.
    """

    id: str
    client_id: str
    subject: str
    listener: Literal["main", "native"]
    since_us: int
    expires_at: int


class ConnectionPage(msgspec.Struct, frozen=True):
    """A page of connections; `next_cursor` is None on the last."""

    items: tuple[Connection, ...]
    next_cursor: str | None


class ConnectionSlowestArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tenant's connections to the gateway process that is asked which are furthest behind, at most so many."""

    limit: Limit = 20


class SlowConnection(msgspec.Struct, frozen=True):
    """A connection, and how many events its process has heard since where it is: at least those it has still to get."""

    behind: int
    connection: Connection


class SlowConnections(msgspec.Struct, frozen=True):
    """The furthest behind first; who has all is not among them."""

    items: tuple[SlowConnection, ...]


class ConnectionDisconnectArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which connections of the tenant are to end: exactly one of `id`, `subject` and `client_id`."""

    id: ConnectionId | None = None
    subject: ClaimText | None = None
    client_id: ClientId | None = None

    def __post_init__(self) -> None:
        """Hold that one thing is named."""
        if [self.id, self.subject, self.client_id].count(None) != 2:  # noqa: PLR2004 - of three
            msg = "names exactly one of id, subject and client_id"
            raise ValueError(msg)


class Disconnected(msgspec.Struct, frozen=True):
    """All gateways were told; `seq` is the journal's number of that. How many connections it ended is in no answer."""

    seq: int
