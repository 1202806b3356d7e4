"""The life of one attempt: from a place in the plan to its true end.

Strategy: one task per attempt, written from top to bottom in the order things happen. A run found again after a
restart enters half-way (`adopt`), a run that ended while no daemon lived enters at the end (`conclude_dead`); both
leave through the same door, so that an outcome never depends on who was watching.

    start     queued -> starting, in the journal
    spawn     a process that waits at its gate
    commit    its (pid, start time) is in the journal before the gate opens
    release   starting -> running; from here on something happens
    follow    log and meter files are polled, news is told
    end       by itself, by cancellation, by time
    settle    no process left, Meltano's row true, no secret on the disk
    conclude  outcome, ledger, history and the final status in one transaction

Rules:
- A gate is never opened for a process that is not in the journal.
- The final status is written after `settle`: whoever sees it may start the next run at once.
- Files are polled (`stat`, 80 times a second): portable, cheap at the few runs a machine carries, and the same for a
  run of an earlier daemon. Nothing waits for anything else by sleeping.
- What must be written is written: storage that fails is tried again until it works or the service ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import structlog

from flx_api.daemon.executions import outcome, retries
from flx_api.daemon.executions.accounts import Accounts
from flx_api.daemon.executions.meter_counts import MeterCounts
from flx_api.daemon.executions.states import HOLDING, ImpossibleError, after
from flx_api.daemon.executions.store import metric_topic
from flx_api.daemon.executors import RunSpec
from flx_api.errors import FlxError, Unavailable
from flx_api.models.event import SystemEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from flx_api.daemon.executions.accounts import Account, States
    from flx_api.daemon.executions.log_file import LogFile
    from flx_api.daemon.executions.states import Event
    from flx_api.daemon.executions.store import Store, Stored
    from flx_api.daemon.executors import Executor, ExitRecord, Run
    from flx_api.daemon.journal import Journal, Tx
    from flx_api.models.event import MetricEvent

T = TypeVar("T")

# All that the runs wrote since the last look is handled at once by everybody who follows them, and commands that come
# then wait for it: the shorter, the less (docs/decisions/0033). What a look costs itself sets the limit.
POLL_S = 0.0125
# Meters write four times a second; looking at every tick would find nothing new.
METER_TICKS = 8
METRIC_EVERY_US = 500_000
# Meltano's own --timeout comes first and leaves better traces; this one is for a Meltano that does not keep it.
BACKSTOP_S = 15.0
TAIL_BYTES = 1024 * 1024
_RETRY_S = (0.2, 0.5, 1.0, 2.0)
# A session that is not empty yet, a database that is locked: worth a moment, for what is settled next frees its state.
_SETTLE_AGAIN_S = (0.1, 0.5, 1.0)
_SECOND_US = 1_000_000

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What every attempt works with. `read_states` gives Meltano's states before a run; called in a thread.

    `variables` gives what the runs of a schedule find in their environment; raises FlxError when nobody knows.
    """

    journal: Journal
    store: Store
    executor: Executor
    clock: Callable[[], int]
    runs_dir: Path
    cancel_grace_s: float
    read_states: Callable[[tuple[str, ...]], States | None]
    variables: Callable[[str], Mapping[str, str]]
    backstop_s: float = BACKSTOP_S
    jitter: Callable[[], float] = random.random


