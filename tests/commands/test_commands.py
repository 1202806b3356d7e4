"""The registry of commands."""

from __future__ import annotations

import msgspec
import pytest

from flx_api import commands
from flx_api.errors import NotFound


def test_names_are_noun_dot_verb_and_match_their_key() -> None:
    """Every command is found under its own name, which has exactly one dot (root paths stay free)."""
    for name, command in commands.COMMANDS.items():
        assert name == command.name
        noun, verb = name.split(".")
        assert noun.isidentifier()
        assert verb.isidentifier()


def test_arguments_refuse_unknown_fields() -> None:
    """No command but echo takes fields that it does not know."""
    for command in commands.COMMANDS.values():
        assert command.args.__struct_config__.forbid_unknown_fields or command.name == "system.echo", command.name


def test_schemas_can_be_made() -> None:
    """Arguments and results of every command have a JSON Schema."""
    msgspec.json.schema_components([c.args for c in commands.COMMANDS.values()])
    msgspec.json.schema_components([c.result for c in commands.COMMANDS.values()])


def test_unknown_command_names_the_nearest() -> None:
    """A slip of the pen is answered with what was meant."""
    with pytest.raises(NotFound) as caught:
        commands.find("pipeline.lst")
    assert "unknown_command" == caught.value.code
    assert "pipeline.list" in caught.value.suggestions
    with pytest.raises(NotFound) as caught:
        commands.find("zzzzzzzzzzzz")
    assert () == caught.value.suggestions
