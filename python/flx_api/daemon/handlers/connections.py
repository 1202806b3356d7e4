"""`connection.*`: live connections, which gateways have and the daemon has not.

Strategy: to end connections travels to all gateways as an event between daemon and gateways; each ends what it has. A
list is answered by the gateway that is asked, which asks the others (`flx_api.websocket.fleet`); what comes here came
another way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flx_api.daemon.handlers import idempotency
from flx_api.errors import Conflict
from flx_api.models.connection import Disconnected
from flx_api.models.event import CONNECTION_EVENTS, ConnectionEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api.daemon.handlers.context import Context, Handler
    from flx_api.daemon.journal import Tx
    from flx_api.models.connection import (
        ConnectionDisconnectArgs,
        ConnectionListArgs,
        ConnectionPage,
        ConnectionSlowestArgs,
        SlowConnections,
    )

DISCONNECT: Final = "connection.disconnect"
_ELSEWHERE: Final = "Gateways tell of their connections; ask one of them, and not in a batch"


async def disconnect(context: Context, args: ConnectionDisconnectArgs) -> Disconnected:
    """Tell all gateways to end connections of the caller's tenant."""
    event = ConnectionEvent("disconnect", args.id, args.subject, args.client_id)

    def change(tx: Tx) -> Disconnected:
        return Disconnected(tx.emit(CONNECTION_EVENTS, event, tenant=context.principal.tenant), tx.now_us)

    return await context.services.journal.write(idempotency.once(context, DISCONNECT, change))


def listed(_: Context, __: ConnectionListArgs) -> ConnectionPage:
    """Refuse: there are none here.

    Raises:
        Conflict: always.
    """
    raise Conflict(_ELSEWHERE)


def slowest(_: Context, __: ConnectionSlowestArgs) -> SlowConnections:
    """Refuse, as `listed`.

    Raises:
        Conflict: always.
    """
    raise Conflict(_ELSEWHERE)


HANDLERS: Mapping[str, Handler] = {
    DISCONNECT: disconnect,
    "connection.list": listed,
    "connection.slowest": slowest,
}
