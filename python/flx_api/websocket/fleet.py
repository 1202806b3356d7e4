"""`connection.*` over all gateways: what each knows of its own connections, put together.

Strategy: a list is a question to all gateways (`flx_api.events.survey`), each of which answers with its part of the
page; the parts are merged. To end connections goes into the daemon's journal first, so that gateways which are cut off
for a moment hear it too; then all are asked, so that the answer says what has happened already.

Rules:
- The order of a list is the same everywhere: by the moment at which a connection came, its gateway, its number there.
- Who asks decides for the tenant; the permission was judged before, as for any command.
- Where gateways of several daemons share a bus, what one daemon's journal tells is told to those of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from flx_api.errors import ValidationFailed
from flx_api.models.connection import (
    Connection,
    ConnectionListArgs,
    ConnectionPage,
    ConnectionSlowestArgs,
    Disconnected,
    SlowConnection,
    SlowConnections,
)
from flx_api.models.event import ConnectionEvent
from flx_api.models.listing import decode_cursor, encode_cursor
from flx_api.models.tenant import tenant_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api._core import Principal
    from flx_api.events.survey import Answerer, Answers, Survey
    from flx_api.models.connection import ConnectionDisconnectArgs
    from flx_api.websocket.standing import Standing

LIST: Final = "connection.list"
SLOWEST: Final = "connection.slowest"
DISCONNECT: Final = "connection.disconnect"
_MOST: Final = (1 << 63) - 1

Place = tuple[int, str, int]
"""Of a connection in the order of all: microseconds since 1970, gateway, number there."""


class _Page(msgspec.Struct, frozen=True):
    """What a gateway is asked for a list."""

    limit: int
    subject: str | None
    after: Place


class _Slowest(msgspec.Struct, frozen=True):
    limit: int


class _Ending(msgspec.Struct, frozen=True):
    """Connections that came until `until_us` are to end."""

    event: ConnectionEvent
    until_us: int


_connections = msgspec.json.Decoder(tuple[Connection, ...])
_slow_connections = msgspec.json.Decoder(tuple[SlowConnection, ...])
_counts = msgspec.json.Decoder(int)
_disconnected = msgspec.json.Decoder(Disconnected)
_place = msgspec.json.Decoder(Place)


def answerers(standing: Standing, me: str) -> Mapping[str, Answerer]:
    """How one gateway answers what is asked of all."""

    def page(tenant: str, body: msgspec.Raw) -> tuple[Connection, ...]:
        asked = msgspec.json.decode(body, type=_Page)
        since_us, gateway, number = asked.after
        # Of the same moment there may be others: those of gateways behind the place are still to come.
        after = number if gateway == me else 0 if gateway < me else _MOST
        return standing.page(tenant, asked.subject, (since_us, after), asked.limit)

    def slowest(tenant: str, body: msgspec.Raw) -> tuple[SlowConnection, ...]:
        return standing.slowest(tenant, msgspec.json.decode(body, type=_Slowest).limit)

    def disconnect(tenant: str, body: msgspec.Raw) -> int:
        asked = msgspec.json.decode(body, type=_Ending)
        return standing.disconnect(tenant, asked.event, asked.until_us)

    return {LIST: page, SLOWEST: slowest, DISCONNECT: disconnect}


class FleetConnections:
    """The connections of all gateways.

    Args:
        survey: asks them, and has `answerers` of this one.
    """

    def __init__(self, survey: Survey) -> None:
        self._survey = survey

    async def listed(self, principal: Principal | None, wanted: ConnectionListArgs) -> ConnectionPage:
        """The result of `connection.list`.

        Raises:
            ValidationFailed: the cursor is not acceptable.
        """
        asked = _Page(wanted.limit + 1, wanted.subject, _after(wanted.cursor))
        answers = await self._survey.ask(LIST, tenant_of(principal), asked)
        found = sorted((one for part in _parts(answers, _connections) for one in part), key=place_of)
        items = tuple(found[: wanted.limit])
        more = encode_cursor(msgspec.json.encode(place_of(items[-1])).decode()) if len(found) > wanted.limit else None
        return ConnectionPage(items, more, answers.is_whole, answers.silent)

    async def slowest(self, principal: Principal | None, wanted: ConnectionSlowestArgs) -> SlowConnections:
        """The result of `connection.slowest`."""
        answers = await self._survey.ask(SLOWEST, tenant_of(principal), _Slowest(wanted.limit))
        found = [one for part in _parts(answers, _slow_connections) for one in part]
        found.sort(key=lambda one: (-one.behind, place_of(one.connection)))
        return SlowConnections(tuple(found[: wanted.limit]), answers.is_whole, answers.silent)

    async def disconnected(
        self, principal: Principal | None, wanted: ConnectionDisconnectArgs, result: bytes
    ) -> Disconnected:
        """The result of `connection.disconnect`, when the daemon has written it down with this result."""
        done = _disconnected.decode(result)
        event = ConnectionEvent("disconnect", wanted.id, wanted.subject, wanted.client_id)
        answers = await self._survey.ask(DISCONNECT, tenant_of(principal), _Ending(event, done.at_us))
        ended = sum(_parts(answers, _counts))
        return Disconnected(done.seq, done.at_us, ended, answers.is_whole, answers.silent)

    def pass_on(self, tenant: str, event: ConnectionEvent, until_us: int) -> None:
        """Tell gateways of other daemons what the journal of this one says."""
        self._survey.tell(DISCONNECT, tenant, _Ending(event, until_us))


def place_of(connection: Connection) -> Place:
    """Where a connection is in the order of all."""
    gateway, _, number = connection.id.partition("-")
    return connection.since_us, gateway, int(number)


def _after(cursor: str | None) -> Place:
    text = decode_cursor(cursor)
    if text is None:
        return 0, "", 0
    try:
        since_us, gateway, number = _place.decode(text)
    except msgspec.DecodeError:
        since_us = number = -1
        gateway = ""
    if not (0 <= since_us <= _MOST and 0 < number <= _MOST):
        raise ValidationFailed.field("cursor", "is not one that this service made")
    return since_us, gateway, number


def _parts(answers: Answers, decoder: msgspec.json.Decoder[Any]) -> list[Any]:
    return [decoder.decode(part) for part in answers.by_gateway.values()]
