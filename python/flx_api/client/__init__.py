"""A client of the live events: what a program imports that wants to hear them.

    from flx_api.client import EventStream

    async with EventStream("https://flx.example.com", ["execution_events"], token=new_token, on_gap=print) as events:
        async for event in events:
            print(event.event, event.data)

It connects again when a connection is lost, goes on where it was, tells each event once, and says what was skipped.
Where no WebSocket gets through to the service it reads an event stream over HTTP.
The protocol itself is described in docs/protocol.md.
"""

from flx_api.client.backoff import Backoff
from flx_api.client.errors import (
    Ended,
    EventsSkipped,
    RealtimeError,
    Refused,
    SubscriptionRefused,
    TokenEnded,
    Unreachable,
)
from flx_api.client.progress import Gap
from flx_api.client.stream import EventStream, Transport
from flx_api.models.message import Event

__all__ = [
    "Backoff",
    "Ended",
    "Event",
    "EventStream",
    "EventsSkipped",
    "Gap",
    "RealtimeError",
    "Refused",
    "SubscriptionRefused",
    "TokenEnded",
    "Transport",
    "Unreachable",
]
