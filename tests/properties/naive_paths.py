"""The rules of paths, one after another: the judge of the native routes."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

_PLAIN: Final = re.compile(rb"(?:/[A-Za-z0-9_.~!$&'()*+,=:@-]+)+|/")
_ESCAPED: Final = re.compile(rb"(?:/(?:[A-Za-z0-9_.~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})+)+|/")
# Control characters, dot, slash, backslash, percent: what could make a path another one.
_TREACHEROUS: Final = re.compile(rb"%(?:[01][0-9a-f]|7f|2e|2f|5c|25)", re.IGNORECASE)
_MAX_SEGMENTS: Final = 12


def segments(raw: bytes) -> list[str] | None:
    """The segments of a path, decoded once; None when there is something to suspect."""
    if not _PLAIN.fullmatch(raw) and (not _ESCAPED.fullmatch(raw) or _TREACHEROUS.search(raw)):
        return None
    parts = raw.split(b"/")
    if len(parts) > _MAX_SEGMENTS or b"." in parts or b".." in parts:
        return None
    try:
        return [unquote_to_bytes(part).decode() for part in parts[1:]]
    except UnicodeDecodeError:
        return None
