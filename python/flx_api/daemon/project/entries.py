"""Entries of meltano.yml, whatever they describe: mappings with a name, texts and mappings in them.

Strategy: what several kinds of entries have in common is checked here, with the words a person reads.

Rules:
- Pure; a refusal names the path of the key, never the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flx_api.daemon.project.document import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping


def keyword_mapping(raw: object, field: str) -> dict[str, Any]:
    """A mapping with text keys only.

    Raises:
        Refused: it is something else.
    """
    if not isinstance(raw, dict):
        raise Refused(field, "must be a mapping")
    if not all(isinstance(key, str) for key in raw):
        raise Refused(field, "has a key that is no text; put it in quotes")
    return raw


def mapping_of(entry: Mapping[str, Any], key: str, field: str) -> dict[Any, Any]:
    """The mapping under a key; whatever is empty is an empty one.

    Raises:
        Refused: it is something else.
    """
    value = entry.get(key) or {}
    if not isinstance(value, dict):
        raise Refused(field=f"{field}.{key}", reason="must be a mapping")
    return value


def text_of(entry: Mapping[str, Any], key: str, field: str) -> str | None:
    """The text under a key; numbers and dates count as their text.

    Raises:
        Refused: it is a list or a mapping.
    """
    value = entry.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        raise Refused(field=f"{field}{'' if field.endswith(':') else '.'}{key}", reason="must be a string")
    return str(value)


def component_name(entry: Mapping[str, Any], field: str) -> str:
    """The name of something a state id is made of: text without a colon.

    Raises:
        Refused: it is missing or not such a text.
    """
    name = entry.get("name")
    if not isinstance(name, str):
        raise Refused(field=f"{field}.name", reason="must be a string" if "name" in entry else "is missing")
    if ":" in name:
        raise Refused(field=f"{field}.name", reason="must not contain ':'")
    return name
