"""The bus by the daemon, for what gateways tell one another: its Watch stream brings it to all of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from flx_api.errors import Unavailable
from flx_api.proto.flx.v1.daemon_pb2 import Event, TellRequest

if TYPE_CHECKING:
    from flx_api.events.follower import Source

_CALL_S: Final = 2.0


class DaemonBus:
    """Tells ephemeral events by the daemon."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def publish(self, tenant: str, topic: str, data: bytes) -> None:
        """Tell an event; on return the daemon has it.

        Raises:
            Unavailable: it may not have.
        """
        try:
            async with asyncio.timeout(_CALL_S):
                stub = await self._source.stub()
                request = TellRequest(events=[Event(tenant=tenant, topic=topic, data=data)])
                await stub.Tell(request, metadata=self._source.metadata)
        except (GRPCError, StreamTerminatedError, ProtocolError, OSError, TimeoutError):
            raise Unavailable(retry_after_s=1) from None
