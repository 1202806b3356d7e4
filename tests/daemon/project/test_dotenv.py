"""The reader of `.env` against python-dotenv, which Meltano uses."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import dotenv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.project.dotenv import read_dotenv

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES = st.sampled_from(["A", "B_1", "'Q'", "export C", "#D", "E F", "=", ""])
VALUES = st.lists(
    st.sampled_from(["a", " ", "'", '"', "\\", "\\n", "#", "$", "${A}", "${B_1:-x}", "=", "\t", "é", "\r"]), max_size=8
).map("".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1\nB='two' # comment\nexport C=\"x\\ny\"", {"A": "1", "B": "two", "C": "x\ny"}),
        ("A\nB=", {"B": ""}),
        ("A=1\nthis is = not 'closed\nB=2", {"A": "1", "B": "2"}),
        ("A=x\nB=${A}-${HOME}-${NONE:-d}-${NONE}", {"A": "x", "B": "x-/h-d-"}),
        ("\ufeffA=1", {"A": "1"}),
    ],
)
def test_forms(text: str, expected: dict[str, str]) -> None:
    assert expected == read_dotenv(text, {"HOME": "/h"})


@given(st.lists(st.tuples(NAMES, st.sampled_from(["=", " = ", "", "= "]), VALUES), max_size=5))
def test_agrees_with_python_dotenv(lines: Iterable[tuple[str, str, str]]) -> None:
    """Whatever stands in the file: the same names with the same values."""
    text = "\n".join("".join(line) for line in lines)
    theirs = dotenv.dotenv_values(stream=io.StringIO(text))
    assert {name: value for name, value in theirs.items() if value is not None} == read_dotenv(text, {})
