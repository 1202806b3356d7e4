"""The messages of the realtime protocol, one struct each: what the gateway writes, clients read, and AsyncAPI tells.

Strategy: the `type` of a message is its struct's tag, so a message is written and read as one of `ServerMessage` or
`ClientMessage`. `flx_api.routes.asyncapi` makes the document from these structs and from `flx_api.models.event`.

Rules:
- Readers ignore members and types that they do not know: later versions may add some.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

GAP: Final = "gap"
"""The code of an `Error` that says that events were skipped."""

Topic = Annotated[str, Meta(max_length=256, description="An exact topic, or a pattern: `*`, or a beginning and `.*`.")]
Position = Annotated[str, Meta(description="Opaque: handed back as `from`, it continues behind what was seen.")]


class Ping(msgspec.Struct, frozen=True, tag_field="type", tag="ping"):
    """Asks for a sign of life. Messages are taken in their order: all subscriptions before it are level when it is
    answered.
    """


class Subscribe(msgspec.Struct, frozen=True, tag_field="type", tag="subscribe", omit_defaults=True):
    """Asks for the events of a topic: from now on, or with `from` those since that position first."""

    event: Topic
    from_: Position | None = msgspec.field(default=None, name="from")


class Unsubscribe(msgspec.Struct, frozen=True, tag_field="type", tag="unsubscribe"):
    """Asks for no more events of a subscription, named as it was made."""

    event: Topic


class Refresh(msgspec.Struct, frozen=True, tag_field="type", tag="refresh"):
    """Offers another token of the same subject, before the one in force ends. It is judged as at a handshake; what is
    subscribed stays, as far as the new token permits to hear it.
    """

    token: str


class Connected(msgspec.Struct, frozen=True, tag_field="type", tag="connected"):
    """The first message of every connection."""

    message: str
    client_id: str


class Subscribed(msgspec.Struct, frozen=True, tag_field="type", tag="subscribed"):
    """A subscription is in force. `pos` covers what was sent on this connection before, or is the `from` that was asked
    for.
    """

    event: Topic
    pos: Position


class Unsubscribed(msgspec.Struct, frozen=True, tag_field="type", tag="unsubscribed", omit_defaults=True):
    """A subscription is no more. With `reason` nobody asked for that: the token that is in force now does not permit
    it.
    """

    event: Topic
    reason: Annotated[str, Meta(description="`forbidden`")] | None = None


class Pong(msgspec.Struct, frozen=True, tag_field="type", tag="pong"):
    """The answer to a ping; `timestamp` is the gateway's clock in microseconds since 1970."""

    timestamp: int


class Heartbeat(msgspec.Struct, frozen=True, tag_field="type", tag="heartbeat"):
    """A sign of life where nothing else was sent for a while; `ts` is in microseconds since 1970."""

    ts: int


class Expiring(msgspec.Struct, frozen=True, tag_field="type", tag="expiring"):
    """The token in force ends in `in_s` seconds, and the connection with it, unless there is a `refresh` before."""

    in_s: int


class Refreshed(msgspec.Struct, frozen=True, tag_field="type", tag="refreshed"):
    """The token of a `refresh` is in force; it ends in `in_s` seconds."""

    in_s: int


class Reconnect(msgspec.Struct, frozen=True, tag_field="type", tag="reconnect"):
    """The gateway is about to stop: this connection will be closed with 1012 in `in_ms` milliseconds, others at other
    moments. Whoever likes to goes before.
    """

    in_ms: int


class Echo(msgspec.Struct, frozen=True, tag_field="type", tag="echo"):
    """The answer to a message whose type the gateway does not know: the message itself."""

    data: Any


class Error(msgspec.Struct, frozen=True, tag_field="type", tag="error", omit_defaults=True):
    """What was asked for did not happen (`code` is one of the error codes), or events were skipped: then `code` is
    `gap`, `reason` says why, and what follows is new behind `pos` in `epoch`. With `event` only that topic is
    concerned, its numbers between `after` and `before`; `href` is where they may still be read. With `of` it answers a
    message of that type, whenever that was sent: all others are answered in their order.
    """

    code: str
    message: str
    reason: str | None = None
    epoch: str | None = None
    pos: Position | None = None
    event: Topic | None = None
    after: int | None = None
    before: int | None = None
    href: str | None = None
    of: Annotated[str, Meta(description="`refresh`")] | None = None


class Event(msgspec.Struct, frozen=True, tag_field="type", tag="event", omit_defaults=True):
    """An event. `seq` grows within a topic and `epoch`; `prev` is that of the topic's event before, 0 for none.

    Those that are `ephemeral` are in no journal and no position: their numbers are a chain of their own.
    """

    event: str
    seq: Annotated[int, Meta(ge=1)]
    prev: Annotated[int, Meta(ge=0)]
    epoch: str
    ts: Annotated[int, Meta(description="When it happened, in microseconds since 1970.")]
    pos: Position
    data: Any
    ephemeral: bool = False


class PresenceChange(msgspec.Struct, frozen=True):
    """Subjects that began or ceased to hear a topic, at whichever gateway; `count` is how many hear it then."""

    joined: tuple[str, ...]
    left: tuple[str, ...]
    count: int


class Presence(Event, frozen=True, tag="presence", omit_defaults=True):
    """An event that tells who hears a topic: `event` is `presence.` and that topic."""

    data: PresenceChange


class Gap(msgspec.Struct, frozen=True, tag_field="type", tag="gap", omit_defaults=True):
    """With `flx.v1`: events were skipped. `t` is the topic or pattern, `*` for all; numbers between `after` and
    `before` may be missing; `href` is where they may still be read, `pos` where it goes on.
    """

    t: Topic
    reason: str
    epoch: str
    after: int | None = None
    before: int | None = None
    pos: Position | None = None
    href: str | None = None


class Batch(msgspec.Struct, frozen=True, omit_defaults=True):
    """With `flx.v1`: events `d` of the topic `t` in epoch `e`. `s` has the number of each, or the first and the last of
    more than two without a hole; `prev` is the topic's number before; `ts` is that of the last event. With the type
    `presence` each is a `PresenceChange`.
    """

    t: str
    e: str
    s: list[int]
    prev: Annotated[int, Meta(ge=0)]
    pos: Position
    ts: int
    d: list[Any]
    ephemeral: bool = False
    type: Literal["presence"] | None = None


class Closed(msgspec.Struct, frozen=True, tag_field="type", tag="closed"):
    """The last event of a stream that the gateway ended: what a Close frame says on a WebSocket."""

    code: Annotated[int, Meta(description="The close code.")]
    reason: str


ClientMessage = Ping | Subscribe | Unsubscribe | Refresh
ServerMessage = (
    Connected
    | Subscribed
    | Unsubscribed
    | Pong
    | Heartbeat
    | Expiring
    | Refreshed
    | Reconnect
    | Echo
    | Error
    | Event
    | Presence
)
BatchedMessage = Batch | Gap
