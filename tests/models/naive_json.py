"""The judge of `flx_api.models.strict_json`: the same verdicts, found in Python with another parser.

Strategy: depth is counted by a scan that does not nest. msgspec does the parsing; it keeps the last of keys that occur
twice, so these are found by counting: the text has one colon outside strings for each key, the parsed value may not
have fewer.
"""

from __future__ import annotations

from array import array
from itertools import accumulate
from typing import Any

import msgspec

from flx_api.errors import InvalidRequest

# `[` and `{` become 1, `]` and `}` become -1 (as a signed byte), everything else goes.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse(body: bytes, max_depth: int) -> Any:
    """The value of one strict JSON text.

    Raises:
        InvalidRequest: `invalid_json` or `json_too_deep`.
    """
    steps = array("b", _outside_strings(body).translate(_STEPS, _NOT_BRACKETS))
    if max(accumulate(steps), default=0) > max_depth:
        raise InvalidRequest(code="json_too_deep")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(code="invalid_json") from None
    if _outside_strings(body).count(b":") != _keys_of(value):
        detail = "An object holds the same key twice"
        raise InvalidRequest(detail, code="invalid_json")
    return value


def _outside_strings(body: bytes) -> bytes:
    """What stands outside of string literals. Once escapes are gone, every second part between quotes is a string."""
    return b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _keys_of(value: Any) -> int:
    """How many keys there are in all."""
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
