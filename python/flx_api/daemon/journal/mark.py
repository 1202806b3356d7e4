"""How far the journal has come, told in a file beside the database, so that a database that was put back is noticed.

Strategy: after each commit the epoch and the last sequence number are written over what was there. A database that ends
before its mark has lost something: it came out of a backup, and would give the numbers of lost events to others. So
does one without a mark, perhaps. Either gets a new epoch (`flx_api.daemon.journal.journal`).

Rules:
- The mark is set after the commit and before anybody is told: after a kill it is exact or one commit late. Only the
  first one waits for the disk, so that there is one after a loss of power: it may be late, and this history goes on.
  So a mark may know too little and never too much.
- A mark that cannot be read or written stops nothing.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MOST_BYTES = 128


class Mark:
    """The mark of one database.

    Args:
        file: where it is; made when it is first set.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor: int | None = None

    def allows(self, epoch: str, seq: int) -> bool:
        """Whether a database of this epoch that ends here has all that was ever in it, as far as the mark knows."""
        try:
            told = self._file.read_bytes()
        except OSError:
            return False
        line, ended, _ = told[:_MOST_BYTES].partition(b"\n")
        name, _, number = line.partition(b" ")
        return bool(ended) and name == epoch.encode() and number.isdigit() and int(number) <= seq

    def set(self, epoch: str, seq: int) -> None:
        """The database of this epoch has come so far."""
        with contextlib.suppress(OSError):
            first = self._descriptor is None
            if self._descriptor is None:
                self._descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # Numbers are written in one width and what follows the line is not read: no need to cut the file.
            os.pwrite(self._descriptor, b"%b %020d\n" % (epoch.encode(), seq), 0)
            if first:
                os.fsync(self._descriptor)
                _sync_folder(self._file.parent)

    def close(self) -> None:
        """No more marks."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
