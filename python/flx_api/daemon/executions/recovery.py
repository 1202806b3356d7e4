"""What an earlier daemon left behind: which of its runs live on, which are dead, which never began.

Strategy: `examine` asks the executor about every execution that the database calls active, all at once, and only says
what it found; the supervisors do the rest, in the same steps as for runs of their own.

Rules:
- Nothing is started here, and nothing that lives is stopped.
- An attempt without a committed process was never released: nothing has happened in it.
- Secrets of dead runs are removed, whether the database knows them or not.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import structlog

from flx_api.daemon.executions.states import HOLDING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from flx_api.daemon.executions.store import Stored
    from flx_api.daemon.executors import Executor, Run

# How long a start waits for the ends of dead runs; settling goes on behind it.
PATIENCE_S = 2.0

log = structlog.stdlib.get_logger(__name__)


class Finding(NamedTuple):
    """An execution that was active, and its run if that is alive."""

    stored: Stored
    run: Run | None

    @property
    def is_dead(self) -> bool:
        """Whether it had a process, or was about to, and has none now."""
        return self.run is None and self.stored.execution.status in HOLDING


async def examine(left: list[Stored], executor: Executor) -> list[Finding]:
    """What became of each execution, in the same order."""

    async def look(stored: Stored) -> Finding:
        # One that rests has the process of its last attempt, which is known to be over.
        if stored.identity is None or stored.execution.status not in HOLDING:
            return Finding(stored, None)
        return Finding(stored, await executor.attach(stored.attempt_id, stored.identity))

    return list(await asyncio.gather(*map(look, left)))


async def clear_leftovers(executor: Executor, runs_dir: Path, active: Callable[[], Collection[str]]) -> None:
    """Settle every attempt whose private folder is still there and that nobody supervises."""
    for attempt_id in await asyncio.to_thread(_with_private_folder, runs_dir):
        # Asked anew each time: settling takes a while, and a run may have begun meanwhile.
        if attempt_id not in active():
            log.info("clearing up after a dead run", run=attempt_id)
            try:
                await executor.settle(attempt_id, run_started=True)
            except OSError as error:  # one folder that cannot be removed must not keep the others
                log.warning("a dead run could not be cleared up", run=attempt_id, reason=repr(error))


def _with_private_folder(runs_dir: Path) -> list[str]:
    return sorted(path.parent.name for path in runs_dir.glob("*/sys"))