class Supervisor:
    """Follows one attempt.

    Args:
        stored: the execution as the database had it.
        parts: the services.
        log_file: its log, which others may be waiting for already.
    """

    def __init__(self, stored: Stored, parts: Parts, log_file: LogFile) -> None:
        self.stored = stored
        self.log = log_file
        self.meter = MeterCounts(parts.runs_dir / stored.attempt_id / "meter", stored.id)
        self._parts = parts
        self._stop = asyncio.Event()
        self._grace_s = parts.cancel_grace_s
        self._stopped_us: int | None = None
        self._cancelling = stored.execution.status == "cancelling"
        self._timed_out = False
        self._released = stored.execution.status == "running"
        # Unknown for a run that an earlier daemon started: by now Meltano may have changed them.
        self._states: States | None = None
        self._telling: asyncio.Task[None] | None = None
        if self._cancelling:
            self._stop.set()

    def cancel(self, grace_s: float | None = None) -> None:
        """The journal says `cancelling`: end the run. Repeating it can only shorten the grace."""
        self._cancelling = True
        self._grace_s = min(self._grace_s, self._grace_s if grace_s is None else grace_s)
        self._stop.set()

    # --- the three ways in ---

    async def run(self) -> None:
        """Start a queued execution and see it through."""
        try:
            await self._write(lambda tx: self._transition(tx, "start"))
        except ImpossibleError:
            if not await self._was_started():
                return  # cancelled in the last moment
        run = await self._spawn()
        if run is None:
            return
        if not await self._commit(run):
            await run.cancel(0)
            await self._settle(run_started=False)
            await self._give_up("stopped", None)
            return
        await run.release()
        self._released = True
        await self._write(self._mark_running)
        await self._see_through(run)

    async def adopt(self, run: Run) -> None:
        """Go on with a run that an earlier daemon started and that is still alive."""
        if self.log.path.exists():
            # It opens its log first, so the earlier daemon had released it, whether it came to say so or not.
            self._released = True
            await self._write(self._mark_running)
        await self._write(lambda tx: self._tell_system(tx, "adopted", "The run went on while no daemon was there."))
        await self._see_through(run)

    async def conclude_dead(self) -> None:
        """Settle a run of an earlier daemon whose process is gone, or was never made."""
        ended = (
            "The run had no process yet."
            if self.stored.identity is None
            else "The run ended while no daemon was there."
        )
        await self._write(lambda tx: self._tell_system(tx, "settled", ended))
        await self._conclude(None)

    async def abandon(self) -> None:
        """A fault of ours: end the run, whatever it does, and say so rather than leave it half-known."""
        await self._settle(run_started=True)

        def change(tx: Tx) -> None:
            status = self._parts.store.find(tx.connection, self.stored.id).execution.status
            if status in HOLDING:
                event: Event = "unable" if status == "starting" else "vanished"
                ended = {"finished_us": tx.now_us, "error": "A fault of the service ended this run."}
                self._parts.store.set_attempt(tx, self.stored.attempt_id, status=after(status, event), **ended)
                self._transition(tx, event, **ended)

        await self._write(change)

    async def _was_started(self) -> bool:
        """Whether the start was written although storage had said otherwise, and is still to go on from.

        Nobody but us starts this attempt. One that was cancelled since ends here: nothing of it has begun.
        """
        store, execution_id = self._parts.store, self.stored.id
        stored = await self._parts.journal.read_back(lambda connection: store.find(connection, execution_id))
        if stored.attempt_id != self.stored.attempt_id:
            return False
        if stored.execution.status == "cancelling":
            await self._give_up("stopped", None)
        return stored.execution.status == "starting"

    # --- the way through ---

    async def _spawn(self) -> Run | None:
        execution, plan = self.stored.execution, self.stored.plan
        try:
            spec = RunSpec(
                attempt_id=self.stored.attempt_id,
                execution_id=execution.id,
                blocks=plan.words,
                environment=execution.environment,
                full_refresh=execution.refresh == "full",
                timeout_s=self.stored.timeout_s,
                overrides={} if plan.schedule is None else dict(self._parts.variables(plan.schedule)),
                extractors=plan.extractors,
                loaders=plan.loaders,
                elt=plan.elt,
                state_id_suffix=plan.suffix,
            )
            self._states = await asyncio.to_thread(self._parts.read_states, execution.state_ids)
            return await self._parts.executor.spawn(spec)
        except Exception as error:  # noqa: BLE001 - whatever it is, the execution has ended and must say so
            log.warning("a run could not be started", execution=execution.id, reason=repr(error))
            detail = error.detail if isinstance(error, FlxError) else "an unexpected fault; the daemon's log has more"
            await self._settle(run_started=False)
            await self._give_up("unable", outcome.redacted(f"The run could not be started: {detail}"))
            return None

    async def _commit(self, run: Run) -> bool:
        """Write the process down; whether it may be released."""

        def change(tx: Tx) -> bool:
            store, attempt_id = self._parts.store, self.stored.attempt_id
            identity = run.identity
            store.set_attempt(tx, attempt_id, pid=identity.pid, process_start=identity.start_time, started_us=tx.now_us)
            return store.find(tx.connection, self.stored.id).execution.status == "starting"

        return await self._write(change)

    async def _see_through(self, run: Run) -> None:
        """Follow the run until it has ended, by itself or because it must."""
        watching = asyncio.create_task(self._watch())
        ending = asyncio.create_task(run.wait())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({ending, stopping}, timeout=self._time_left(run), return_when="FIRST_COMPLETED")
            if not ending.done():
                self._timed_out = not stopping.done()
                self._stopped_us = self._parts.clock()
                await run.cancel(self._grace_s)
            record = await ending
        finally:
            for task in (watching, ending, stopping):
                task.cancel()
            fault, *_ = await asyncio.gather(watching, ending, stopping, return_exceptions=True)
        if isinstance(fault, Exception):
            log.warning("a run was not followed to its end", execution=self.stored.id, reason=repr(fault))
        await self._conclude(record)

    async def _watch(self) -> None:
        """Poll log and meter files, tell what is due."""
        tick = 0
        while True:
            more = self.log.advance()
            if not self._released and self.log.path.exists():
                self._released = True
                await self._write(self._mark_running)
            if tick % METER_TICKS == 0:
                self.meter.poll()
                self._tell_counts()
            tick += 1
            # All runs at the same moments: what they write is told together, and who follows them wakes once for it.
            await asyncio.sleep(0 if more else POLL_S - asyncio.get_running_loop().time() % POLL_S)

    def _tell_counts(self) -> None:
        """Journal the counts that are due, one write at a time; a slow disk makes them rarer, not late."""
        if self._telling is not None and not self._telling.done():
            return
        events = self.meter.due(self._parts.clock(), METRIC_EVERY_US)
        if not events:
            return
        tenant, topic = self.stored.tenant, metric_topic(self.stored.id)

        async def tell() -> None:
            # Counts are news, not facts of record: a journal that cannot take them now gets later ones.
            with contextlib.suppress(FlxError):
                await self._parts.journal.write(lambda tx: [tx.emit(topic, event, tenant=tenant) for event in events])

        self._telling = asyncio.create_task(tell())

    def _time_left(self, run: Run) -> float | None:
        if self.stored.timeout_s is None:
            return None
        gone = 0.0 if self.stored.identity is None else self._age_s(run)
        # `meltano elt` keeps no time limit: there is nobody who could come first.
        patience_s = self._parts.backstop_s if self.stored.plan.elt is None else 0.0
        return max(0.0, self.stored.timeout_s + patience_s - gone)

    def _age_s(self, run: Run) -> float:
        """For how long a run of an earlier daemon has been going on."""
        age_s, started = run.age_s, self.stored.execution.started_us
        if age_s is not None or started is None:
            return age_s or 0.0
        # The wall clock may have been put back since: then it at least has no more time than it began with.
        return max(0.0, (self._parts.clock() - started) / _SECOND_US)

    # --- the way out ---

    async def _conclude(self, record: ExitRecord | None) -> None:
        # Only an earlier daemon's run gets past this: it died between making the process and releasing it.
        never_began = record is None and not self._released and not self.log.path.exists()
        if never_began and await self._undo():
            return
        record = await self._settle(run_started=True) or record
        with contextlib.suppress(asyncio.CancelledError):
            if self._telling is not None:
                await self._telling
        self.meter.poll()
        while self.log.advance():  # noqa: ASYNC110 - not waiting: letting others run in between
            await asyncio.sleep(0)
        self.log.take_rest()
        account = await self._account(record)
        facts = await asyncio.to_thread(self._read_facts)
        result = outcome.judge(
            record,
            facts,
            None if account is None else account.ledger,
            stopped_us=self._stopped_us,
            cancelling=self._cancelling,
            timed_out=self._timed_out,
            timeout_s=self.stored.timeout_s,
        )
        # Outside of the write: being asked for makes counts told, and a write may be tried again.
        counts = self.meter.due(self._parts.clock(), 0)
        await self._write(lambda tx: self._write_end(tx, record, result, account, counts))

    def _read_facts(self) -> outcome.LogFacts:
        """Called in a thread: a megabyte of lines is read and looked at."""
        return outcome.read_facts(self.log.tail(TAIL_BYTES))

    async def _undo(self) -> bool:
        """Nothing has happened: back to the queue, or cancelled if that was asked. False: it did begin after all."""
        record = await self._settle(run_started=False)
        if record is not None:
            return False
        if self._cancelling:
            await self._give_up("stopped", None)
            return True
        await asyncio.to_thread(self._forget_folder)

        def change(tx: Tx) -> None:
            self._transition(tx, "requeue")
            self._parts.store.set_attempt(tx, self.stored.attempt_id, pid=None, process_start=None, started_us=None)

        try:
            await self._write(change)
        except ImpossibleError:  # cancelled meanwhile
            await self._give_up("stopped", None)
        return True

    async def _give_up(self, event: Event, error: str | None) -> None:
        """The end of an attempt that never began."""

        def change(tx: Tx) -> None:
            # The reason of a cancellation is already there.
            told = {} if error is None or self._is_cancelling(tx) else {"error": error}
            self._end_attempt(tx, event, {"finished_us": tx.now_us, **told})

        await self._write(change)

    async def _settle(self, *, run_started: bool) -> ExitRecord | None:
        for pause in (*_SETTLE_AGAIN_S, None):
            try:
                return await self._parts.executor.settle(self.stored.attempt_id, run_started=run_started)
            except Exception as error:  # noqa: BLE001 - cleaning up must not keep an end from being told
                log.warning("a run could not be cleared up", execution=self.stored.id, reason=repr(error))
            if pause is not None:
                await asyncio.sleep(pause)
        return None

    async def _account(self, record: ExitRecord | None) -> Account | None:
        execution = self.stored.execution
        try:
            store, tenant = self._parts.store, self.stored.tenant
            rows = await self._parts.journal.read_back(
                lambda connection: store.history(connection, tenant, execution.state_ids)
            )
            accounts = Accounts.of(
                self.stored.plan, full_refresh=execution.refresh == "full", rows=rows, states=self._states
            )
            folder = self.log.path.parent / "meter"
            code = None if record is None else record.code
            return await asyncio.to_thread(accounts.close, folder, code, execution.id, self._parts.clock())
        except Exception:
            # A fault in the books must not keep the run's end from being told.
            log.exception("the ledger could not be made", execution=execution.id)
            return None

    def _write_end(
        self,
        tx: Tx,
        record: ExitRecord | None,
        result: outcome.Outcome,
        account: Account | None,
        counts: Iterable[MetricEvent],
    ) -> None:
        store, stored = self._parts.store, self.stored
        for event in counts:
            tx.emit(metric_topic(stored.id), event, tenant=stored.tenant)
        columns: dict[str, Any] = {
            "finished_us": tx.now_us if record is None else record.ended_us,
            "exit_code": result.exit_code,
            "warnings": msgspec.json.encode(result.warnings),
        }
        if result.event != "stopped":  # its reason was written when it was asked for
            columns["error"] = result.error
        if record is not None:
            columns |= {"cpu_s": record.cpu_s, "max_rss_kib": record.max_rss_kib}
        if account is not None:
            ledger = account.ledger
            has_rows = bool(ledger.blocks)
            columns |= {
                "ledger": msgspec.json.encode(ledger),
                "records": ledger.records,
                # Commands move no rows that anybody could verify.
                "verdict": ledger.verdict if has_rows else None,
            }
        if store.find(tx.connection, stored.id).execution.status == "starting":
            self._transition(tx, "release", started_us=tx.now_us if record is None else record.started_us)
        self._end_attempt(tx, result.event, columns)
        if account is not None and result.event in {"success", "success_with_warnings"}:
            store.remember_streams(tx, stored.tenant, account.remember)

    def _end_attempt(self, tx: Tx, event: Event, columns: dict[str, Any]) -> None:
        """The attempt is over, and with it the execution, unless another attempt follows."""
        store, stored = self._parts.store, self.stored
        status = store.find(tx.connection, stored.id).execution.status
        ended = {name: columns[name] for name in ("finished_us", "exit_code", "error") if name in columns}
        store.set_attempt(tx, stored.attempt_id, status=after(status, event), **ended)
        pause = retries.pause_us(stored.plan.retry, event, stored.tries, self._parts.jitter())
        if pause is None or status == "cancelling":
            self._transition(tx, event, **columns)
        else:
            self._transition(tx, "retry", **{**columns, "finished_us": None, "retry_at_us": tx.now_us + pause})

    # --- in the journal ---

    def _transition(self, tx: Tx, event: Event, **columns: Any) -> None:  # noqa: ANN401
        self._parts.store.transition(tx, self.stored.id, event, **columns)

    def _mark_running(self, tx: Tx) -> None:
        try:
            self._transition(tx, "release", started_us=tx.now_us)
        except ImpossibleError:  # already said, or being cancelled: then only the time is new
            if self._parts.store.find(tx.connection, self.stored.id).execution.started_us is None:
                self._parts.store.set_columns(tx, self.stored.id, started_us=tx.now_us)

    def _is_cancelling(self, tx: Tx) -> bool:
        return self._parts.store.find(tx.connection, self.stored.id).execution.status == "cancelling"

    def _tell_system(self, tx: Tx, kind: Literal["adopted", "settled"], message: str) -> None:
        tx.emit("system_events", SystemEvent(kind, message, self.stored.id), tenant=self.stored.tenant)

    async def _write(self, change: Callable[[Tx], T]) -> T:
        """One journal write, repeated while storage fails. What the journal refuses for good is raised."""
        attempt = 0
        while True:
            try:
                return await self._parts.journal.write(change)
            except Unavailable as error:
                if error.code == "shutting_down":
                    raise
                log.warning("the journal cannot be written; trying again", execution=self.stored.id, code=error.code)
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                attempt += 1

    def _forget_folder(self) -> None:
        """Remove the traces of a process that was never released, so that the attempt can be made again."""
        shutil.rmtree(self.log.path.parent, ignore_errors=True)
