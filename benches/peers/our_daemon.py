"""The real daemon, its writes timed: `our_daemon.py PARENT SOCKET READY_FD TIMES`.

Everything is the production process (`flx_api.cli.daemon_process`), but for two things. Each write to the journal is
timed from when it is asked for until whoever asked goes on, and on SIGUSR2 the times since the last one are written to
TIMES as JSON. With `BENCH_NAIVE=1` the writer takes one change for each transaction, as a plain handler does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from time import monotonic_ns
from typing import Any

from flx_api.cli import daemon_process
from flx_api.cli.children import leave_out_optional_parts

leave_out_optional_parts()

from flx_api.daemon.journal import journal, writer  # noqa: E402 - optional parts are left out before


def time_writes(file: Path) -> None:
    """Let the journal say how long its writes take."""
    timed: Any = journal.Journal
    write, start = timed.write, timed.open.__func__
    took: list[int] = []

    def timed_write(self: Any, change: Any) -> Any:  # noqa: ANN401 - passed on
        began = monotonic_ns()
        done = write(self, change)
        # In the turn in which whoever asked goes on.
        done.add_done_callback(lambda _: took.append(monotonic_ns() - began))
        return done

    def tell() -> None:
        told = sorted(took)
        took.clear()
        new = file.with_suffix(".new")
        new.write_text(json.dumps([ns // 1000 for ns in told]), encoding="ascii")
        new.replace(file)

    async def listen(cls: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - passed on
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, tell)
        return await start(cls, *args, **options)

    timed.write, timed.open = timed_write, classmethod(listen)


if __name__ == "__main__":
    time_writes(Path(sys.argv[4]))
    if os.environ.get("BENCH_NAIVE") == "1":
        writer._GROUP_MAX = 1  # noqa: SLF001 # type: ignore[misc]
    sys.exit(daemon_process.main())
