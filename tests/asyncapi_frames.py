"""A judge of frames: which message of the AsyncAPI document a frame is, or why it is none."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft7Validator


def judge(document: dict[str, Any], frame: dict[str, Any]) -> str:
    """The name of the one message that the gateway may send and that this frame is.

    The document lets readers expect more members in later versions; here none is allowed that it does not name.

    Raises:
        AssertionError: it is none of them, or more than one.
    """
    found: list[str] = []
    reasons: list[str] = []
    sent = (operation for operation in document["operations"].values())
    names = {
        reference["$ref"].rsplit("/", 1)[1]
        for operation in sent
        for side in ([operation] if operation["action"] == "send" else [operation["reply"]])
        for reference in side["messages"]
    }
    for name in sorted(names):
        schema = {**_whole(document["components"]["messages"][name]["payload"], document), "type": "object"}
        errors = [error.message for error in Draft7Validator(schema).iter_errors(frame)]
        reasons += [f"{name}: {message}" for message in errors]
        if not errors:
            found.append(name)
    if "gap" in found:  # an error whose code says more
        found.remove("error")
    elif frame.get("code") == "gap":
        found = []
    assert 1 == len(found), (frame, found, reasons)
    return found[0]


def _whole(schema: Any, document: dict[str, Any]) -> Any:
    """A schema with its references put in, `allOf` as one, and closed."""
    if isinstance(schema, list):
        return [_whole(part, document) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return _whole(document["components"]["schemas"][name], document)
    if "allOf" in schema:
        properties: dict[str, Any] = {}
        required: list[str] = []
        for part in _whole(schema["allOf"], document):
            for name, detail in part.get("properties", {}).items():
                properties[name] = {**properties.get(name, {}), **detail}
            required += part.get("required", [])
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    whole = {key: _whole(value, document) for key, value in schema.items()}
    if "properties" in whole and "additionalProperties" not in whole:
        whole["additionalProperties"] = False
    return whole
