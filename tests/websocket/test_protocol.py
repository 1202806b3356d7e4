"""The plain protocol: pure."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from flx_api.errors import FlxError
from flx_api.models.message import ClientMessage, Ping, Subscribe, Unsubscribe
from flx_api.websocket import protocol
from flx_api.websocket.protocol import Ears, Inbound


def test_messages_are_read() -> None:
    assert protocol.parse(b'{"type":"ping","more":1}') == Inbound("ping")
    assert protocol.parse(b'{"type":"subscribe","event":"*","from":"p"}') == Inbound("subscribe", "*", "p")


def test_what_clients_may_send_is_read() -> None:
    """The structs that the document and our own client are made from, and what the gateway reads, are one protocol."""
    examples = {Ping: Ping(), Subscribe: Subscribe("t", "p"), Unsubscribe: Unsubscribe("t")}
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


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("*", None),
        ("execution.*", None),
        ("execution.x1.log", None),
        ("execution.x1.*", None),
        ("pipeline_events", None),
        ("user.anna", None),
        ("user.*", None),
        ("user.bert", "forbidden"),
        ("app.orders", None),
        ("nothing", "not_found"),
        ("bench.x", None),
        ("execution", "not_found"),
        ("execution.*.log", "invalid_request"),
        ("a b", "invalid_request"),
        ("", "invalid_request"),
        ("x." * 200 + "x", "invalid_request"),
    ],
)
def test_who_may_subscribe_to_what(pattern: str, code: str | None) -> None:
    ears = Ears("anna", ("viewer",))
    if code is None:
        ears.check(pattern)
        return
    with pytest.raises(FlxError) as caught:
        ears.check(pattern)
    assert caught.value.code == code


def test_without_a_role_nothing_is_heard() -> None:
    deaf = Ears("anna", ("guest",))
    for pattern in ("*", "execution.*", "pipeline_events"):
        with pytest.raises(FlxError):
            deaf.check(pattern)
    assert not deaf.may_hear("execution_events")
    ears = Ears("anna", ("viewer",))
    assert ears.may_hear("execution.x.log")
    assert ears.may_hear("user.anna")
    assert not ears.may_hear("user.bert")
    assert not ears.may_hear("nothing")
