"""A run's log by line number: an index over a file that is never held in memory.

Strategy: every 256th line's byte offset is remembered (8,000 numbers for two million lines); a page is one seek to
the mark before it and one `pread` run from there. The file's length is looked at by whoever follows the run
(`advance`), so that readers, however many, cost one `stat` per tick together.

An execution that is tried again goes on in another file: `continue_in` puts what came before behind it, so that all
attempts are one log with one count of lines.

Rules:
- Lines are numbered from 1 and are what ends in a newline; a line without its end counts once the run is over.
- The content is never judged: a line is bytes, handed out as they are. Of one longer than `LINE_BYTES` it is the
  beginning, and a word about the rest, which is in the file.
- A page is bounded by lines and by bytes, and holds at least one line.
- A log that shrinks or disappears is never an error: there is no more to read.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from flx_api.events.news import News

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MARK_LINES = 256
CHUNK_BYTES = 256 * 1024
# What one call of `advance` looks at before it lets others run.
TICK_BYTES = 4 * 1024 * 1024
# As JSON a byte may become six, and a page or a line must fit into a message of the daemon all the same.
LINE_BYTES = 256 * 1024
PAGE_BYTES = 640 * 1024


class LogFile:
    """The log of one execution.

    Args:
        path: the file of its latest attempt; it need not exist yet.
        tenant: whose execution it is.
        complete: nothing will be added any more.
        earlier: the files of the attempts before, in their order.
    """

    def __init__(self, path: Path, *, tenant: str, complete: bool = False, earlier: Sequence[Path] = ()) -> None:
        self._earlier = [LogFile(before, tenant=tenant, complete=True) for before in earlier]
        self.path = path
        self.tenant = tenant
        self._marks = [0]  # _marks[k] is the offset of line k * MARK_LINES + 1
        self._ends = 0  # newlines seen
        self._seen = 0  # bytes looked at
        self._line_start = 0  # offset behind the last newline seen
        self._over = complete
        self._unread = complete
        self._loading = threading.Lock()
        self.news = News()
        # The next line behind a page that was read, and its offset: whoever follows the run goes on there.
        self._next = (1, 0)

    @property
    def last_line(self) -> int:
        """The number of the last line that can be read, 0 when there is none."""
        if not (self._unread or self._earlier):
            # Asked by everybody who follows, at every look.
            return self._own_lines
        self.load()
        return self.earlier_lines + self._own_lines

    @property
    def earlier_lines(self) -> int:
        """How many lines the attempts before the latest one have."""
        return sum(before.last_line for before in self._earlier)

    @property
    def is_whole(self) -> bool:
        """Whether the files of all attempts are there."""
        return self.path.exists() and all(before.path.exists() for before in self._earlier)

    @property
    def complete(self) -> bool:
        """Whether no more lines can come."""
        return self._over

    @property
    def _own_lines(self) -> int:
        return self._ends + self._has_rest

    @property
    def _has_rest(self) -> bool:
        return self._over and self._seen > self._line_start

    def lines(self, from_line: int, limit: int, max_bytes: int = PAGE_BYTES) -> list[bytes]:
        """Lines from a number on, without their ends; fewer than asked for at the end or when they are long."""
        if from_line < 1:
            return []
        for before in self._earlier:
            if from_line <= before.last_line:
                return before.lines(from_line, limit, max_bytes)
            from_line -= before.last_line
        self.load()
        last = min(from_line + limit - 1, self._own_lines)
        if last < from_line:
            return []
        mark = (from_line - 1) // MARK_LINES
        line, offset = mark * MARK_LINES + 1, self._marks[mark]
        if line < self._next[0] <= from_line:
            line, offset = self._next
        try:
            # Opened at every look for every run: a file object costs three times what the system call does.
            file = os.open(self.path, os.O_RDONLY)
            try:
                part = _Part(offset, self._seen, from_line - line, last - from_line + 1, max_bytes)
                found, end = _read_lines(file, part)
            finally:
                os.close(file)
        except OSError:
            return []
        if end <= self._line_start:
            self._next = (from_line + len(found), end)
        return found

    def tail(self, max_bytes: int) -> list[bytes]:
        """The last whole lines of the latest attempt within so many bytes, however many there are."""
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
            await self.news.wait()

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

    def take_rest(self) -> None:
        """The attempt is over: take in what it still wrote."""
        self.load()
        while self.advance():
            pass

    def continue_in(self, path: Path) -> None:
        """Another attempt follows, and writes this file. A line without an end is one from now on."""
        self.take_rest()
        before = LogFile(self.path, tenant=self.tenant, complete=True)
        before._unread = False
        before._marks, before._ends = self._marks, self._ends
        before._seen, before._line_start = self._seen, self._line_start
        # Of an attempt that could not even begin there is no file, and none is missed.
        if before._seen or before.path.exists():
            self._earlier.append(before)
        self.path = path
        self._marks, self._ends, self._seen, self._line_start, self._next = [0], 0, 0, 0, (1, 0)
        self._wake()

    def finish(self) -> None:
        """The execution is over: take in the rest, count a line without an end, wake everybody."""
        self.take_rest()
        self._over = True
        self._wake()

    def load(self) -> None:
        """Index what was over when it was opened; done at its first use, or before in a thread."""
        for before in self._earlier:
            before.load()
        if self._unread:
            # Whoever comes while another thread reads waits for it: half an index would look like a shorter log.
            with self._loading:
                if self._unread:
                    self._index(_size(self.path))
                    self._unread = False

    def _wake(self) -> None:
        self.news.tell()

    def _index(self, until: int) -> None:
        with contextlib.suppress(OSError):
            file = os.open(self.path, os.O_RDONLY)
            try:
                while self._seen < until:
                    chunk = os.pread(file, min(CHUNK_BYTES, until - self._seen), self._seen)
                    if not chunk:
                        return
                    self._count(chunk)
                    self._seen += len(chunk)
            finally:
                os.close(file)

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


def _read_lines(file: int, part: _Part) -> tuple[list[bytes], int]:
    """The lines of a part, what is left before its end being a line too; and the offset behind the last of them."""
    offset, end, skip, wanted, max_bytes = part
    lines: list[bytes] = []
    held, behind = 0, offset
    # Of the line that has begun: what is kept, how much that is, and what more there was.
    begun: list[bytes] = []
    kept = lost = 0
    while offset < end:
        chunk = os.pread(file, min(CHUNK_BYTES, end - offset), offset)
        if not chunk:
            break
        offset += len(chunk)
        *whole, rest = chunk.split(b"\n")
        if begun and whole:
            whole[0] = b"".join((*begun, whole[0]))
            begun, kept = [], 0
        if skip and whole:
            skipped = whole[:skip]
            behind += sum(map(len, skipped)) + len(skipped) + lost
            skip, lost = skip - len(skipped), 0
            del whole[: len(skipped)]
        for line in whole:
            length, lost = len(line) + lost, 0
            if lines and held + min(length, LINE_BYTES) > max_bytes:
                return lines, behind
            lines.append(line if length <= LINE_BYTES else _cut(line, length))
            held += len(lines[-1])
            behind += length + 1
            if len(lines) == wanted:
                return lines, behind
        if rest:
            begun.append(rest[: max(0, LINE_BYTES - kept)])
            kept += len(begun[-1])
            lost += len(rest) - len(begun[-1])
    if begun and not skip and (not lines or held < max_bytes):
        length = kept + lost
        line = b"".join(begun)
        lines.append(_cut(line, length) if lost else line)
        behind += length + 1
    return lines, behind


def _cut(line: bytes, length: int) -> bytes:
    """The beginning of a line that is so long, and a word about the rest."""
    return line[:LINE_BYTES] + f" [cut: the line has {length} bytes]".encode()
