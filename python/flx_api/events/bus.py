"""Ephemeral events between gateways: what a bus is, and what comes of what it brings.

Strategy: a bus carries events of clients and what gateways tell one another, in one order for each topic, to every
gateway that is there. Two are: the daemon's Watch stream (`flx_api.events.follower`), and Redis
(`flx_api.events.redis_bus`). Whatever brings events hands them to one `Receiver`.

Rules:
- A bus says when something was lost on its way here, and why. It never says that nothing was when it cannot know.
- Whoever publishes hears its own events by the bus, like everybody else: order is that of the bus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from flx_api.models.event import PUBLISHED_PREFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flx_api.events.ephemeral_log import EphemeralEvent

_log = structlog.get_logger("flx.events")


class Receiver(Protocol):
    """Who takes what a bus brings."""

    def hear(self, events: Sequence[EphemeralEvent]) -> None:
        """These events came, in this order."""
        ...

    def lose(self, reason: str) -> None:
        """Events were lost on their way here."""
        ...


class PrivateReceiver(Protocol):
    """Who takes what gateways tell one another on a topic of theirs."""

    def take(self, data: bytes) -> None:
        """A gateway told something. Raises MsgspecError when it cannot be read."""
        ...

    def lose(self) -> None:
        """What gateways told may be missing."""
        ...


class Bus(Protocol):
    """A way to all gateways."""

    async def publish(self, tenant: str, topic: str, data: bytes) -> None:
        """Tell an event; on return the bus has it.

        Raises:
            Unavailable: it may not have.
        """
        ...


class Delivery:
    """The receiver of one gateway: events of clients go to its hub, those of gateways to whoever has their topic.

    What a gateway of another version says and this one cannot read is left out: others must be heard all the same.

    Args:
        tell: takes events in their order.
        lose: is told why events were lost.
    """

    def __init__(self, tell: Callable[[Sequence[EphemeralEvent]], None], lose: Callable[[str], None]) -> None:
        self._tell = tell
        self._lose = lose
        # Who takes what gateways tell one another, by topic.
        self.private: dict[str, PrivateReceiver] = {}

    def hear(self, events: Sequence[EphemeralEvent]) -> None:
        """These events came, in this order."""
        # Together: what an event costs is mostly the way to the hub and the waking of those who serve it.
        public = [event for event in events if event.topic.startswith(PUBLISHED_PREFIXES)]
        if public:
            self._tell(public)
        for event in events:
            if event.topic.startswith(PUBLISHED_PREFIXES):
                continue
            if (private := self.private.get(event.topic)) is not None:
                try:
                    private.take(event.data)
                except msgspec.MsgspecError:
                    _log.warning("bus.unreadable", topic=event.topic)

    def lose(self, reason: str) -> None:
        """Events were lost on their way here."""
        self._lose(reason)
        for private in self.private.values():
            private.lose()
