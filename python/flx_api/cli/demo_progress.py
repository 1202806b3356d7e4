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
    """One bar a stream, fed by the metric events of an execution."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("  {task.description:<10}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:>8,.0f} records"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0
        self._status = ""

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bars away."""
        self._bars.stop()

    def status(self, status: str) -> None:
        """The execution has a new status."""
        if status != self._status:
            self._status = status
            self._console.print(f"  {status}")

    def update(self, metric: dict[str, Any]) -> None:
        """Counts so far, of one plugin."""
        if metric.get("role") != "extractor":
            return
        streams = metric["streams"]
        for stream, count in streams.items():
            if stream not in self._tasks:
                self._tasks[stream] = self._bars.add_task(stream, total=None)
            self._bars.update(self._tasks[stream], completed=count["records"])
        now = time.monotonic()
        if not self._live and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            counts = ", ".join(f"{stream} {count['records']:,}" for stream, count in streams.items())
            self._console.print(f"  {counts}", soft_wrap=True)
