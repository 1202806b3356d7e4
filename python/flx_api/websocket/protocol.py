"""The plain protocol: one JSON object a message, names as in the original specification.

Client: `ping`; `subscribe` and `unsubscribe` with `event` (`*` and a trailing `.*` are wildcards), `subscribe` also
with `from`, a position; anything else comes back as `echo`. Server: `connected`, `subscribed`, `unsubscribed`, `pong`,
`echo`, `error`, `event`, and `heartbeat` on an idle connection.

Topics belong to classes, and a class needs a permission: that is all there is to who may hear what, beside the tenant.

Rules:
- Pure: bytes in, values and frames out.
- What a client sent comes back in `echo` only, as the JSON it was; never in an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from flx_api.commands.permissions import permits
from flx_api.errors import Forbidden, InvalidRequest, NotFound
from flx_api.models import strict_json
from flx_api.models.message import ServerMessage

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_MESSAGE_BYTES: Final = 65_536
MAX_DEPTH: Final = 32
PLAIN: Final = "flx.plain"

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
_FIXED: Final[dict[str, TopicClass]] = {
    "pipeline_events": "pipeline",
    "execution_events": "execution",
    "schedule_events": "schedule",
    "system_events": "system",
}
_PREFIXES: Final[dict[str, TopicClass]] = {"execution": "execution", "user": "user", "app": "app", "bench": "app"}
_PATTERN: Final = re.compile(r"(?:[A-Za-z0-9_@+:-]+\.)*(?:[A-Za-z0-9_@+:-]+|\*)")
_MAX_TOPIC: Final = 256


class Inbound(msgspec.Struct, frozen=True):
    """A message of a client, as far as the protocol knows it."""

    type: str
    event: str | None = None
    from_: str | None = msgspec.field(default=None, name="from")


_inbound = msgspec.json.Decoder(Inbound)
_MESSAGES: Final = {kind.__struct_config__.tag: kind for kind in get_args(ServerMessage)}


def parse(message: bytes) -> Inbound:
    """A client's message.

    Raises:
        InvalidRequest: it is not JSON, or not an object with a `type`.
    """
    strict_json.check(message, max_depth=MAX_DEPTH)
    try:
        return _inbound.decode(message)
    except msgspec.DecodeError:
        detail = "A message is an object with a `type`; `event` and `from` are strings"
        raise InvalidRequest(detail) from None


def frame(kind: str, **fields: Any) -> str:  # noqa: ANN401 - those of the message's struct
    """A message of the server: one of `flx_api.models.message`, by its type."""
    return msgspec.json.encode(_MESSAGES[kind](**fields)).decode()


def echo(message: bytes) -> str:
    """The answer to a type that the protocol does not know."""
    return frame("echo", data=msgspec.Raw(message))


def error(code: str, message: str, **fields: Any) -> str:  # noqa: ANN401 - whatever explains the error
    """Something the client asked for did not happen, or something happened to it."""
    return frame("error", code=code, message=message, **fields)


def class_of(topic: str) -> TopicClass | None:
    """The class of a topic or of a pattern that begins with one; None when there is no such topic."""
    if topic in _FIXED:
        return _FIXED[topic]
    head, _, rest = topic.partition(".")
    kind = _PREFIXES.get(head) if rest else None
    return "log" if kind == "execution" and rest.endswith(".log") else kind


def allowed_classes(roles: Iterable[str]) -> frozenset[TopicClass]:
    """What a principal with these roles may hear about."""
    granted = tuple(roles)
    return frozenset(kind for kind, permission in _PERMISSIONS.items() if permits(granted, permission))


class Ears:
    """What one principal may hear: by class, and of `user.*` only its own."""

    __slots__ = ("_classes", "_own")

    def __init__(self, subject: str, roles: Iterable[str]) -> None:
        self._classes = allowed_classes(roles)
        self._own = f"user.{subject}"

    def may_hear(self, topic: str) -> bool:
        """Whether events of this topic may be delivered."""
        kind = class_of(topic)
        if kind == "user":
            return topic == self._own
        return kind in self._classes

    def check(self, pattern: str) -> None:
        """Let a principal subscribe to a topic or a pattern.

        Raises:
            InvalidRequest: it is neither a topic nor a pattern.
            NotFound: there are no such topics.
            Forbidden: nothing that matches may be heard.
        """
        if len(pattern) > _MAX_TOPIC or not _PATTERN.fullmatch(pattern):
            detail = "`event` is a topic, `*`, or a topic's beginning and `.*`"
            raise InvalidRequest(detail)
        if pattern == "*":
            allowed = bool(self._classes)
        else:
            kind = class_of(pattern)
            if kind is None:
                detail = "There is no such topic"
                raise NotFound(detail)
            wild = pattern.endswith(".*")
            own = pattern == self._own or (wild and self._own.startswith(pattern[:-1]))
            allowed = own if kind == "user" else kind in self._classes or (wild and "log" in self._classes)
        if not allowed:
            detail = "The token does not permit to hear this"
            raise Forbidden(detail)
