"""A position: how far a reader of events has come, over all topics at once.

Strategy: the follower sees all events in one order. A position is that order's state after an event: the epoch, the
journal's sequence number, and for each log that was being written the number of its last line. It is the same for
everyone who saw that event, so that a frame with its position is built once for all.

A log that is missing from a position either began after it (its lines are new) or had ended and was complete before
it (nothing is new); when it began decides (`LogTopic.born_seq` in `flx_api.events.memory`).

Rules:
- Clients see base64 of JSON and never look inside; what does not decode is refused, never guessed.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from flx_api.errors import InvalidRequest

# A log takes about 80 characters: this is some 600 that are written at once, and fits in a message of a client.
_MAX_CHARS: Final = 49_152
_LOG_TOPIC: Final = re.compile(r"execution\.([^.]+)\.log")


class Position(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything up to here was seen: `logs` is the last line by execution."""

    epoch: Annotated[str, Meta(max_length=128)]
    seq: Annotated[int, Meta(ge=0, lt=2**53)]
    logs: dict[str, Annotated[int, Meta(ge=0, lt=2**53)]] = {}


def encode(position: Position) -> str:
    """The opaque string that clients hand back as `from`."""
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).rstrip(b"=").decode()


def decode(text: str) -> Position:
    """The position of an opaque string.

    Raises:
        InvalidRequest: we did not make it.
    """
    detail = "The position is not one that this service gave"
    if len(text) > _MAX_CHARS:
        raise InvalidRequest(detail)
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=Position)
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise InvalidRequest(detail) from None


def execution_of_log(topic: str) -> str | None:
    """The execution whose log lines a topic carries; None for any other topic."""
    found = _LOG_TOPIC.fullmatch(topic)
    return found[1] if found else None
