"""The AsyncAPI 3.0 document, made from the structs of messages and events, the close codes and the limits.

Strategy: a channel for the WebSocket and one for the stream of events; a message for each struct, and for each kind of
topic, whose payload is an `Event` with that topic's `data`. As everywhere in AsyncAPI, `send` and `receive` are the
gateway's: it receives what a client sends.

Rules:
- Nothing is written here that is declared elsewhere. A test holds real frames of a real gateway against the document.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any, Final, get_args

import msgspec

from flx_api.models.event import TOPICS, Topic
from flx_api.models.message import GAP, Batch, ClientMessage, Closed, Error, Event, Gap, ServerMessage
from flx_api.websocket.close_codes import CloseCode
from flx_api.websocket.protocol import BATCHED, MAX_MESSAGE_BYTES, PLAIN

CHANNEL: Final = "realtime"
STREAM: Final = "stream"
_REF: Final = "#/components/schemas/{name}"
_ANSWERS: Final[dict[str, tuple[str, ...]]] = {
    "ping": ("pong",),
    "subscribe": ("subscribed", "error"),
    "unsubscribe": ("unsubscribed", "error"),
    "refresh": ("refreshed", "error"),
    "other": ("echo", "error"),
}
"""What each message of a client is answered with."""
_BATCH, _BATCHED_GAP = "batch", "batchedGap"
"""Messages of those who selected `flx.v1`; a stream has the latter too."""
_CLOSED: Final = Closed.__struct_config__.tag
"""The last event of a stream."""
_UNASKED: Final = ("connected", "heartbeat", "expiring", "reconnect", "presence", GAP, _BATCHED_GAP, _BATCH)

Json = dict[str, Any]


def document() -> Json:
    """The whole document."""
    shapes: list[Any] = [
        *get_args(ClientMessage),
        *get_args(ServerMessage),
        Gap,
        Batch,
        Closed,
        *(topic.data for topic in TOPICS),
    ]
    unique = list(dict.fromkeys(shapes))
    found, components = msgspec.json.schema_components(unique, ref_template=_REF)
    refs = dict(zip(unique, found, strict=True))
    messages = _messages(refs)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "FLX API",
            "version": metadata.version("flx-api"),
            "description": "Live events of a Meltano project. Commands over HTTP: `/openapi.json`.",
        },
        "defaultContentType": "application/json",
        "servers": {"gateway": _server("ws"), "http": _server("http")},
        "channels": {CHANNEL: _channel(messages), STREAM: _stream()},
        "operations": _operations(),
        "components": {"messages": messages, "schemas": components, "securitySchemes": _security()},
    }


def _server(protocol: str) -> Json:
    ways = [name for name in _security() if protocol == "ws" or name != "subprotocol"]
    return {
        "host": "{host}",
        "protocol": protocol,
        "description": f"The port of the HTTP interface; `{protocol}s` where TLS is on.",
        "variables": {"host": {"default": "localhost:8000", "description": "The gateway's host and port."}},
        "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in ways],
    }


def _security() -> Json:
    return {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        "subprotocol": {
            "type": "httpApiKey",
            "in": "header",
            "name": "Sec-WebSocket-Protocol",
            "description": f"For browsers: offer `{PLAIN}` and `bearer.<token>`.",
        },
        "ticket": {
            "type": "httpApiKey",
            "in": "query",
            "name": "ticket",
            "description": "From `POST /v1/ws-ticket`: it is good once, for 30 seconds.",
        },
    }


def _messages(refs: dict[Any, Json]) -> Json:
    made = {
        kind.__struct_config__.tag: _message(_sentence(kind), refs[kind])
        for kind in (*get_args(ClientMessage), *get_args(ServerMessage))
        if kind is not Event
    }
    made["other"] = _message(
        "Any other type.",
        {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]},
    )
    skipped = {"properties": {"code": {"const": GAP}}, "required": ["reason", "epoch"]}
    made[_BATCHED_GAP] = _message(_sentence(Gap), refs[Gap])
    made[_BATCH] = _message(_sentence(Batch), refs[Batch])
    made[_CLOSED] = _message(_sentence(Closed), refs[Closed])
    made[GAP] = _message("Events were skipped.", {"allOf": [refs[Error], skipped]})
    return made | {topic.name: _event(topic, refs) for topic in TOPICS}


def _event(topic: Topic, refs: dict[Any, Json]) -> Json:
    exact = "{}" not in topic.template
    parts = (re.escape(part) for part in topic.template.split("{}"))
    name = {"const": topic.template} if exact else {"type": "string", "pattern": f"^{topic.segment.join(parts)}$"}
    detail = {"properties": {"event": name, "data": refs[topic.data]}}
    return _message(topic.sentence, {"allOf": [refs[Event], detail]})


def _message(sentence: str, payload: Json) -> Json:
    return {"summary": sentence, "contentType": "application/json", "payload": payload}


def _channel(messages: Json) -> Json:
    return {
        "address": "/ws/{client_id}",
        "title": "The WebSocket",
        "servers": [{"$ref": "#/servers/gateway"}],
        "description": f"One JSON object a text message; of a client at most {MAX_MESSAGE_BYTES} bytes.",
        "parameters": {"client_id": {"description": "1 to 128 letters, digits, or `._:@-`, chosen by the client."}},
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages if name != _CLOSED},
        "bindings": {
            "ws": {
                "method": "GET",
                "query": {
                    "type": "object",
                    "properties": {"ticket": {"type": "string"}, "protocol": {"enum": [BATCHED, PLAIN]}},
                },
                "bindingVersion": "0.1.0",
            }
        },
        "x-close-codes": {str(code.value): code.reason for code in CloseCode if code is not CloseCode.GONE},
    }


def _stream() -> Json:
    """`text/event-stream`: the data of an event is a message, its name the message's type, its id the position."""
    topics = (topic.name for topic in TOPICS)
    names = ("subscribed", "expiring", "reconnect", "presence", _BATCHED_GAP, _CLOSED, *topics)
    return {
        "address": "/v1/events",
        "title": "The stream of events",
        "description": " ".join((_stream.__doc__ or "").split()),
        "servers": [{"$ref": "#/servers/http"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
    }


def _operations() -> Json:
    made: Json = {}
    for name, answers in _ANSWERS.items():
        reply = {"channel": _channel_ref(), "messages": [_message_ref(answer) for answer in answers]}
        made[f"receive{name.capitalize()}"] = {**_operation("receive", name), "reply": reply}
    for name in _UNASKED:
        made[f"send{name.capitalize()}"] = _operation("send", name)
    made["sendEvent"] = _operation("send", *(topic.name for topic in TOPICS))
    channel = {"$ref": f"#/channels/{STREAM}"}
    messages = [{"$ref": f"#/channels/{STREAM}/messages/{name}"} for name in _stream()["messages"]]
    made["stream"] = {"action": "send", "channel": channel, "messages": messages}
    return made


def _operation(action: str, *names: str) -> Json:
    return {"action": action, "channel": _channel_ref(), "messages": [_message_ref(name) for name in names]}


def _channel_ref() -> Json:
    return {"$ref": f"#/channels/{CHANNEL}"}


def _message_ref(name: str) -> Json:
    return {"$ref": f"#/channels/{CHANNEL}/messages/{name}"}


def _sentence(kind: type[msgspec.Struct]) -> str:
    return " ".join((kind.__doc__ or "").split())
