"""Executions on their way back into the queue: after the pause before an automatic attempt, or because somebody asks.

Strategy: the row says `retrying` and when (`retry_at_us`); memory holds a timer for each such row. When it is over, one
write adds the next attempt and lets the execution queue again; it then starts as any other, when a slot and its state
ids are free. A timer that dies with its daemon is made anew from the row.

Rules:
- An execution that rests holds no slot and no state id: nothing of it is alive.
- A new attempt has an id of its own and runs what was accepted, whatever the project says by now.
- A pause keeps what is known of the attempt before it; with the next attempt the execution says nothing of any end.
- Whoever loses a race (a cancellation in the last moment) finds the row changed and gives way.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog

from flx_api.daemon.executions import retries
from flx_api.daemon.executions.states import COMES_BACK, ImpossibleError
from flx_api.errors import Conflict, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flx_api.daemon.executions.states import Event
    from flx_api.daemon.executions.store import Store, Stored
    from flx_api.daemon.journal import Journal, Tx
    from flx_api.models.execution import Execution

_AGAIN_S = 1.0
_SECOND_US = 1_000_000
_NOT_OVER = "The execution is not over yet."
_ANOTHER = "The pipeline has another execution that is not over yet."
_SUCCEEDED = "The execution succeeded; run its pipeline instead."

# What the execution says of its latest attempt; the one before keeps its own end in its own row.
_NOTHING_YET: Mapping[str, Any] = {
    "retry_at_us": None,
    "started_us": None,
    "finished_us": None,
    "exit_code": None,
    "error": None,
    "verdict": None,
    "warnings": b"[]",
    "records": None,
    "cpu_s": None,
    "max_rss_kib": None,
    "ledger": None,
}

log = structlog.stdlib.get_logger(__name__)


class Comebacks:
    """The executions that rest.

    Args:
        journal: the daemon's database.
        store: the statements about executions.
        clock: microseconds since the epoch.
        ids: makes the ids of attempts.
        ready: told, with the new attempt, when an execution is in the queue again.
    """

    def __init__(
        self,
        journal: Journal,
        store: Store,
        clock: Callable[[], int],
        ids: Callable[[], str],
        ready: Callable[[Stored], None],
    ) -> None:
        self._journal = journal
        self._store = store
        self._clock = clock
        self._ids = ids
        self._ready = ready
        self._resting: dict[str, asyncio.Task[None]] = {}

    @property
    def resting(self) -> tuple[str, ...]:
        """The executions that wait for their next attempt."""
        return tuple(self._resting)

    def rest(self, stored: Stored) -> None:
        """Let an execution come back when its time has come."""
        at_us = stored.execution.retry_at_us or 0
        left_s = retries.left_us(stored.plan.retry, stored.tries, at_us, self._clock()) / _SECOND_US
        self._resting[stored.id] = asyncio.create_task(self._wake(stored.id, left_s), name=f"rest {stored.id}")

    def drop(self, execution_id: str) -> None:
        """It does not come back: it was cancelled, or came back earlier."""
        task = self._resting.pop(execution_id, None)
        if task is not None:
            task.cancel()

    async def now(
        self,
        execution_id: str,
        tenant: str,
        once: Callable[[Callable[[Tx], Execution]], Callable[[Tx], Execution]],
    ) -> Execution:
        """Bring an execution back at once, by hand: one that has ended without success, or rests.

        Raises:
            NotFound: there is none, or it is another tenant's.
            Conflict: `already_running`, it or another one of its pipeline is not over; or it has succeeded.
        """

        def change(tx: Tx) -> Execution:
            stored = self._store.find(tx.connection, execution_id, tenant)
            status = stored.execution.status
            if status == "retrying":
                return self._another(tx, stored, "due", tries=stored.tries + 1)
            if status not in COMES_BACK:
                if stored.execution.finished_us is None:
                    raise Conflict(_NOT_OVER, code="already_running")
                raise Conflict(_SUCCEEDED)
            if self._store.active_of(tx.connection, tenant, stored.execution.pipeline) is not None:
                raise Conflict(_ANOTHER, code="already_running")
            return self._another(tx, stored, "again", tries=1)

        execution = await self._journal.write(once(change))
        self.drop(execution_id)
        await self._tell(execution_id)
        return execution

    async def close(self) -> None:
        """Forget the timers; the rows stay."""
        tasks = list(self._resting.values())
        self._resting.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wake(self, execution_id: str, left_s: float) -> None:
        await asyncio.sleep(left_s)

        def change(tx: Tx) -> None:
            stored = self._store.find(tx.connection, execution_id)
            # Only out of its pause: one that was cancelled in the last moment must not come back as if by hand.
            self._another(tx, stored, "due", tries=stored.tries + 1)

        while True:
            try:
                # From here on it happens, whoever wants it otherwise: the row decides.
                written = asyncio.ensure_future(self._journal.write(change))
                # Looked at here, so that a race that a cancellation won is not reported as forgotten.
                written.add_done_callback(lambda done: done.cancelled() or done.exception())
                await asyncio.shield(written)
                break
            except (ImpossibleError, NotFound):
                self._resting.pop(execution_id, None)
                return
            except Unavailable as error:
                if error.code == "shutting_down":
                    return
                log.warning("the journal cannot be written; trying again", execution=execution_id, code=error.code)
                await asyncio.sleep(_AGAIN_S)
        self._resting.pop(execution_id, None)
        await self._tell(execution_id)

    def _another(self, tx: Tx, stored: Stored, event: Event, *, tries: int) -> Execution:
        attempt_id = self._ids()
        number = stored.execution.attempts + 1
        self._store.insert_attempt(tx, stored, attempt_id, number=number, tries=tries)
        return self._store.transition(
            tx,
            stored.id,
            event,
            attempts=number,
            **_NOTHING_YET,
        )

    async def _tell(self, execution_id: str) -> None:
        stored = await self._journal.read_back(lambda connection: self._store.find(connection, execution_id))
        # It may have been cancelled between the commit and this look.
        if stored.execution.status == "queued":
            self._ready(stored)
