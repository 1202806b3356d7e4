"""Reads an event stream (WHATWG HTML, section 9.2): bytes in, events out.

Rules:
- Pure; a piece may end anywhere, also between two bytes of a character or of a line's end.
- Lines end with CR LF, LF or CR, and with nothing else: JSON may hold other characters that end lines elsewhere.
- An event that is not ended by an empty line is none.
"""

from __future__ import annotations

import codecs
import re
from typing import Final, NamedTuple

_LINE: Final = re.compile("\r\n|\n|\r")


class StreamEvent(NamedTuple):
    """An event; `kind` is `message` where the stream says nothing else."""

    kind: str
    data: str


class EventStreamDecoder:
    """The reader of one stream."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""
        self._has_begun = False
        self._kind = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[StreamEvent]:
        """Events that are whole with this piece."""
        text = self._decode(piece)
        if not self._has_begun and text:
            self._has_begun, text = True, text.removeprefix("\ufeff")
        text = self._rest + text
        lines = _LINE.split(text)
        self._rest = lines.pop()
        if text.endswith("\r"):
            # It may be half of a CR LF.
            self._rest = lines.pop() + "\r"
        return [event for line in lines if (event := self._take(line)) is not None]

    def _take(self, line: str) -> StreamEvent | None:
        if not line:
            kind, data = self._kind, self._data
            self._kind, self._data = "", []
            return StreamEvent(kind or "message", "\n".join(data)) if data else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._kind = value
        elif field == "data":
            self._data.append(value)
        return None
