"""What may be published, by rules of topics. What every event must be is held in daemon/handlers/test_events.py."""

from __future__ import annotations

import pytest

from flx_api.commands.publishing import payload
from flx_api.errors import Forbidden, ValidationFailed
from flx_api.models.event import PublishArgs
from flx_api.models.topic_rules import TopicRule

RULES = (
    TopicRule("app.open", max_bytes=4),
    TopicRule("app.few.*", publish=("chief",)),
    TopicRule("app.soft.*", events="ephemeral"),
    TopicRule("app.hard.*", events="journal"),
)


@pytest.mark.parametrize(
    ("topic", "ephemeral"),
    [("app.free", True), ("app.free", False), ("app.soft.x", True), ("app.hard.x", False), ("user.ann", True)],
)
def test_what_no_rule_forbids_is_published_as_json(topic: str, ephemeral: bool) -> None:
    assert b"[1]" == payload(PublishArgs(topic, [1], ephemeral), RULES, ["developer"])


def test_roles_decide_where_a_rule_names_some() -> None:
    assert b"1" == payload(PublishArgs("app.few.x", 1), RULES, ["developer", "chief"])
    for roles in ([], ["developer"]):
        with pytest.raises(Forbidden):
            payload(PublishArgs("app.few.x", 1), RULES, roles)


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (PublishArgs("app.open", "abc"), "args.data"),
        (PublishArgs("app.soft.x", 1), "args.ephemeral"),
        (PublishArgs("app.hard.x", 1, ephemeral=True), "args.ephemeral"),
        (PublishArgs("presence_events.x", 1, ephemeral=True), "args.topic"),
    ],
)
def test_what_a_rule_forbids_is_named(args: PublishArgs, field: str) -> None:
    with pytest.raises(ValidationFailed) as found:
        payload(args, RULES, ["admin"])
    assert [field] == [error.field for error in found.value.errors]
