"""The plain protocol: one JSON object a message, names as in the original specification.

Client: `ping`; `subscribe` and `unsubscribe` with `event` (`*` and a trailing `.*` are wildcards), `subscribe` also
with `from`, a position; anything else comes back as `echo`. Server: `connected`, `subscribed`, `unsubscribed`, `pong`,
`echo`, `error`, `event`, and `heartbeat` on an idle connection. Who selects the subprotocol `flx.v1` gets events in
batches and gaps as messages of their own; everything else is the same.

Topics belong to classes, and a class needs a permission: that is all there is to who may hear what, beside the tenant.
The hub (`flx_api._core.Hub`) knows the classes and writes the frames of events; here is what roles open.

Rules:
- Pure: bytes in, values and frames out.
- What a client sent comes back in `echo` only, as the JSON it was; never in an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from flx_api.commands.permissions import permits
from flx_api.errors import FlxError, Forbidden, InvalidRequest, NotFound
from flx_api.models import strict_json
from flx_api.models.message import Closed, ServerMessage
from flx_api.models.topic_rules import closed_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flx_api._core import Principal
    from flx_api.models.topic_rules import TopicRule

MAX_MESSAGE_BYTES: Final = 65_536
MAX_DEPTH: Final = 32
MAX_SUBSCRIPTIONS: Final = 256
Dialect = Literal["plain", "batched", "stream"]
"""How events are written for a connection: one a message, in batches, or as a stream of events."""
PLAIN: Final = "flx.plain"
BATCHED: Final = "flx.v1"

TopicClass = Literal["pipeline", "execution", "log", "schedule", "system", "user", "app"]

# What one must be allowed to do by command to hear about it by event.
_PERMISSIONS: Final[dict[TopicClass, str]] = {
    "pipeline": "pipeline.get",
    "execution": "execution.get",
    "log": "execution.logs",
    "schedule": "schedule.list",
    "system": "system.status",
    "user": "user.get",
    "app": "event.get",
}
_REFUSED: Final = {
    "not_a_pattern": "`event` is a topic, `*`, or a topic's beginning and `.*`",
    "not_a_position": "The position is not one that this service gave",
    "too_many": f"A connection has at most {MAX_SUBSCRIPTIONS} subscriptions",
    "busy": "The connection is still catching up with an earlier subscription",
    "unknown": "The connection has ended",
}


class Inbound(msgspec.Struct, frozen=True):
    """A message of a client, as far as the protocol knows it."""

    type: str
    event: str | None = None
    from_: str | None = msgspec.field(default=None, name="from")
    token: str | None = None


class _Tagged(msgspec.Struct, frozen=True):
    """A message, as far as it says what it is."""

    type: str


_inbound = msgspec.json.Decoder(Inbound)
_tagged = msgspec.json.Decoder(_Tagged)
_MESSAGES: Final = {kind.__struct_config__.tag: kind for kind in (*get_args(ServerMessage), Closed)}


def parse(message: bytes) -> Inbound:
    """A client's message.

    Raises:
        InvalidRequest: it is not JSON, or not an object with a `type`.
    """
    strict_json.check(message, max_depth=MAX_DEPTH)
    try:
        return _inbound.decode(message)
    except msgspec.DecodeError:
        detail = "A message is an object with a `type`; `event`, `from` and `token` are strings"
        raise InvalidRequest(detail) from None


def frame(kind: str, **fields: Any) -> str:  # noqa: ANN401 - those of the message's struct
    """A message of the server: one of `flx_api.models.message`, by its type."""
    return msgspec.json.encode(_MESSAGES[kind](**fields)).decode()


def in_stream(message: str) -> bytes:
    """A message as an event of a stream, named by its type; a heartbeat is a comment."""
    kind = _tagged.decode(message).type
    return b": heartbeat\n\n" if kind == "heartbeat" else f"event: {kind}\ndata: {message}\n\n".encode()


def echo(message: bytes) -> str:
    """The answer to a type that the protocol does not know."""
    return frame("echo", data=msgspec.Raw(message))


def error(code: str, message: str, **fields: Any) -> str:  # noqa: ANN401 - whatever explains the error
    """Something the client asked for did not happen, or something happened to it."""
    return frame("error", code=code, message=message, **fields)


def renewed(principal: Principal, lost: Iterable[str], now_s: float) -> list[str]:
    """The answer to a token that was accepted, behind the subscriptions that end with the one before."""
    frames = [frame("unsubscribed", event=pattern, reason="forbidden") for pattern in lost]
    return [*frames, frame("refreshed", in_s=max(0, int(principal.expires_at - now_s)))]


def not_renewed(error_: FlxError) -> str:
    """The answer to a token that was not accepted."""
    return error(error_.code, error_.detail, of="refresh")


def allowed_classes(roles: Iterable[str], rules: Sequence[TopicRule] = ()) -> list[str]:
    """What a principal with these roles may hear about; behind the classes, how rules leave topics open or closed."""
    granted = tuple(roles)
    found: list[str] = [kind for kind, permission in _PERMISSIONS.items() if permits(granted, permission)]
    closed = closed_to(rules, granted)
    if any(is_closed for _, is_closed in closed):
        found += [f"{'-' if is_closed else '+'}{pattern}" for pattern, is_closed in closed]
    return found


def refused(why: str) -> FlxError:
    """The error for what the hub refused."""
    match why:
        case "no_such_topic":
            return NotFound("There is no such topic")
        case "forbidden":
            return Forbidden("The token does not permit to hear this")
        case _:
            return InvalidRequest(_REFUSED[why])
