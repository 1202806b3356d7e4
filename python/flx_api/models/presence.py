"""Who hears a topic, as commands ask for it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from flx_api.models.topic_rules import Topic


class PresenceListArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A topic `app.…`, and how many subjects to name at most."""

    topic: Topic
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000


class PresenceList(msgspec.Struct, frozen=True):
    """The subjects that hear a topic, by name, at whichever gateway; `count` is all of them.

    `whole` says whether the gateway that was asked knows what all others have.
    """

    topic: str
    members: tuple[str, ...]
    count: int
    whole: bool
