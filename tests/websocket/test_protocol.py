"""The plain protocol: pure."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from flx_api._core import Hub
from flx_api.errors import FlxError
from flx_api.models.message import ClientMessage, Ping, Refresh, Subscribe, Unsubscribe
from flx_api.models.topic_rules import TopicRule
from flx_api.websocket import protocol
from flx_api.websocket.protocol import Inbound


def test_messages_are_read() -> None:
    assert protocol.parse(b'{"type":"ping","more":1}') == Inbound("ping")
    assert protocol.parse(b'{"type":"subscribe","event":"*","from":"p"}') == Inbound("subscribe", "*", "p")


def test_what_clients_may_send_is_read() -> None:
    """The structs that the document and our own client are made from, and what the gateway reads, are one protocol."""
    examples = {Ping: Ping(), Subscribe: Subscribe("t", "p"), Unsubscribe: Unsubscribe("t"), Refresh: Refresh("a.b.c")}
    assert set(get_args(ClientMessage)) == set(examples)
    for kind, message in examples.items():
        text = msgspec.json.encode(message)
        read = protocol.parse(text)
        assert kind.__struct_config__.tag == read.type
        known = {name: value for name, value in msgspec.json.decode(msgspec.json.encode(read)).items() if value}
        assert msgspec.json.decode(text) == known


@pytest.mark.parametrize(
    "message", [b"", b"x", b"[]", b'{"type":1}', b"{}", b'{"type":"a","type":"b"}', b"[" * 100, b"\xff"]
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(FlxError):
        protocol.parse(message)


def test_frames_are_json() -> None:
    assert msgspec.json.decode(protocol.frame("pong", timestamp=1)) == {"type": "pong", "timestamp": 1}
    assert msgspec.json.decode(protocol.echo(b'{"type":"x"}')) == {"type": "echo", "data": {"type": "x"}}
    assert msgspec.json.decode(protocol.error("c", "m")) == {"type": "error", "code": "c", "message": "m"}


def test_roles_open_classes_of_topics() -> None:
    assert protocol.allowed_classes(("guest",)) == []
    assert {"pipeline", "execution", "log", "app"} <= set(protocol.allowed_classes(("viewer",)))


def test_rules_close_topics_to_roles_they_do_not_name() -> None:
    rules = [TopicRule("app.a.open"), TopicRule("app.a.*", subscribe=("chief",)), TopicRule("app.*")]
    plain = protocol.allowed_classes(("viewer",))
    assert plain == protocol.allowed_classes(("viewer", "chief"), rules)
    hub = Hub("local")
    granted = protocol.allowed_classes(("viewer",), rules)
    assert ["+app.a.open", "-app.a.*", "+app.*"] == granted[len(plain) :]
    conn = hub.connect("default", "anna", granted, "plain")
    assert conn is not None
    for pattern in ("app.a.open", "app.a.*", "app.b", "presence.app.b", "*"):
        assert hub.subscribe(conn, [pattern], None, 0)[0] is None
    for pattern in ("app.a.x", "app.a.x.*", "presence.app.a.x"):
        assert "forbidden" == hub.subscribe(conn, [pattern], None, 0)[0]
    for topic in ("app.a.x", "presence.app.a.x"):
        hub.publish("default", topic, 1, b"1", 1)
    hub.append([("default", "app.a.y", 1, 0, 1, b"1")], 1)
    assert [] == hub.take(1 << 60, 10)
    hub.publish("default", "app.a.open", 1, b"1", 1)
    assert 1 == len(hub.take(1 << 60, 10))


@pytest.mark.parametrize(
    ("pattern", "why", "code"),
    [
        ("user.bert", "forbidden", "forbidden"),
        ("nothing", "no_such_topic", "not_found"),
        ("execution.*.log", "not_a_pattern", "invalid_request"),
        ("app.257", "too_many", "invalid_request"),
    ],
)
def test_each_refusal_of_the_hub_has_an_error(pattern: str, why: str, code: str) -> None:
    hub = Hub("local")
    conn = hub.connect("default", "anna", protocol.allowed_classes(("viewer",)), "plain")
    assert conn is not None
    for number in range(256):
        hub.subscribe(conn, [f"app.{number}"], None, 0)
    assert why == hub.subscribe(conn, [pattern], None, 0)[0]
    assert protocol.refused(why).code == code
    assert hub.subscribe(conn, ["app.1"], "?", 0)[0] == "not_a_position"
    hub.disconnect(conn)
    assert hub.subscribe(conn, ["app.1"], None, 0)[0] == "unknown"
    assert {protocol.refused(word).code for word in ("not_a_position", "busy", "unknown")} == {"invalid_request"}
