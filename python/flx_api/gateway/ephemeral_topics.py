"""`event.publish` of ephemeral events where gateways have a bus of their own: answered here, without the daemon.

Rules:
- What may be published, and by whom, is judged as the daemon does (`flx_api.commands.publishing`).
- On the answer the bus has the event. Where it may not have it, the answer is 503.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from flx_api.commands.publishing import payload
from flx_api.gateway.options import validation_failed
from flx_api.models.event import PublishArgs, Published
from flx_api.models.tenant import tenant_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flx_api._core import Principal
    from flx_api.events.bus import Bus
    from flx_api.models.topic_rules import TopicRule


class _Ephemeral(msgspec.Struct):
    ephemeral: bool = False


_ephemeral = msgspec.json.Decoder(_Ephemeral)
_args = msgspec.json.Decoder(PublishArgs)


class EphemeralTopics:
    """The publisher of ephemeral events of one gateway.

    Args:
        bus: takes them to all gateways.
        rules: of topics.
    """

    def __init__(self, bus: Bus, rules: Sequence[TopicRule]) -> None:
        self._bus = bus
        self._rules = rules

    @staticmethod
    def has(args: bytes) -> bool:
        """Whether these arguments of `event.publish` are of an ephemeral event."""
        try:
            return _ephemeral.decode(args).ephemeral
        except msgspec.DecodeError:
            return False

    async def publish(self, principal: Principal | None, args: bytes) -> bytes:
        """Publish an event; the result.

        Raises:
            ValidationFailed: the arguments are not acceptable.
            Forbidden: the principal may not publish to this topic.
            Unavailable: the bus may not have the event.
        """
        try:
            wanted = _args.decode(args)
        except msgspec.ValidationError as error:
            raise validation_failed(error) from None
        data = payload(wanted, self._rules, principal.roles if principal is not None else ())
        began_us = time.time_ns() // 1000
        await self._bus.publish(tenant_of(principal), wanted.topic, data)
        return msgspec.json.encode(Published(1, time.time_ns() // 1000 - began_us))
