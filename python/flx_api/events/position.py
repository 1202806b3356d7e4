"""A position: how far a reader of events has come, over all topics at once.

Strategy: the follower sees all events in one order. A position is that order's state after an event: the epoch, the
journal's sequence number, and for each log that was being written the number of its last line. It is the same for
everyone who saw that event, so that a frame with its position is built once for all.

A log that is missing from a position either began after it (its lines are new) or had ended and was complete before
it (nothing is new); when it began decides.

Rules:
- Clients see base64 of JSON and never look inside. The hub (`flx_api._core.Hub`) writes and reads that text; here a
  position is what the daemon is asked with.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta

_LOG_TOPIC: Final = re.compile(r"execution\.([^.]+)\.log")


class Position(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything up to here was seen: `logs` is the last line by execution."""

    epoch: Annotated[str, Meta(max_length=128)]
    seq: Annotated[int, Meta(ge=0, lt=2**53)]
    logs: dict[str, Annotated[int, Meta(ge=0, lt=2**53)]] = {}


def execution_of_log(topic: str) -> str | None:
    """The execution whose log lines a topic carries; None for any other topic."""
    found = _LOG_TOPIC.fullmatch(topic)
    return found[1] if found else None
