"""Patterns of all texts that are read: Python's `$` also matches before a last line feed, and no name ends in one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from flx_api import models
from flx_api.commands import COMMANDS
from flx_api.config import Settings
from flx_api.errors import ValidationFailed
from flx_api.models.arguments import arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of each kind of name one.
NAMES = ("a", "app.a", "0123abcd-1", "ab:c", "2026-01-01", "1")


def structs() -> Iterator[type[msgspec.Struct]]:
    """Whatever is read from outside: arguments, the rest of the models, and settings."""
    yield from (kind for command in COMMANDS.values() for kind in (command.args, command.result))
    yield Settings
    for found in pkgutil.walk_packages(models.__path__, f"{models.__name__}."):
        for _, kind in inspect.getmembers(importlib.import_module(found.name), inspect.isclass):
            if issubclass(kind, msgspec.Struct) and kind.__module__.startswith("flx_api."):
                yield kind


def patterns_in(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from patterns_in(part)


def patterns() -> list[str]:
    _, schemas = msgspec.json.schema_components(set(structs()), schema_hook=lambda _: {})
    return sorted(set(patterns_in(schemas)))


@pytest.mark.parametrize("pattern", patterns())
def test_a_last_line_feed_is_refused(pattern: str) -> None:
    (name, *_) = [name for name in NAMES if re.search(pattern, name)]
    # As msgspec looks.
    takes_lines = re.search(pattern, f"{name}\n{name}") is not None
    assert takes_lines == (re.search(pattern, f"{name}\n") is not None)
    # Other readers of the JSON Schema know neither of these.
    assert not re.search(r"\\[AZ]", pattern)


def test_nothing_is_published_to_a_topic_that_nobody_can_name() -> None:
    assert "app.x" == arguments(COMMANDS["event.publish"].args, b'{"topic": "app.x"}').topic
    with pytest.raises(ValidationFailed) as refused:
        arguments(COMMANDS["event.publish"].args, b'{"topic": "app.x\\n"}')
    assert ["args.topic"] == [error.field for error in refused.value.errors]
