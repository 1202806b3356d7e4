"""The AsyncAPI document: whole, and about what the gateway speaks. Real traffic is in e2e/test_asyncapi.py."""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec
import pytest
from jsonschema import Draft7Validator
from tests.asyncapi_frames import judge
from tests.routes.references import references

from flx_api._core import Hub
from flx_api.models.event import PRIVATE_TOPICS, TOPICS
from flx_api.models.message import PresenceChange, ServerMessage
from flx_api.routes.asyncapi import CHANNEL, document
from flx_api.websocket import protocol
from flx_api.websocket.close_codes import CloseCode


def test_its_structure_is_that_of_asyncapi_3_0() -> None:
    made = document()
    assert "3.0.0" == made["asyncapi"]
    assert {"asyncapi", "info", "defaultContentType", "servers", "channels", "operations", "components"} == set(made)
    assert {"title", "version"} <= set(made["info"])
    for server in made["servers"].values():
        assert {"host", "protocol"} <= set(server)
        assert set(re.findall(r"\{(\w+)\}", server["host"])) == set(server["variables"])
    channel = made["channels"][CHANNEL]
    assert set(re.findall(r"\{(\w+)\}", channel["address"])) == set(channel["parameters"])
    both = {name for channel in made["channels"].values() for name in channel["messages"]}
    assert both == set(made["components"]["messages"])
    for operation in made["operations"].values():
        assert operation["action"] in {"send", "receive"}
        assert {"action", "channel", "messages"} <= set(operation) <= {"action", "channel", "messages", "reply"}


def test_every_reference_leads_somewhere_and_everything_is_used() -> None:
    made = document()
    found = set(references(made))
    for reference in found:
        place = made
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]
        assert place
    for name in made["channels"][CHANNEL]["messages"]:
        assert f"#/channels/{CHANNEL}/messages/{name}" in found
    for name in made["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in found


def test_its_schemas_are_of_draft_7() -> None:
    """The dialect that AsyncAPI means when it says no other."""
    for message in document()["components"]["messages"].values():
        Draft7Validator.check_schema(message["payload"])
    text = msgspec.json.encode(document()).decode()
    for word in ("prefixItems", "unevaluatedProperties", "dependentRequired", "$defs"):
        assert f'"{word}"' not in text


def test_every_topic_has_a_message_and_a_class() -> None:
    messages = document()["components"]["messages"]
    hub = Hub("local")
    conn = hub.connect("default", "x", ["pipeline", "execution", "log", "schedule", "system", "app"], "plain")
    assert conn is not None
    for topic in TOPICS:
        assert topic.name in messages
        assert hub.subscribe(conn, [topic.template.format("x")], None, 0)[0] in {None, "forbidden"}
        assert topic.template not in PRIVATE_TOPICS


def test_every_frame_that_the_gateway_builds_is_judged_well() -> None:
    frames = {
        "connected": protocol.frame("connected", message="m", client_id="c"),
        "subscribed": protocol.frame("subscribed", event="*", pos="p"),
        "unsubscribed": protocol.frame("unsubscribed", event="*"),
        "pong": protocol.frame("pong", timestamp=1),
        "heartbeat": protocol.frame("heartbeat", ts=1),
        "expiring": protocol.frame("expiring", in_s=60),
        "refreshed": protocol.frame("refreshed", in_s=60),
        "reconnect": protocol.frame("reconnect", in_ms=60),
        "echo": protocol.echo(b'{"type":"x"}'),
        "error": protocol.error("not_found", "m"),
        "gap": protocol.error("gap", "m", reason="epoch", epoch="e", pos="p"),
    }
    tags = {kind.__struct_config__.tag for kind in get_args(ServerMessage)}
    assert tags - {"event", "presence"} == set(frames) - {"gap"}
    frames["batch"] = '{"t":"app.x","e":"e","s":[1,2],"prev":0,"pos":"p","ts":1,"d":[1,2]}'
    frames["batchedGap"] = '{"type":"gap","t":"*","reason":"epoch","epoch":"e","pos":"p"}'
    frames["closed"] = protocol.frame("closed", code=4401, reason="r")
    change = PresenceChange(("ann",), (), 1)
    told = {"event": "presence.app.x", "seq": 1, "prev": 0, "epoch": "e", "ts": 1, "pos": "p", "ephemeral": True}
    frames["presence"] = protocol.frame("presence", **told, data=change)
    for name, frame in frames.items():
        assert name == judge(document(), msgspec.json.decode(frame))


EVENT: dict[str, Any] = {
    "type": "event",
    "event": "pipeline_events",
    "seq": 2,
    "prev": 1,
    "epoch": "e",
    "ts": 1,
    "pos": "p",
}
MADE = {"type": "created", "pipeline": "p", "by": "anna"}


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "pong"},
        {"type": "pong", "timestamp": "1"},
        {"type": "pong", "timestamp": 1, "more": 1},
        {"type": "no such"},
        {"type": "error", "code": "gap", "message": "m"},
        {**EVENT, "data": {**MADE, "type": "burnt"}},
        {**EVENT, "data": {**MADE, "more": 1}},
        {**EVENT, "data": {"type": "created"}},
        {**EVENT, "event": "nothing", "data": MADE},
        {**EVENT, "event": "execution.x.y.status", "data": MADE},
        {**EVENT, "seq": 0, "data": MADE},
        {**EVENT, "seq": "2", "data": MADE},
        {name: value for name, value in EVENT.items() if name != "prev"} | {"data": MADE},
    ],
)
def test_the_judge_can_say_no(frame: dict[str, Any]) -> None:
    assert "pipelineEvents" == judge(document(), {**EVENT, "data": MADE})
    with pytest.raises(AssertionError):
        judge(document(), frame)


def test_close_codes_are_those_that_are_sent() -> None:
    codes = document()["channels"][CHANNEL]["x-close-codes"]
    assert {str(code.value) for code in CloseCode} - {"1005"} == set(codes)
