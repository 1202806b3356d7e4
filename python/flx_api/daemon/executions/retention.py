"""Which run folders may go, and their going.

Strategy: a pure choice over (id, end, size), oldest first: by age, then by total size. What is removed is the folder
with the log and the meter records; the execution with its ledger stays in the database.

Rules:
- A run that is not over is never touched.
- Age and size are limits each by itself, whichever is reached first; the newest log goes last.
- Folders that no execution knows (of a database that was restored) go by the time they were last written.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_DAY_US = 86_400_000_000
_MIB = 1024 * 1024


class RunLog(NamedTuple):
    """A run folder: the attempt, when it ended, what its files take."""

    attempt_id: str
    finished_us: int
    size: int


def expired(logs: Iterable[RunLog], now_us: int, days: int, mib: int) -> list[str]:
    """The attempts whose folders go, oldest first."""
    kept = sorted(logs, key=lambda found: (found.finished_us, found.attempt_id))
    total = sum(found.size for found in kept)
    gone: list[str] = []
    for found in kept:
        if found.finished_us >= now_us - days * _DAY_US and total <= mib * _MIB:
            break
        gone.append(found.attempt_id)
        total -= found.size
    return gone


def survey(runs_dir: Path) -> list[RunLog]:
    """The folders there are, with the time of their last change as their end. Reads the disk: call it in a thread."""
    try:
        entries = list(os.scandir(runs_dir))
    except OSError:
        return []
    return [
        RunLog(entry.name, entry.stat().st_mtime_ns // 1000, _size(entry.path))
        for entry in entries
        if entry.is_dir(follow_symlinks=False)
    ]


def with_ends(logs: Iterable[RunLog], ends: Mapping[str, int | None]) -> list[RunLog]:
    """The same with the ends that the database knows; without those that are not over (None)."""
    return [
        found._replace(finished_us=ended)
        for found in logs
        if (ended := ends.get(found.attempt_id, found.finished_us)) is not None
    ]


def remove(runs_dir: Path, attempt_ids: Iterable[str]) -> None:
    """Remove run folders. A file that cannot be removed is left for the next time."""
    for attempt_id in attempt_ids:
        shutil.rmtree(runs_dir / attempt_id, ignore_errors=True)


def _size(folder: str) -> int:
    """The bytes of a run folder's own files; links are not followed."""
    total = 0
    for path, folders, files in os.walk(folder):
        # The private system folder holds links to whole plugin environments and is gone when a run is over.
        if "sys" in folders:
            folders.remove("sys")
        for name in files:
            try:
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118
            except OSError:
                continue
    return total
