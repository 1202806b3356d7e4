"""Live connections, as those see them who run the service."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from flx_api.models.auth import ClaimText
from flx_api.models.listing import Limit

ConnectionId = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[1-9][0-9]{0,18}$(?!\n)")]
ClientId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:@-]{1,128}$(?!\n)")]


class GatewayProcess(msgspec.Struct, frozen=True):
    """A gateway process of the fleet. The ids of its connections begin with its own."""

    id: str
    host: str
    pid: int


class ConnectionListArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page of the tenant's connections to all gateways, oldest first; those of one subject with `subject`."""

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
    """A page of connections; `next_cursor` is None on the last.

    `silent` are gateways that did not answer in time: theirs are missing. `whole` says that all answered, as far as it
    is known which there are.
    """

    items: tuple[Connection, ...]
    next_cursor: str | None
    whole: bool
    silent: tuple[GatewayProcess, ...]


class ConnectionSlowestArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tenant's connections, to all gateways, which are furthest behind, at most so many."""

    limit: Limit = 20


class SlowConnection(msgspec.Struct, frozen=True):
    """A connection, and how many events its gateway has heard since where it is: at least those it has still to get."""

    behind: int
    connection: Connection


class SlowConnections(msgspec.Struct, frozen=True):
    """The furthest behind first; who has all is not among them. `whole` and `silent` as in `connection.list`."""

    items: tuple[SlowConnection, ...]
    whole: bool
    silent: tuple[GatewayProcess, ...]


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


class Disconnected(msgspec.Struct, frozen=True, omit_defaults=True):
    """Connections that came until `at_us` end; `seq` is the journal's number of that.

    `ended` is how many there were at the gateways that have said so. `whole` says that all have, `silent` names those
    that have not: they end theirs when they hear of it. A batch, and the daemon itself, tell none of the three.
    """

    seq: int
    at_us: int
    ended: int | None = None
    whole: bool | None = None
    silent: tuple[GatewayProcess, ...] | None = None
