"""What `event.publish` may be asked for: one judgement for the daemon, and for a gateway that publishes by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flx_api.errors import Forbidden, ValidationFailed
from flx_api.models.event import PUBLISHED_PREFIXES
from flx_api.models.topic_rules import rule_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from flx_api.models.event import PublishArgs
    from flx_api.models.topic_rules import TopicRule

PUBLISH: Final = "event.publish"
MAX_DATA_BYTES: Final = 65_536


def payload(args: PublishArgs, rules: Iterable[TopicRule], roles: Collection[str]) -> bytes:
    """The event's data as JSON, if these roles may publish it.

    Raises:
        ValidationFailed: a field is not acceptable.
        Forbidden: none of the roles may publish to this topic.
    """
    if not args.topic.startswith(PUBLISHED_PREFIXES):
        raise ValidationFailed.field("args.topic", "is not one that can be published to: app.* and user.{sub} are")
    for name in ("count", "per_s", "topics"):
        if getattr(args, name) is not None:
            raise ValidationFailed.field(f"args.{name}", "is for topics of one gateway alone")
    rule = rule_of(rules, args.topic)
    if rule is not None and rule.publish is not None and set(rule.publish).isdisjoint(roles):
        detail = "Only some roles may publish to this topic"
        raise Forbidden(detail)
    if rule is not None and rule.events != "any" and args.ephemeral != (rule.events == "ephemeral"):
        if rule.events == "ephemeral":
            reason = "must be true: events of this topic are ephemeral"
        else:
            reason = "must be false: events of this topic are in the journal"
        raise ValidationFailed.field("args.ephemeral", reason)
    data = msgspec.json.encode(args.data)
    most = MAX_DATA_BYTES if rule is None else rule.max_bytes
    if len(data) > most:
        raise ValidationFailed.field("args.data", f"is longer than {most:,} bytes")
    return data
