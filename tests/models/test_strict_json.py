"""Strict JSON against the standard library's parser with a hook that sees every pair, and against its judge."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.models import naive_json

from flx_api.errors import InvalidRequest
from flx_api.models import strict_json

if TYPE_CHECKING:
    from collections.abc import Callable


class _NotStrictError(ValueError):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise _NotStrictError
    return dict(pairs)


def _constant(_name: str) -> None:
    raise _NotStrictError


def _number(text: str) -> float:
    if float(text) in {float("inf"), float("-inf")}:
        raise _NotStrictError
    return float(text)


def naive(body: bytes) -> Any:
    text = body.decode()
    if text.startswith("\ufeff"):
        raise _NotStrictError
    value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_number)
    json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be written
    return value


def agree(body: bytes) -> None:
    try:
        expected = naive(body)
    except ValueError:
        with pytest.raises(InvalidRequest) as refused:
            strict_json.check(body)
        assert refused.value.code == "invalid_json"
    else:
        assert strict_json.parse(body) == expected


def told(parse: Callable[[bytes, int], Any], body: bytes, max_depth: int) -> Any:
    """The value of a text as it is written (1 is not 1.0), or what is said against it."""
    try:
        return json.dumps(parse(body, max_depth))
    except InvalidRequest as error:
        return error.code, error.detail


def same(body: bytes, max_depth: int = 3) -> None:
    assert told(strict_json.parse, body, max_depth) == told(naive_json.parse, body, max_depth)


class _Object:
    """An object that may hold a key more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


KEYS = st.sampled_from(["a", "b", "c:", '"', "\\", '\\"', ":", "{", "\u00e9", "\\u0061", "a"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=5) | KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(KEYS, inner), max_size=4).map(_Object),
    max_leaves=12,
)


def write(value: Any) -> str:
    if isinstance(value, _Object):
        return "{" + ", ".join(f"{json.dumps(key)} : {write(item)}" for key, item in value.pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@given(VALUES)
def test_it_agrees_with_the_naive_parser_on_values(value: Any) -> None:
    agree(write(value).encode())


@given(
    st.lists(st.sampled_from(['"', "\\", "a", ":", ",", "{", "}", "[", "]", "1", "-", "null", " ", "é"]), max_size=12)
)
@example(['"', "\\", "\\", '"', ":"])
def test_it_agrees_with_the_naive_parser_on_debris(parts: list[str]) -> None:
    agree("".join(parts).encode())


WRITTEN = VALUES.map(write).map(str.encode)
PIECES = st.sampled_from([
    *(b'"', b"\\", b"a", b":", b",", b"{", b"}", b"[", b"]", b'"a":', b'"b"', b'{"a":1', b"[[[", b"null", b" "),
    *(b"true", b"NaN", b"\\u0061", b"\\ud83d", b"\\udc00", b"\\n", b"\xff", b"\xc3", b"\xa9", b"\x00", b"\x1f"),
    *(b"\x7f", b"\xef\xbb\xbf"),
    *(b"0", b"1", b"-", b".", b"e", b"E+", b"9" * 4299, b"99", b"e308", b"\n", b"\t\r", b"\x0b", b"/", b"'"),
])  # fmt: skip


@given(st.binary(max_size=40) | st.lists(PIECES, max_size=14).map(b"".join) | WRITTEN, st.integers(0, 5))
@example(b"-" + b"1" * 4300, 1)
@example(b"-" + b"1" * 4299, 1)
@example(b"]]" + b"[" * 5, 2)
@example(b'\\"[[', 1)
@example(b'{"a":1,"a":2}x', 1)
def test_it_says_what_the_judge_says_about_anything(body: bytes, max_depth: int) -> None:
    same(body, max_depth)


@given(WRITTEN, st.data())
def test_it_says_what_the_judge_says_about_nearly_json(body: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(body)))
    gone = data.draw(st.integers(0, 3))
    same(body[:at] + data.draw(PIECES | st.just(b"")) + body[at + gone :])


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"{]", b"{} x", b"NaN", b"[Infinity]", b"-Infinity", b"1e400", b"1" * 5000, b"\xef\xbb\xbf{}"),
        *(b'"\xff"', b'"\\ud800"', b'{"a":1,"a":2}', b'{"a":{"b":1,"c":2,"b":3}}', b'{"a":1,"\\u0061":2}'),
        b'"' * 1_000_001,
    ],
)
def test_what_is_not_strict_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        strict_json.check(body)
    assert refused.value.code == "invalid_json"
    assert body[:20] not in refused.value.detail.encode() or not body.strip()


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":"[[[["},'])
@pytest.mark.parametrize("count", [65, 100, 5000, 100_000])
def test_depth_beyond_64_is_refused_whether_closed_or_not(opening: bytes, count: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        strict_json.check(opening * count)
    assert refused.value.code == "json_too_deep"


def test_depth_64_passes_and_brackets_in_strings_do_not_count() -> None:
    strict_json.check(b"[" * 64 + b"]" * 64)
    strict_json.check(json.dumps({"a": "[" * 1000, "b": ['\\"[{', "{" * 1000]}).encode())
    with pytest.raises(InvalidRequest, match="deep"):
        strict_json.check(b"[" * 65 + b"]" * 65)


@pytest.mark.parametrize("body", [b"[" * 1_000_000, b'{"a":' * 200_000, b"[" * 65 + b'"' + b'\\"' * 500_000])
def test_a_hostile_body_costs_little_cpu(body: bytes) -> None:
    def cost() -> float:
        begun = time.process_time()
        with pytest.raises(InvalidRequest):
            strict_json.check(body)
        return time.process_time() - begun

    assert min(cost() for _ in range(5)) < 0.005
