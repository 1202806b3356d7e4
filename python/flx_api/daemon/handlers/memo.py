"""Answers to reads that are still good: until the journal moves or the project's files change.

Strategy: every change of what the daemon knows emits an event in its own transaction, so the journal's sequence number
is the version of everything in it. An answer is kept with the version it was made of; another version makes it void.

Rules:
- Only for reads whose answer depends on nothing but the key and the version.
- The version is taken before the read: a commit in between makes the kept answer void, never wrong.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Memo:
    """Encoded answers by key, the least recently used ones forgotten beyond `size`."""

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, tuple[Hashable, bytes]] = OrderedDict()

    def get(self, key: Hashable, version: Hashable, make: Callable[[], bytes]) -> bytes:
        """The answer of this version: the kept one, or a new one from `make`."""
        kept = self._kept.get(key)
        if kept is not None and kept[0] == version:
            self._kept.move_to_end(key)
            return kept[1]
        answer = make()
        self._kept[key] = (version, answer)
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return answer
