"""Arguments of commands: every field at fault is named, by daemon and gateway in the same words."""

from __future__ import annotations

import msgspec
import pytest

from flx_api.commands import COMMANDS
from flx_api.errors import ValidationFailed
from flx_api.models.arguments import arguments


def errors_of(command: str, raw: bytes) -> list[tuple[str, str]]:
    with pytest.raises(ValidationFailed) as refused:
        arguments(COMMANDS[command].args, raw)
    return [(error.field, error.code) for error in refused.value.errors]


def test_all_fields_at_fault_are_named_at_once() -> None:
    raw = b'{"name": "UPPER", "tasks": [["ok", 7]], "is_admin": true, "description": null}'
    assert errors_of("pipeline.create", raw) == [
        ("args.name", "invalid"),
        ("args.description", "invalid"),
        ("args.tasks[0][1]", "invalid"),
        ("args.is_admin", "unknown"),
    ]
    assert errors_of("pipeline.get", b"{}") == [("args.id", "missing")]
    assert errors_of("pipeline.get", b"[]") == [("args", "invalid")]
    assert errors_of("pipeline.get", b"null") == [("args", "invalid")]
    # A name that is no name is not echoed.
    assert errors_of("command.list", b'{"<script>": 1}') == [("args", "unknown")]


@pytest.mark.parametrize("name", ["-h", "--version", "a;id", "$(id)", "`id`", "a\nb", "a\0", "../x", "x" * 300, ""])
def test_names_that_are_no_names(name: str) -> None:
    raw = msgspec.json.encode({"name": name, "tasks": [["tap-a"]]})
    assert errors_of("pipeline.create", raw) == [("args.name", "invalid")]
