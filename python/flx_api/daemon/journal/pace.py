"""When SQLite's log is moved into its file: in a calm moment, and else as seldom as a pause may be long.

Strategy: every commit appends the pages that it changed to the log, and now and then they have to be written to where
they belong. Nothing can be committed meanwhile, and however little is moved, the disk is waited for twice. So it is
best done when nobody waits (`is_worth_it`). Under a load that never pauses it has to be done all the same (`is_due`):
then rarely, for much at once, since a page that was changed often is written only once. How much that may be is learnt
from how long it took: a disk that is slow, or a large database, whose changes are far apart, gets shorter moves.

Rules:
- Pure: it is told how long things took.
- Pages are estimated, since SQLite does not say. Behind it stands SQLite's own limit, which is exact
  (`flx_api.daemon.journal.sqlite`).
"""

from __future__ import annotations

from typing import Final

MOST_PAGES: Final = 16_000
"""What may gather, where the disk is quick: 64 MiB."""
# As much as SQLite lets gather by itself.
_FEWEST: Final = 1000
# Below this a move would wait for the disk more than it moves.
_WORTH: Final = 250
# A move that is due should not take longer.
_PAUSE_S: Final = 0.05
_GROWTH: Final = 4
# What a group changes beside its rows: ends of tables and of indexes, heads of topics.
_GROUP: Final = 12
# After a move that failed, for so many more.
_AGAIN: Final = 1000


class Pace:
    """How much has gathered, and how much may."""

    def __init__(self) -> None:
        self._pages = 0
        self._least = 0
        self._limit = _FEWEST

    def committed(self, changes: int) -> None:
        """A group of so many changes was appended."""
        self._pages += _GROUP + changes

    @property
    def is_worth_it(self) -> bool:
        """Whether the log should be moved if nobody waits."""
        return self._pages >= max(_WORTH, self._least)

    @property
    def is_due(self) -> bool:
        """Whether it must be moved now."""
        return self._pages >= max(self._limit, self._least)

    def moved(self, took_s: float) -> None:
        """It was moved."""
        if self.is_due:
            # What takes no time at all still says little about sixteen times as much.
            grown = min(_PAUSE_S / max(took_s, 1e-6), _GROWTH)
            self._limit = max(_FEWEST, min(MOST_PAGES, int(self._limit * grown)))
        self._pages = self._least = 0

    def failed(self) -> None:
        """It could not be moved."""
        self._least = self._pages + _AGAIN
