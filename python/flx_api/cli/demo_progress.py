"""Live counts of a run: moving bars on a terminal, a line now and then elsewhere (a file, a pipe, CI)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.progress import TaskID

_LINE_EVERY_S = 2.0


class StreamProgress:
    """One bar for each stream of each pipeline, fed by the events of their executions."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("  {task.description:<24}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:>8,.0f} records"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._last_line: dict[str, float] = {}
        self._status: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bars away."""
        self._bars.stop()

    def status(self, pipeline: str, status: str) -> None:
        """The pipeline's execution has a new status."""
        if status != self._status.get(pipeline):
            self._status[pipeline] = status
            self._console.print(f"  {pipeline}: {status}")

    def update(self, pipeline: str, metric: dict[str, Any]) -> None:
        """Counts so far, of one plugin."""
        if metric.get("role") != "extractor":
            return
        streams = metric["streams"]
        for stream, count in streams.items():
            if (pipeline, stream) not in self._tasks:
                self._tasks[pipeline, stream] = self._bars.add_task(f"{pipeline} {stream}", total=None)
            self._bars.update(self._tasks[pipeline, stream], completed=count["records"])
        now = time.monotonic()
        if not self._live and now - self._last_line.get(pipeline, 0) >= _LINE_EVERY_S:
            self._last_line[pipeline] = now
            counts = ", ".join(f"{stream} {count['records']:,}" for stream, count in streams.items())
            self._console.print(f"  {pipeline}: {counts}", soft_wrap=True)
