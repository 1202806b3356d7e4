"""A run's log by line number: an index over a file that is never held in memory.

Strategy: every 256th line's byte offset is remembered (8,000 numbers for two million lines); a page is one seek to
the mark before it and one `pread` run from there. The file's length is looked at by whoever follows the run
(`advance`), so that readers, however many, cost one `stat` per tick together.

Rules:
- Lines are numbered from 1 and are what ends in a newline; a line without its end counts once the run is over.
- The content is never judged: a line is bytes, handed out as they are.
- A page is bounded by lines and by bytes, and holds at least one line, however long that is.
- A log that shrinks or disappears is never an error: there is no more to read.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

MARK_LINES = 256
CHUNK_BYTES = 256 * 1024
# What one call of `advance` looks at before it lets others run.
TICK_BYTES = 4 * 1024 * 1024
PAGE_BYTES = 8 * 1024 * 1024


class LogFile:
    """The log of one execution.

    Args:
        path: the file; it need not exist yet.
        tenant: whose execution it is.
        complete: nothing will be added any more.
    """

    def __init__(self, path: Path, *, tenant: str, complete: bool = False) -> None:
        self.path = path
        self.tenant = tenant
        self._marks = [0]  # _marks[k] is the offset of line k * MARK_LINES + 1
        self._ends = 0  # newlines seen
        self._seen = 0  # bytes looked at
        self._line_start = 0  # offset behind the last newline seen
        self._over = complete
        self._unread = complete
        self._loading = threading.Lock()
        self._news = asyncio.Event()

    @property
    def last_line(self) -> int:
        """The number of the last line that can be read, 0 when there is none."""
        self.load()
        return self._ends + self._has_rest

    @property
    def complete(self) -> bool:
        """Whether no more lines can come."""
        return self._over

    @property
    def _has_rest(self) -> bool:
        return self._over and self._seen > self._line_start

    def lines(self, from_line: int, limit: int, max_bytes: int = PAGE_BYTES) -> list[bytes]:
        """Lines from a number on, without their ends; fewer than asked for at the end or when they are long."""
        last = min(from_line + limit - 1, self.last_line)
        if from_line < 1 or last < from_line:
            return []
        try:
            file = self.path.open("rb", buffering=0)
        except OSError:
            return []
        mark = (from_line - 1) // MARK_LINES
        with file:
            skip = from_line - 1 - mark * MARK_LINES
            part = _Part(self._marks[mark], self._seen, skip, last - from_line + 1, max_bytes)
            return _read_lines(file, part)

    def tail(self, max_bytes: int) -> list[bytes]:
        """The last whole lines within so many bytes, however many there are."""
        size = _size(self.path)
        start = max(0, size - max_bytes)
        try:
            with self.path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), size - start, start)
        except OSError:
            return []
        lines = data.splitlines()
        return lines[1:] if start else lines

    async def changed(self, after_line: int) -> None:
        """Return when there is a line behind `after_line`, or when none can come any more."""
        while self.last_line <= after_line and not self._over:
            await self._news.wait()

    def advance(self) -> bool:
        """Look for new lines and wake who waits for them; whether more is there than one call looks at."""
        size = _size(self.path)
        if size <= self._seen:
            return False
        before = self._ends
        until = min(size, self._seen + TICK_BYTES)
        self._index(until)
        if self._ends != before:
            self._wake()
        return until < size

    def finish(self) -> None:
        """The run is over: take in the rest, count a line without an end, wake everybody."""
        while self.advance():
            pass
        self._over = True
        self._wake()

    def load(self) -> None:
        """Index a log that was over when it was opened; done at its first use, or before in a thread."""
        if self._unread:
            # Whoever comes while another thread reads waits for it: half an index would look like a shorter log.
            with self._loading:
                if self._unread:
                    self._index(_size(self.path))
                    self._unread = False

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _index(self, until: int) -> None:
        try:
            file = self.path.open("rb", buffering=0)
        except OSError:
            return
        with file:
            while self._seen < until:
                chunk = os.pread(file.fileno(), min(CHUNK_BYTES, until - self._seen), self._seen)
                if not chunk:
                    return
                self._count(chunk)
                self._seen += len(chunk)

    def _count(self, chunk: bytes) -> None:
        """Count the newlines of a chunk at `_seen`; only where a mark falls are they looked at one by one."""
        found = chunk.count(b"\n")
        if not found:
            return
        wanted = MARK_LINES - self._ends % MARK_LINES
        at = -1
        if found >= wanted:
            for number in range(1, found + 1):
                at = chunk.index(b"\n", at + 1)
                if number == wanted:
                    self._marks.append(self._seen + at + 1)
                    wanted += MARK_LINES
        self._ends += found
        self._line_start = self._seen + chunk.rindex(b"\n") + 1


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (called at every tick for every run; half the cost)
    except OSError:
        return 0


class _Part(NamedTuple):
    """Where in a file to read: from `offset`, at most to `end`, `wanted` lines behind the first `skip` ones."""

    offset: int
    end: int
    skip: int
    wanted: int
    max_bytes: int


def _read_lines(file: IO[bytes], part: _Part) -> list[bytes]:
    """The lines of a part; what is left before its end is a line too."""
    offset, end, skip, wanted, max_bytes = part
    lines: list[bytes] = []
    held = 0
    rest: list[bytes] = []
    while offset < end:
        chunk = os.pread(file.fileno(), min(CHUNK_BYTES, end - offset), offset)
        if not chunk:
            break
        offset += len(chunk)
        *whole, tail = chunk.split(b"\n")
        for piece in whole:
            line = b"".join((*rest, piece)) if rest else piece
            rest = []
            if skip:
                skip -= 1
                continue
            if lines and held + len(line) > max_bytes:
                return lines
            lines.append(line)
            held += len(line)
            if len(lines) == wanted:
                return lines
        if tail:
            rest.append(tail)
    if rest and not skip and (not lines or held < max_bytes):
        lines.append(b"".join(rest))
    return lines
