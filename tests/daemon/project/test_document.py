"""Files as plain values, and their merging."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.project.document import Refused, merge, read_lock, read_yaml


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2.5, true, null, x, 2024-01-02]", {"a": [1, 2.5, True, None, "x", "2024-01-02"]}),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("a: &x true\nb: *x", {"a": True, "b": True}),
        ("a: !vault secret", {"a": "secret"}),
        ("a: yes", {"a": "yes"}),
        ("", None),
    ],
)
def test_plain_values(text: str, expected: object) -> None:
    """What comes out has none of the loader's own types."""
    value = read_yaml(text, "f")
    assert expected == value
    assert type(value) in {dict, type(None)}


def test_an_anchor_that_holds_itself_is_refused() -> None:
    with pytest.raises(Refused):
        read_yaml("&x {b: [*x]}", "f")


def test_aliases_stay_shared() -> None:
    """A file of aliases of aliases does not grow."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    value: Any = read_yaml("\n".join(lines), "f")
    assert value["a2"][0] is value["a2"][1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: [", "line 2, column 5: "),
        ("a: 1\na: hunter2", "line 2, column 1: the key stands here twice"),
        ("a: *nowhere", "line 1, column 4: found undefined alias"),
        ("a: \x01", "holds characters that YAML does not allow"),
        ("a: 1\n---\nb: 2", "line 2, column 1: "),
        ("a: 2024-13-45", "not valid YAML"),
    ],
)
def test_refusals_have_a_place_and_no_content(text: str, reason: str) -> None:
    """The line and the column are named, what stands there is not."""
    with pytest.raises(Refused) as refused:
        read_yaml(text, "x.yml")
    assert refused.value.field == "x.yml"
    assert refused.value.reason.startswith(reason)
    assert "hunter2" not in refused.value.reason


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>\"'#\n\t ,?%@`<0.~"), max_size=40))
def test_any_text_is_a_value_or_a_refusal(text: str) -> None:
    with contextlib.suppress(Refused):
        read_yaml(text, "f")


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "[" * 100_000])
def test_lock_must_be_an_object(text: str) -> None:
    with pytest.raises(Refused):
        read_lock(text, "plugins/x.lock")


def test_merge_follows_meltano() -> None:
    """Mappings merge, lists are extended, the rest is replaced; neither side is changed."""
    base = {"a": {"x": 1, "l": [1]}, "s": 1}
    assert merge(base, {"a": {"l": [2], "y": 2}, "s": 2, "n": {"k": []}}, "m:") == {
        "a": {"x": 1, "l": [1, 2], "y": 2},
        "s": 2,
        "n": {"k": []},
    }
    assert base == {"a": {"x": 1, "l": [1]}, "s": 1}


@pytest.mark.parametrize("base", [None, "x", 1])
@pytest.mark.parametrize("more", [[1], {"a": 1}])
def test_merge_refuses_other_shapes(base: object, more: object) -> None:
    with pytest.raises(Refused) as refused:
        merge({"jobs": base}, {"jobs": more}, "meltano.yml:")
    assert refused.value.field == "meltano.yml:jobs"
