"""Open connections and the tokens that let them in: what ends a token, or changes it, reaches what it has opened.

Strategy: the roster (`flx_api._core.Roster`) has all connections of this process, on either face. When revocations have
changed it is judged again in one native pass, and those that are hit are closed with 4401. A client may offer another
token on its connection; it is judged as at a handshake. Logs that are followed over HTTP are judged beside it
(`while_good`).

Rules:
- Changes that come close together cost one pass: the next is `_PAUSE_S` after the last at the earliest.
- Once tokens may not be believed because the daemon has been silent too long, open connections are closed too, with
  1012: the client comes back, and is let in when there is somebody to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import structlog

from flx_api._core import Roster
from flx_api.errors import Forbidden, TokenRejected
from flx_api.models.connection import Connection, SlowConnection
from flx_api.models.event import CONNECTION_EVENTS, ConnectionEvent
from flx_api.models.tenant import tenant_of
from flx_api.websocket.close_codes import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flx_api._core import Admission, Hub, Principal, Revocations
    from flx_api.auth.revocations import RevocationFollower
    from flx_api.proto.flx.v1.daemon_pb2 import Event

_PAUSE_S: Final = 0.02
_REMEMBERED: Final = 64
_MOST_LAGGARDS: Final = 20_000
_LISTENERS: Final[dict[bool, Literal["main", "native"]]] = {False: "main", True: "native"}

Place = tuple[bool, int]
"""Whether the native listener has a connection, and its number there."""

_event = msgspec.json.Decoder(ConnectionEvent)
_log = structlog.get_logger("flx.websocket")


class Standing:
    """Judges the tokens of open connections.

    Args:
        hub: what they hear.
        revoked: what is in force against tokens.
        revocations: whether that can be believed.
        admission: what verifies tokens.
        me: the id of this gateway: numbers of the roster mean nothing in another process.
    """

    def __init__(
        self, hub: Hub, revoked: Revocations, revocations: RevocationFollower, admission: Admission, me: str
    ) -> None:
        self._hub = hub
        # Who is here, on either face.
        self.roster = Roster()
        self._revoked = revoked
        self._revocations = revocations
        self._admission = admission
        self._me = me
        self._next_s = 0.0
        self._due: asyncio.TimerHandle | None = None
        # How each face ends connections.
        self.ends: dict[bool, Callable[[list[int], CloseCode], None]] = {}
        # Told of what came from the daemon: gateways of other daemons have not heard it.
        self.on_disconnect: Callable[[str, ConnectionEvent, int], None] = lambda *_: None
        self._ended: dict[tuple[str, ConnectionEvent, int], set[Place]] = {}
        self._readers: dict[asyncio.Event, Principal] = {}
        revocations.changed = self.changed

    def changed(self) -> None:
        """Judge all soon: at once, or a moment after the last time."""
        if self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_at(max(self._next_s, loop.time()), self._judge)

    # --- what the follower of the stream tells ------------------------------------------------------------------------

    def batch(self, events: Iterable[Event], *, anew: bool) -> None:
        """Events between daemon and gateways: end the connections that are to end and were there before."""
        del anew  # what was asked of connections that are gone is over
        for event in events:
            if event.topic == CONNECTION_EVENTS:
                self._told(event)

    def lost(self) -> None:
        """The stream ended; nothing is to be done about it here."""

    def _told(self, event: Event) -> None:
        try:
            told = _event.decode(event.data)
        except msgspec.DecodeError:
            _log.warning("connections.unreadable", seq=event.seq)
            return
        self.disconnect(event.tenant, told, event.ts_us)
        self.on_disconnect(event.tenant, told, event.ts_us)

    # --- for those who run the service (`flx_api.websocket.fleet`) ----------------------------------------------------

    def disconnect(self, tenant: str, wanted: ConnectionEvent, until_us: int) -> int:
        """End connections that were there until then, and may have been ended before for the same; how many."""
        number = None
        if wanted.id is not None:
            gateway, _, text = wanted.id.partition("-")
            if gateway != self._me:
                return 0
            number = int(text)
        hit = self.roster.find(
            tenant, number=number, subject=wanted.subject, client_id=wanted.client_id, until_us=until_us
        )
        ended = self._ended.setdefault((tenant, wanted, until_us), set())
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]
        self.end([place for place in hit if place not in ended], CloseCode.NOT_ALLOWED)
        ended.update(hit)
        return len(ended)

    def page(self, tenant: str, subject: str | None, after: tuple[int, int], limit: int) -> tuple[Connection, ...]:
        """Connections to this gateway behind a moment (microseconds since 1970) and a number, in the order of both."""
        return tuple(self._shown(line) for line in self.roster.page(tenant, subject, after, limit))

    def slowest(self, tenant: str, limit: int) -> tuple[SlowConnection, ...]:
        """Connections to this gateway that are furthest behind, the furthest first."""
        behind = dict(self._hub.laggards(_MOST_LAGGARDS))
        found = self.roster.known_as(tenant, set(behind))
        items = [SlowConnection(behind[handle], self._shown(line)) for handle, line in found]
        items.sort(key=lambda item: item.behind, reverse=True)
        return tuple(items[:limit])

    def _shown(self, line: tuple[int, str, str, bool, int, int]) -> Connection:
        number, client_id, subject, is_native, since_us, expires_at = line
        return Connection(f"{self._me}-{number}", client_id, subject, _LISTENERS[is_native], since_us, expires_at)

    def close(self) -> None:
        """Judge no more."""
        if self._due is not None:
            self._due.cancel()

    def _judge(self) -> None:
        self._due = None
        is_stale = self._revocations.stale_refuses
        for ended, principal in self._readers.items():
            if is_stale or self.is_revoked(principal):
                ended.set()
        if is_stale:
            self.end(self.roster.all(), CloseCode.RESTARTING)
        hit = self.roster.revoked(self._revoked)
        self.end(hit, CloseCode.TOKEN_ENDED)
        self._next_s = asyncio.get_running_loop().time() + _PAUSE_S
        if hit:
            _log.info("websocket.revoked", connections=len(hit))

    def end(self, places: Iterable[Place], code: CloseCode) -> None:
        """Close connections, wherever they are."""
        by_face: dict[bool, list[int]] = {}
        for is_native, handle in places:
            by_face.setdefault(is_native, []).append(handle)
        for is_native, handles in by_face.items():
            self.ends[is_native](handles, code)

    @contextlib.contextmanager
    def while_good(self, principal: Principal) -> Iterator[asyncio.Event]:
        """An event that is set when the token of a reader ends, is revoked, or may no longer be believed."""
        ended = asyncio.Event()
        self._readers[ended] = principal
        timer = asyncio.get_running_loop().call_later(principal.expires_at - time.time(), ended.set)
        if self.is_revoked(principal):
            ended.set()
        try:
            yield ended
        finally:
            timer.cancel()
            del self._readers[ended]

    def is_revoked(self, principal: Principal) -> bool:
        """Whether what is in force against tokens hits this one's."""
        return self._revoked.revokes(
            subject=principal.subject,
            tenant=principal.tenant,
            token_id=principal.token_id,
            session=principal.session,
            key_id=principal.key_id,
            issued_at=principal.issued_at,
        )

    def renewal(self, current: Principal, token: bytes) -> Principal:
        """Whom a connection of `current` speaks for with another token.

        Raises:
            Unavailable: tokens cannot be judged now.
            TokenRejected: the token is not acceptable.
            Forbidden: it is of somebody else.
        """
        self._revocations.require()
        reason, principal = self._admission.check_token(token)
        if principal is None or principal.expires_at <= time.time():
            raise TokenRejected(reason or "expired")
        if owner_of(principal) != owner_of(current):
            detail = "The token is of another subject"
            raise Forbidden(detail)
        return principal


def owner_of(principal: Principal) -> tuple[str, str]:
    """Tenant and subject: two tenants may each have an anna, and they are not the same one."""
    return tenant_of(principal), principal.subject
