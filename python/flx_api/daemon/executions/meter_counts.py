"""Live counts of a run: what its plugins have moved so far, and whom it is time to tell.

Strategy: the follower of `meter_records` yields cumulative counts by plugin process; here they are added up by plugin,
and handed out again at a bounded rate.

Rules:
- This is for looking on. The ledger reads the meter's files anew when the run is over, and is what counts.
- The time is an argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from flx_api.daemon.meter_records import MeterFollower
from flx_api.models.event import MetricEvent, StreamCount

if TYPE_CHECKING:
    from pathlib import Path

    from flx_api.daemon.meter_records import CountEvent


class _Plugin(NamedTuple):
    role: str
    name: str


class MeterCounts:
    """The counts of one run.

    Args:
        folder: its meter folder, which need not exist yet.
        execution_id: for the events.
    """

    def __init__(self, folder: Path, execution_id: str) -> None:
        self._follower = MeterFollower(folder)
        self._execution_id = execution_id
        self._latest: dict[int, CountEvent] = {}
        self._untold: set[_Plugin] = set()
        self._told_us: dict[_Plugin, int] = {}

    @property
    def streams(self) -> dict[str, int]:
        """Records by stream as the extractors emitted them, over all blocks."""
        total: dict[str, int] = {}
        for event in self._latest.values():
            if event.role == "extractor":
                for stream, count in event.streams.items():
                    total[stream] = total.get(stream, 0) + count.records
        return total

    def poll(self) -> None:
        """Take in what the meters have written."""
        for event in self._follower.poll():
            self._latest[event.number] = event
            self._untold.add(_Plugin(event.role, event.plugin))

    def due(self, now_us: int, every_us: int) -> list[MetricEvent]:
        """News of plugins that were not heard of for `every_us`; they count as told."""
        plugins = [p for p in self._untold if now_us - self._told_us.get(p, -every_us) >= every_us]
        self._untold.difference_update(plugins)
        self._told_us.update(dict.fromkeys(plugins, now_us))
        return [self._event(plugin) for plugin in sorted(plugins)]

    def _event(self, plugin: _Plugin) -> MetricEvent:
        total: dict[str, StreamCount] = {}
        for event in self._latest.values():
            if plugin == (event.role, event.plugin):
                for stream, count in event.streams.items():
                    held = total.get(stream, StreamCount(0, 0))
                    total[stream] = StreamCount(held.records + count.records, held.bytes + count.bytes)
        return MetricEvent(self._execution_id, plugin.name, plugin.role, total)
