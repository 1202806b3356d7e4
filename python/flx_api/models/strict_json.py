"""JSON as we accept it: one reading, whoever reads.

Strategy: two parsers that disagree about a text are a way in, so what parsers disagree about is refused: keys that
occur twice, NaN and infinities, numbers beyond a double, lone surrogates, byte order marks. So is what is nested too
deeply. The native reader judges; msgspec then only reads what is known to be good.

Rules:
- Every step is linear in the length of the text, and bounded by `max_depth` in recursion.
- An error never quotes the text.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from flx_api._core import check_json
from flx_api.errors import InvalidRequest

MAX_DEPTH: Final = 64

_decode = msgspec.json.Decoder().decode


def check(body: bytes, max_depth: int = MAX_DEPTH) -> None:
    """Refuse what is not one strict JSON text.

    Args:
        body: the text.
        max_depth: how many objects and arrays may be inside one another, at most 255.

    Raises:
        InvalidRequest: `invalid_json` or `json_too_deep`.
    """
    refusal = check_json(body, max_depth)
    if refusal is not None:
        raise _refused(refusal)


def parse(body: bytes, max_depth: int = MAX_DEPTH) -> Any:  # noqa: ANN401 - any JSON value
    """The value of one strict JSON text.

    Raises:
        InvalidRequest: `invalid_json` or `json_too_deep`.
    """
    check(body, max_depth)
    return _decode(body)


def is_object(body: bytes) -> bool:
    """Whether a text that was found to be JSON is an object."""
    return body.lstrip(b" \t\r\n").startswith(b"{")


def _refused(refusal: str) -> InvalidRequest:
    if refusal == "too_deep":
        return InvalidRequest(code="json_too_deep")
    if refusal == "name_twice":
        detail = "An object holds the same key twice"
        return InvalidRequest(detail, code="invalid_json")
    return InvalidRequest(code="invalid_json")
