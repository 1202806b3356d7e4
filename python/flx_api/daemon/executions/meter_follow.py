"""Live counts from a run's meter files, while it runs.

Strategy: each plugin has one file of JSON lines that only grows; at every tick the new whole lines are read and the last
`count` of a plugin is what it has moved so far. Figures are cumulative, so a missed tick loses nothing.

Rules:
- This is for looking on. The ledger reads the same files anew when the run is over and is what counts.
- A line that cannot be read is skipped: the writer may be of a newer version.
- Nothing is kept but the last counts: files of any length cost the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flx_api.models.event import StreamCount

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ_BYTES = 1024 * 1024


class _Line(msgspec.Struct):
    """The fields of a meter line that are looked at here."""

    kind: str = ""
    role: str = ""
    plugin: str = ""
    purpose: str = ""
    streams: dict[str, msgspec.Raw] = {}


_LINE = msgspec.json.Decoder(_Line)
_COUNT = msgspec.json.Decoder(StreamCount)


class PluginCounts:
    """One plugin process and what it has moved so far."""

    def __init__(self, path: Path) -> None:
        self.role = ""
        self.plugin = ""
        self.purpose = ""
        self.streams: dict[str, StreamCount] = {}
        self.told: dict[str, StreamCount] | None = None
        self.told_us = 0
        self._path = path
        self._offset = 0

    @property
    def has_news(self) -> bool:
        """Whether there are counts that nobody was told of."""
        return bool(self.streams) and self.streams != self.told

    def read(self) -> None:
        """Take in the whole lines that were added."""
        try:
            with self._path.open("rb", buffering=0) as file:
                chunk = os.pread(file.fileno(), _READ_BYTES, self._offset)
        except OSError:
            return
        end = chunk.rfind(b"\n") + 1
        self._offset += end
        for line in chunk[:end].splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = _LINE.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if record.kind == "start":
            self.role, self.plugin, self.purpose = record.role, record.plugin, record.purpose
        elif record.kind == "count":
            try:
                self.streams = {name: _COUNT.decode(raw) for name, raw in record.streams.items()}
            except msgspec.DecodeError:
                return


class MeterFolder:
    """The meter files of one run.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sizes: dict[str, int] = {}
        self._plugins: dict[str, PluginCounts] = {}

    def advance(self) -> None:
        """Read what was added to any of the files."""
        try:
            with os.scandir(self._path) as entries:
                found = {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(".jsonl")}
        except OSError:
            return
        for name, size in sorted(found.items()):
            if size != self._sizes.get(name):
                self._sizes[name] = size
                self._plugins.setdefault(name, PluginCounts(self._path / name)).read()

    def due(self, now_us: int, every_us: int) -> Iterator[PluginCounts]:
        """Plugins with news that may be told: the last telling is at least `every_us` ago."""
        for plugin in self._plugins.values():
            if plugin.has_news and now_us - plugin.told_us >= every_us:
                yield plugin

    @property
    def counts(self) -> dict[str, int]:
        """Records by stream as the extractors emitted them, over all blocks."""
        total: dict[str, int] = {}
        for plugin in self._plugins.values():
            if plugin.role == "extractor" and plugin.purpose == "sync":
                for stream, count in plugin.streams.items():
                    total[stream] = total.get(stream, 0) + count.records
        return total
