"""The executions of a daemon: accepted, planned, supervised, looked at.

Strategy: the database holds what is true, memory holds what goes on: the queue, and a supervisor for each active
attempt. `_schedule` asks the pure plan who may start whenever something could have changed; each start is a task of
its own. What memory holds is derived from the database at `start`, so a restart loses nothing.

Rules:
- A change is one journal write; memory follows after the commit. Whoever loses a race finds the row changed and gives
  way.
- The state ids of active executions are locked here: Meltano's own guard races.
- What is over is never looked for in memory; its log is opened when somebody reads it.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from flx_api.daemon.executions import recovery, retention
from flx_api.daemon.executions.acceptance import execution_of, work_out
from flx_api.daemon.executions.comebacks import Comebacks
from flx_api.daemon.executions.ids import uuid7_factory
from flx_api.daemon.executions.open_logs import OpenLogs
from flx_api.daemon.executions.outlook import waits
from flx_api.daemon.executions.planning import Waiting, startable
from flx_api.daemon.executions.states import FINAL
from flx_api.daemon.executions.store import Store
from flx_api.daemon.executions.supervisor import BACKSTOP_S, Parts, Supervisor
from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.errors import FlxError, NotFound, Unavailable
from flx_api.models.event import SystemEvent
from flx_api.models.execution import AttemptPage, Execution, LogPage, StreamsResult
from flx_api.models.topic_rules import expiries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from flx_api.config import Settings
    from flx_api.daemon.executions.acceptance import Planned
    from flx_api.daemon.executions.accounts import States
    from flx_api.daemon.executions.log_file import LogFile
    from flx_api.daemon.executions.store import Stored
    from flx_api.daemon.executors import Executor
    from flx_api.daemon.journal import Journal, Tx
    from flx_api.daemon.principal import Principal
    from flx_api.daemon.project import ProjectCache
    from flx_api.models.execution import ExecutionListArgs, ExecutionLogsArgs, ExecutionPage, Trigger
    from flx_api.models.pipeline import PipelineRunArgs
    from flx_api.models.plan import Wait

CLOSE_S = 8.0
_CLOSE_GRACE_S = 5.0
# What of it is left for killing what did not end by itself.
_KILL_S = 2.0
_DAY_US = 86_400_000_000
_HOUR_S = 3600.0
_READ_AGAIN_S = 0.5
# How many run folders are looked up at once: a few milliseconds of the loop's time.
_LOOKED_UP = 500
STOPPED = "service stopped"
_LOG_GONE = "The log was removed by retention."

log = structlog.stdlib.get_logger(__name__)


class Submitted(NamedTuple):
    """What became of a request to run: the execution, and whether an earlier request had made it."""

    execution: Execution
    replayed: bool


def _no_states(_state_ids: tuple[str, ...]) -> States | None:
    return {}


class Executions:
    """All executions of the project.

    Args:
        journal: the daemon's database.
        projects: the project's model.
        executor: where runs happen.
        settings: slots, grace, retention and the data folder.
        clock: microseconds since the epoch.
        ids: makes execution ids; UUIDv7 of the clock when not given.
        read_states: Meltano's states before a run, called in a thread (`meltano_state.read_states`).
        backstop_s: how long after its own timeout a run is ended by us.
    """

    def __init__(
        self,
        journal: Journal,
        projects: ProjectCache,
        executor: Executor,
        settings: Settings,
        *,
        clock: Callable[[], int],
        ids: Callable[[], str] | None = None,
        read_states: Callable[[tuple[str, ...]], States | None] = _no_states,
        backstop_s: float = BACKSTOP_S,
    ) -> None:
        self._journal = journal
        self._projects = projects
        self._settings = settings
        self._clock = clock
        self._ids = ids or uuid7_factory(clock)
        self._runs_dir = settings.data_path / "runs"
        self._store = Store(journal.project_id)
        self._parts = Parts(
            journal=journal,
            store=self._store,
            executor=executor,
            clock=clock,
            runs_dir=self._runs_dir,
            cancel_grace_s=settings.cancel_grace_s,
            read_states=read_states,
            variables=self._variables,
            backstop_s=backstop_s,
        )
        self._comebacks = Comebacks(journal, self._store, clock, self._ids, self._come_back)
        self._queue: dict[str, Stored] = {}
        self._active: dict[str, Supervisor] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._logs = OpenLogs(journal, self._store, self._runs_dir)
        self._housekeeping: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._closing = False
        journal.on_found(self._take_in)

    # --- life ---

    async def start(self) -> None:
        """Settle or adopt what an earlier daemon left, then begin to schedule."""
        with self._journal.read() as connection:
            left = self._store.active(connection)
        findings = await recovery.examine(left, self._parts.executor)
        for finding in findings:
            # The lines of attempts that are over, which no supervisor will look for.
            await asyncio.to_thread(self.log(finding.stored.id).take_rest)
        # At one go: what is due or waits must not start before the state ids of all live runs are locked.
        for finding in findings:
            stored = finding.stored
            if stored.execution.status == "queued":
                self._queue[stored.id] = stored
                continue
            if stored.execution.status == "retrying":
                self._comebacks.rest(stored)
                continue
            supervisor = self._supervisor(stored)
            run = finding.run
            self._supervise(supervisor, supervisor.conclude_dead if run is None else partial(supervisor.adopt, run))
        dead = [self._tasks[finding.stored.id] for finding in findings if finding.is_dead]
        if dead:
            # Most ends are known at once; one that is not must not keep the service from starting.
            await asyncio.wait(dead, timeout=recovery.PATIENCE_S)
        self._housekeeping = asyncio.create_task(self._keep_house())
        self._schedule()

    async def close(self, *, cancel_runs: bool) -> None:
        """Stop: with `cancel_runs` end every run and write it down, else leave runs to the next daemon."""
        self._closing = True
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        if cancel_runs:
            ends = (self._cancel(key, None, STOPPED, _CLOSE_GRACE_S) for key in (*self._queue, *self._active))
            await asyncio.gather(*ends, return_exceptions=True)
            await self._end_all()
        await self._comebacks.close()
        rest = list(self._tasks.values())
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, *([self._housekeeping] if self._housekeeping else []), return_exceptions=True)

    async def _end_all(self) -> None:
        """Wait for the ends of all cancelled runs; what is still there when time runs short is killed."""
        if not self._tasks:
            return
        await asyncio.wait(self._tasks.values(), timeout=CLOSE_S - _KILL_S)
        late = [supervisor.stored.attempt_id for supervisor in self._active.values()]
        if late:
            log.warning("runs did not end when asked to; killing them", runs=len(late))
            kills = (self._parts.executor.settle(attempt_id, run_started=True) for attempt_id in late)
            await asyncio.gather(*kills, return_exceptions=True)
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=_KILL_S)

    # --- what is asked for ---

    async def submit(
        self,
        args: PipelineRunArgs,
        principal: Principal,
        *,
        environment: str | None = None,
        idempotency_key: str | None = None,
        replay: Callable[[Tx], str | None] = lambda _tx: None,
        remember: Callable[[Tx, Execution], None] = lambda _tx, _execution: None,
        schedule: str | None = None,
        trigger: Trigger = "api",
    ) -> Submitted:
        """Accept a run of a pipeline: it starts when a slot and its state ids are free.

        Args:
            args: of `pipeline.run`; of a schedule's run all but `id`, which is then the schedule's own affair.
            principal: who asks.
            environment: in place of the pipeline's own, when `args` names none.
            idempotency_key: kept beside the execution.
            replay: gives the id of the execution that an earlier request with the same key made.
            remember: keeps the answer for such requests.
            schedule: the schedule of meltano.yml whose run this is, in place of a pipeline.
            trigger: what made it.

        Raises:
            NotFound: there is no such pipeline or schedule.
            ValidationFailed: the environment or a block is not acceptable.
            Conflict: `already_running`.
            ProjectInvalid: the project cannot be read.
            Unavailable: the daemon is stopping.
        """
        if self._closing:
            raise Unavailable(code="shutting_down")
        planned: Planned | None = None
        refusal: FlxError | None = None
        try:
            model = self._projects.current()
            tenant = principal.tenant
            planned = work_out(self._journal, model, args, tenant=tenant, environment=environment, schedule=schedule)
        except FlxError as error:
            refusal = error  # an earlier request with the same key comes first

        def change(tx: Tx) -> tuple[Execution, Stored | None]:
            earlier = replay(tx)
            if earlier is not None:
                return self._store.get(tx.connection, earlier, principal.tenant), None
            if planned is None:
                raise refusal or NotFound()
            execution = execution_of(tx, self._store, planned, principal, trigger)
            execution = msgspec.structs.replace(execution, id=self._ids())
            self._store.insert(
                tx,
                execution,
                planned.plan,
                tenant=principal.tenant,
                timeout_s=args.timeout_s,
                idempotency_key=idempotency_key,
            )
            remember(tx, execution)
            return execution, self._store.find(tx.connection, execution.id)

        execution, stored = await self._journal.write(change)
        # Memory may have it already: `_take_in`.
        if stored is not None and execution.id not in self._active:
            self._queue[execution.id] = stored
            self._schedule()
        return Submitted(execution, replayed=stored is None)

    def outlook(self, state_ids: Iterable[str], tenant: str, execution_id: str | None = None) -> tuple[Wait, ...]:
        """What an execution with these state ids would wait for if it were accepted now; nothing: it would start.

        One that comes back has an id, and those that were accepted after it do not stand in its way.
        """
        active = [supervisor.stored for supervisor in self._active.values()]
        queue = [stored for key, stored in self._queue.items() if execution_id is None or key < execution_id]
        return waits(state_ids, tenant, queue, active, self._settings.run_slots - len(active))

    async def cancel(
        self,
        execution_id: str,
        reason: str,
        principal: Principal,
        once: Callable[[Callable[[Tx], Execution]], Callable[[Tx], Execution]] = lambda change: change,
    ) -> Execution:
        """End an execution; one that is over stays as it is. `once` lets the change happen once for a key.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        by = f"cancelled by {principal.subject}"
        return await self._cancel(execution_id, principal.tenant, f"{by}: {reason}" if reason else by, once=once)

    def hand_on(self, execution: Execution, grace_s: float | None = None) -> None:
        """Let memory follow what the journal says of a cancellation; harmless when it has."""
        if execution.status == "cancelled":
            self._queue.pop(execution.id, None)
            self._comebacks.drop(execution.id)
            self._tell_ended(execution.id)
            self._schedule()
        elif execution.status == "cancelling" and (supervisor := self._active.get(execution.id)) is not None:
            supervisor.cancel(grace_s)

    async def retry(
        self,
        execution_id: str,
        principal: Principal,
        once: Callable[[Callable[[Tx], Execution]], Callable[[Tx], Execution]] = lambda change: change,
    ) -> Execution:
        """Try an execution again that has ended without success; one that rests goes on at once.

        Raises:
            NotFound: there is none, or it is another tenant's.
            Conflict: `already_running`, or it has succeeded.
            Unavailable: the daemon is stopping.
        """
        if self._closing:
            raise Unavailable(code="shutting_down")
        return await self._comebacks.now(execution_id, principal.tenant, once)

    def attempts(self, execution_id: str, tenant: str) -> AttemptPage:
        """The attempts of an execution.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        with self._journal.read() as connection:
            execution = self._store.get(connection, execution_id, tenant)
            return AttemptPage(execution.id, self._store.attempts(connection, execution))

    async def wait(self, execution_id: str, timeout_ms: int, tenant: str) -> Execution:
        """The execution when it is over, or as it is when the time is up.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        execution = self.get(execution_id, tenant)
        if execution.status in FINAL or timeout_ms <= 0:
            return execution
        # Not over in the database means that its end has not been told: `_tell_ended` comes after the commit.
        ended = self._ended.setdefault(execution_id, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                await ended.wait()
        return self.get(execution_id, tenant)

    def get(self, execution_id: str, tenant: str) -> Execution:
        """One execution.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        with self._journal.read() as connection:
            return self._store.get(connection, execution_id, tenant)

    def page(self, args: ExecutionListArgs, principal: Principal) -> ExecutionPage:
        """A page of executions, newest first; keys are looked for among the principal's own."""
        with self._journal.read() as connection:
            return self._store.page(connection, principal, args)

    def streams(self, execution_id: str, tenant: str) -> StreamsResult:
        """The ledger when it is over, the counts so far before.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        with self._journal.read() as connection:
            execution = self._store.get(connection, execution_id, tenant)
            ledger = self._store.ledger(connection, execution_id)
        supervisor = self._active.get(execution_id)
        counts = supervisor.meter.streams if supervisor is not None else {}
        if ledger is not None:
            counts = {}
            for block in ledger.blocks:
                for stream in block.streams:
                    counts[stream.stream] = counts.get(stream.stream, 0) + (stream.extracted or 0)
        return StreamsResult(execution_id, execution.status, ledger, counts)

    async def logs(self, args: ExecutionLogsArgs, tenant: str) -> LogPage:
        """Lines of the log.

        Raises:
            NotFound: there is no such execution, or retention has removed its log.
        """
        execution = self.get(args.id, tenant)
        found = self.log(args.id)
        if found.complete and execution.status in FINAL:
            if execution.started_us is not None and not found.is_whole:
                raise NotFound(_LOG_GONE)
            await asyncio.to_thread(found.load)
        lines = found.lines(args.from_line, args.limit)
        next_line = args.from_line + len(lines)
        complete = found.complete and next_line > found.last_line
        return LogPage(args.from_line, tuple(line.decode(errors="replace") for line in lines), next_line, complete)

    def log(self, execution_id: str) -> LogFile:
        """The log of an execution; its `tenant` says who may read it.

        Raises:
            NotFound: there is no such execution.
        """
        return self._logs.of(execution_id)

    def renew_log(self, execution_id: str) -> None:
        """Another attempt was told: forget the log that ends with the one before.

        Events are told before whoever made the attempt goes on, and so before memory follows.

        Raises:
            NotFound: there is no such execution.
        """
        self._logs.renew(execution_id)

    def active_logs(self) -> Iterable[str]:
        """The executions whose logs may still grow."""
        return tuple(self._active)

    def waiting(self) -> dict[str, int]:
        """The executions that wait for their turn or rest, and how many lines their attempts so far have written."""
        return {key: self.log(key).last_line for key in (*self._queue, *self._comebacks.resting)}

    def counts(self) -> tuple[int, int]:
        """How many are active (starting, running or being cancelled) and how many wait."""
        return len(self._active), len(self._queue)

    # --- how it is done ---

    def _variables(self, schedule: str) -> Mapping[str, str]:
        """What runs of a schedule find in their environment, as the project says now."""
        return self._projects.current().schedule(schedule).variables

    def _schedule(self) -> None:
        """Start whatever may start now."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._closing:
            return
        queue = [Waiting(key, frozenset(stored.execution.state_ids)) for key, stored in self._queue.items()]
        held = [frozenset(supervisor.stored.execution.state_ids) for supervisor in self._active.values()]
        for execution_id in startable(queue, held, self._settings.run_slots - len(self._active)):
            try:
                supervisor = self._supervisor(self._queue[execution_id])
            except Unavailable as error:
                # It stays in the queue: whoever asked for it was told that it was accepted, or is about to be.
                log.warning("the journal cannot be read; trying again", execution=execution_id, code=error.code)
                self._look_again()
                return
            del self._queue[execution_id]
            self._supervise(supervisor, supervisor.run)

    def _take_in(self) -> None:
        """Changes that were refused as far as anybody knew were committed: let memory follow what waits by now.

        Starts and ends are their supervisor's affair, who looks himself.
        """
        if self._closing:
            return
        with self._journal.read() as connection:
            left = {stored.id: stored for stored in self._store.active(connection)}
            gone = {*self._queue, *self._comebacks.resting} - left.keys()
            over = [self._store.find(connection, key).execution for key in gone]
        for stored in left.values():
            if stored.execution.status == "queued" and stored.id not in self._queue:
                self._comebacks.drop(stored.id)
                self._come_back(stored)
        for execution in (*over, *(stored.execution for stored in left.values())):
            self.hand_on(execution)

    def _look_again(self) -> None:
        """Schedule once more, a little later."""
        if self._again is None:
            self._again = asyncio.get_running_loop().call_later(_READ_AGAIN_S, self._schedule)

    def _supervisor(self, stored: Stored) -> Supervisor:
        return Supervisor(stored, self._parts, self.log(stored.id))

    def _supervise(self, supervisor: Supervisor, life: Callable[[], Awaitable[None]]) -> None:
        execution_id = supervisor.stored.id
        self._active[execution_id] = supervisor
        self._tasks[execution_id] = asyncio.create_task(self._live(supervisor, life), name=f"run {execution_id}")

    async def _live(self, supervisor: Supervisor, life: Callable[[], Awaitable[None]]) -> None:
        execution_id = supervisor.stored.id
        try:
            try:
                await life()
            except Exception as error:
                if self._closing:
                    return
                log.exception("a fault of ours ended an execution", execution=execution_id, reason=repr(error))
                await supervisor.abandon()
            stored = await self._read_back(execution_id)
        finally:
            del self._active[execution_id], self._tasks[execution_id]
        if stored.execution.status in FINAL:
            self._tell_ended(execution_id)
        elif stored.execution.status == "queued":
            self._come_back(stored)
        elif stored.execution.status == "retrying" and not self._closing:
            self._comebacks.rest(stored)
        self._schedule()

    def _come_back(self, stored: Stored) -> None:
        """An execution waits for its turn again, with a new attempt or with one of which nothing has happened."""
        # Whoever still follows its last attempt, or follows the new one already, reads the row again at the end.
        if self._closing or stored.id in self._active:
            return
        self._logs.go_on(stored)
        self._queue[stored.id] = stored
        self._queue = dict(sorted(self._queue.items()))
        self._schedule()

    async def _read_back(self, execution_id: str) -> Stored:
        """What became of an execution, read again until storage answers: who waits for its end must be told."""
        while True:
            try:
                with self._journal.read() as connection:
                    return self._store.find(connection, execution_id)
            except Unavailable as error:
                log.warning("the journal cannot be read; trying again", execution=execution_id, code=error.code)
                await asyncio.sleep(_READ_AGAIN_S)

    def _tell_ended(self, execution_id: str) -> None:
        self._logs.finish(execution_id)
        ended = self._ended.pop(execution_id, None)
        if ended is not None:
            ended.set()

    async def _cancel(
        self,
        execution_id: str,
        tenant: str | None,
        reason: str,
        grace_s: float | None = None,
        once: Callable[[Callable[[Tx], Execution]], Callable[[Tx], Execution]] = lambda change: change,
    ) -> Execution:
        def change(tx: Tx) -> Execution:
            execution = self._store.find(tx.connection, execution_id, tenant).execution
            if execution.status == "retrying" and tenant is None:
                return execution  # nobody asks but the service, which stops: a pause outlives it
            if execution.status in {"queued", "retrying"}:
                ended = {"finished_us": tx.now_us, "error": reason, "retry_at_us": None}
                return self._store.transition(tx, execution_id, "cancel", **ended)
            if execution.status in FINAL or execution.status == "cancelling":
                return execution
            return self._store.transition(tx, execution_id, "cancel", error=reason)

        execution = await self._journal.write(once(change))
        self.hand_on(execution, grace_s)
        return execution

    async def _keep_house(self) -> None:
        """At the start and every hour: secrets of dead runs, old logs, old events."""
        while True:
            try:
                await recovery.clear_leftovers(self._parts.executor, self._runs_dir, self._active_attempts)
                await self.retain()
            except (OSError, FlxError) as error:
                log.warning("housekeeping failed", reason=repr(error))
            await asyncio.sleep(_HOUR_S)

    async def retain(self) -> tuple[str, ...]:
        """Remove logs and events beyond what the retention setting keeps; returns the attempts whose logs went."""
        keep, now_us = self._settings.retention, self._clock()
        found = await asyncio.to_thread(retention.survey, self._runs_dir)
        ends: dict[str, int | None] = {}
        for start in range(0, len(found), _LOOKED_UP):
            with self._journal.read() as connection:
                ends |= self._store.ends(connection, [one.attempt_id for one in found[start : start + _LOOKED_UP]])
            await asyncio.sleep(0)
        gone = tuple(retention.expired(retention.with_ends(found, ends), now_us, keep.days, keep.log_mib))
        await asyncio.to_thread(retention.remove, self._runs_dir, gone)
        events = await self._journal.prune(now_us - keep.days * _DAY_US, keep.journal_rows)
        events += await self._journal.forget(expiries(self._settings.topics, now_us))
        self._logs.forget()
        if gone or events:
            event = SystemEvent("retention", f"Removed {len(gone)} run logs and {events} events.")
            await self._journal.write(lambda tx: tx.emit("system_events", event, tenant=DEFAULT_TENANT))
        return gone

    def _active_attempts(self) -> set[str]:
        mine = (*self._queue.values(), *(supervisor.stored for supervisor in self._active.values()))
        return {stored.attempt_id for stored in mine}
