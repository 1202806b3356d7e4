"""What entries have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flx_api.daemon.project.document import Refused
from flx_api.daemon.project.entries import component_name, keyword_mapping, mapping_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable


def test_what_is_accepted() -> None:
    """Numbers count as text, whatever is empty as an empty mapping."""
    entry = {"name": "tap-a", "python": 3.11, "unset": None, "config": [], "env": {"A": 1}}
    assert keyword_mapping(entry, "f") is entry
    assert component_name(entry, "f") == "tap-a"
    assert [text_of(entry, key, "f") for key in ("name", "python", "unset", "none")] == ["tap-a", "3.11", None, None]
    assert mapping_of(entry, "config", "f") == {}
    assert mapping_of(entry, "env", "f") == {"A": 1}


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda: keyword_mapping(None, "f"), "f"),
        (lambda: keyword_mapping({1: 2}, "f"), "f"),
        (lambda: component_name({}, "f"), "f.name"),
        (lambda: component_name({"name": 5}, "f"), "f.name"),
        (lambda: component_name({"name": "a:b"}, "f"), "f.name"),
        (lambda: text_of({"k": []}, "k", "f"), "f.k"),
        (lambda: text_of({"k": {}}, "k", "meltano.yml:"), "meltano.yml:k"),
        (lambda: mapping_of({"k": "hunter2"}, "k", "f"), "f.k"),
    ],
)
def test_refusals_name_the_key_and_not_the_value(ask: Callable[[], Any], field: str) -> None:
    with pytest.raises(Refused) as refused:
        ask()
    assert refused.value.field == field
    assert "hunter2" not in str(refused.value)
