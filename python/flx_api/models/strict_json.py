"""JSON as we accept it: one reading, whoever reads.

Strategy: two parsers that disagree about a text are a way in, so what parsers disagree about is refused: keys that
occur twice, NaN and infinities, numbers beyond a double, lone surrogates, byte order marks. Depth is checked before
parsing, by a scan that does not nest. msgspec does the parsing; it keeps the last of keys that occur twice, so these
are found by counting: the text has one colon outside strings for each key, the parsed value may not have fewer.

Rules:
- Every step is linear in the length of the text, and bounded by `max_depth` in recursion.
- An error never quotes the text.
"""

from __future__ import annotations

from array import array
from itertools import accumulate
from typing import Any

import msgspec

from flx_api.errors import InvalidRequest

MAX_DEPTH = 64

# `[` and `{` become 1, `]` and `}` become -1 (as a signed byte), everything else goes.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_FIRST_LOOK = 4096

_decoder = msgspec.json.Decoder()


def check(body: bytes, max_depth: int = MAX_DEPTH) -> None:
    """Refuse what is not one strict JSON text.

    Raises:
        InvalidRequest: `invalid_json` or `json_too_deep`.
    """
    parse(body, max_depth)


def parse(body: bytes, max_depth: int = MAX_DEPTH) -> Any:  # noqa: ANN401 - any JSON value
    """The value of one strict JSON text.

    Raises:
        InvalidRequest: `invalid_json` or `json_too_deep`.
    """
    if body.count(b"[") + body.count(b"{") > max_depth:
        _check_depth(body, max_depth)
    try:
        value = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(code="invalid_json") from None
    # A value with at most one key cannot hold one twice: many bodies end here.
    if body.count(b":") > 1 and _outside_strings(body).count(b":") != _keys_of(value):
        detail = "An object holds the same key twice"
        raise InvalidRequest(detail, code="invalid_json")
    return value


def is_object(body: bytes) -> bool:
    """Whether a text that was found to be JSON is an object."""
    return body.lstrip(b" \t\r\n").startswith(b"{")


def _check_depth(body: bytes, max_depth: int) -> None:
    look = _FIRST_LOOK
    # A beginning that is too deep is enough, and is found without looking at the rest.
    while True:
        steps = array("b", _outside_strings(body[:look]).translate(_STEPS, _NOT_BRACKETS))
        if max(accumulate(steps), default=0) > max_depth:
            raise InvalidRequest(code="json_too_deep")
        if look >= len(body):
            return
        look *= 16


def _outside_strings(body: bytes) -> bytes:
    """What stands outside of string literals. Once escapes are gone, every second part between quotes is a string."""
    return b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _keys_of(value: Any) -> int:  # noqa: ANN401 - any JSON value
    """How many keys there are in all. A list that grows while it is gone through costs a third of a recursion."""
    count = 0
    waiting = [value]
    for item in waiting:
        kind = type(item)
        if kind is dict:
            count += len(item)
            waiting.extend(item.values())
        elif kind is list:
            waiting.extend(item)
    return count
