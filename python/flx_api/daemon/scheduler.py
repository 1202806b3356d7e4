"""Fires the schedules of meltano.yml: the shell around `flx_api.daemon.schedules`.

Strategy: `consider` does what is to be done at one moment: it compares what the project says and what the database
remembers, asks the pure decision of each schedule, and carries it out. `run` considers again and again: when the next
firing is due, and at least each second, so that an edited meltano.yml and a clock that was set are seen.

A firing is a command: the run that `schedule.run` would make, by a principal of our own, under an idempotency key made
of the schedule's name and its fire time. Key, execution, events and what is remembered are one transaction, so a
service that is killed has fired or has not, and one that comes after it knows.

    fired     there is an execution
    skipped   it was time, but there can be no run: the one before is not over, the project lacks its plugin
    missed    it was time, but nobody was there, or it was too late

Rules:
- Each of the three is an event of `schedule_events`. Nothing is lost without one, save while a schedule is disabled.
- A change counts only if the row is still as it was looked at (`_Overtaken`): two daemons on one database decide once.
- What storage or a broken project refuses is neither: it stays due, and is tried again. So does what a fault of ours
  keeps from firing, and others fire meanwhile.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from flx_api.daemon.executions.scheduled import PREFIX
from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.daemon.principal import Principal
from flx_api.daemon.schedules import store
from flx_api.daemon.schedules.decisions import decide, firing_key, is_news
from flx_api.daemon.schedules.times import UnusableError, next_time, rule_of
from flx_api.daemon.schedules.views import all_in
from flx_api.errors import FlxError, ProjectInvalid, Unavailable
from flx_api.models.event import ScheduleEvent
from flx_api.models.pipeline import PipelineRunArgs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from flx_api.config import Settings
    from flx_api.daemon.executions import Executions
    from flx_api.daemon.journal import Journal, Tx
    from flx_api.daemon.project import ProjectCache, ProjectModel, Schedule
    from flx_api.daemon.schedules.decisions import Decision
    from flx_api.daemon.schedules.store import Remembered
    from flx_api.daemon.schedules.times import Rule
    from flx_api.models.execution import Execution

POLL_S: Final = 1.0
_SECOND_US = 1_000_000
_LONGEST_SUBJECT = 128

log = structlog.stdlib.get_logger("flx.daemon")


class _OvertakenError(Exception):
    """Somebody else has decided about the schedule meanwhile, or disabled it."""


class _KnownError(Exception):
    """The firing was decided before the clock was put back."""


class Scheduler:
    """Fires what is due.

    Args:
        journal: the daemon's database.
        projects: the project's model.
        executions: where runs are accepted.
        settings: the time zone, the grace, and whether to fire at all.
        clock: microseconds since the epoch.
        poll_s: the longest time between two looks.
    """

    def __init__(
        self,
        journal: Journal,
        projects: ProjectCache,
        executions: Executions,
        settings: Settings,
        clock: Callable[[], int],
        *,
        poll_s: float = POLL_S,
    ) -> None:
        self._journal = journal
        self._projects = projects
        self._executions = executions
        self._zone = settings.timezone
        self._grace_us = settings.schedule_grace_s * _SECOND_US
        self._fires = settings.schedules == "on"
        self._clock = clock
        self._poll_s = poll_s
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""

    def start(self) -> None:
        """Begin to fire."""
        self._task = asyncio.create_task(self.run(), name="scheduler")

    async def close(self) -> None:
        """Fire no more. What is being written is written to its end."""
        self._stop.set()
        if self._task is not None:
            await self._task

    async def run(self) -> None:
        """Fire until `close`."""
        while not self._stop.is_set():
            next_us = await self._try_to_consider()
            if not self._fires and not self._trouble:
                return
            left_s = self._poll_s if next_us is None else (next_us - self._clock()) / _SECOND_US
            try:
                async with asyncio.timeout(max(0.0, min(self._poll_s, left_s))):
                    await self._stop.wait()
            except TimeoutError:
                continue

    async def consider(self) -> int | None:
        """Do what is to be done now.

        Returns:
            The moment of the next firing as far as it is known, None when there is none.

        Raises:
            ProjectInvalid: the project cannot be read.
            Unavailable: the database cannot be read or written.
        """
        # The clock first: a firing that comes while the project is read belongs to the next look.
        now_us = self._clock()
        model = await asyncio.to_thread(self._projects.current)
        with self._journal.read() as connection:
            rows = store.all_of(connection, self._journal.project_id)
        rules = self._rules(model, rows) if self._fires else {}
        await self._forget([row for row in rows.values() if row.past is not None and row.name not in rules])
        coming: list[int | None] = []
        fault: Exception | None = None
        for name, rule in rules.items():
            row = rows.get(name) or store.new(name)
            past = row.past
            if past is not None and past.mark == rule.mark and past.until_us <= now_us:
                following = next_time(rule, past.until_us)
                if following is None or following > now_us:
                    coming.append(following)
                    continue
            decision = decide(rule, past, now_us, self._grace_us)
            if is_news(decision, past):
                try:
                    await self._carry_out(row, decision)
                except (ProjectInvalid, Unavailable):
                    raise
                except Exception as error:  # noqa: BLE001 - raised below: what it keeps from firing is this one alone
                    fault = fault or error
            coming.append(next_time(rule, now_us))
        if fault is not None:
            raise fault
        return min((moment for moment in coming if moment is not None), default=None)

    async def _try_to_consider(self) -> int | None:
        """As `consider`; what is wrong is told once, and tried again by the next look."""
        trouble, next_us = "", None
        try:
            next_us = await self.consider()
        except ProjectInvalid as error:
            trouble = error.detail
            self._tell_trouble(trouble, "schedules wait for a project that can be read")
        except Unavailable as error:
            trouble = error.code
            self._tell_trouble(trouble, "schedules wait for the database")
        except Exception as error:
            trouble = repr(error)
            if trouble != self._trouble:
                log.exception("a fault of ours keeps schedules from firing")
        self._trouble = trouble
        return next_us

    def _tell_trouble(self, trouble: str, what: str) -> None:
        if trouble != self._trouble and not self._stop.is_set():
            log.warning(what, reason=trouble)

    def _rules(self, model: ProjectModel, rows: dict[str, Remembered]) -> dict[str, Rule]:
        """The rules of all schedules that can fire."""
        found: dict[str, Rule] = {}
        for schedule in all_in(model):
            rule = _usable_rule(schedule, self._zone)
            row = rows.get(schedule.name)
            if rule is not None and (row is None or row.enabled):
                found[schedule.name] = rule
        return found

    async def _forget(self, rows: Collection[Remembered]) -> None:
        """What cannot fire now cannot miss anything: when it comes back it counts from then on."""
        if rows:
            await self._journal.write(partial(store.forget, names=[row.name for row in rows]))

    async def _carry_out(self, row: Remembered, decision: Decision) -> None:
        try:
            if decision.due_us is None:
                await self._journal.write(lambda tx: self._note(tx, row, decision))
            else:
                await self._fire(row, decision, decision.due_us)
        except _OvertakenError:
            return  # the next look sees what the other one made of it
        except _KnownError:
            await self._carry_out(row, decision._replace(due_us=None))

    async def _fire(self, row: Remembered, decision: Decision, due_us: int) -> None:
        key = firing_key(row.name, due_us)

        def replay(tx: Tx) -> None:
            _hold(tx, row)
            if store.is_decided(tx, key):
                raise _KnownError

        def remember(tx: Tx, execution: Execution) -> None:
            self._note(tx, row, decision, fired_us=due_us, execution_id=execution.id)
            event = ScheduleEvent("fired", row.name, due_us, execution.id)
            store.decided(tx, key, event)
            tx.emit(store.EVENTS, event, tenant=DEFAULT_TENANT)

        def skip(tx: Tx, error: FlxError) -> None:
            replay(tx)
            self._note(tx, row, decision, skipped_us=due_us, skip_reason=error.code)
            event = ScheduleEvent("skipped", row.name, due_us, reason=error.code, detail=error.detail)
            store.decided(tx, key, event)
            tx.emit(store.EVENTS, event, tenant=DEFAULT_TENANT)

        try:
            await self._executions.submit(
                PipelineRunArgs(PREFIX + row.name),
                principal_of(row.name),
                schedule=row.name,
                trigger="schedule",
                idempotency_key=key,
                replay=replay,
                remember=remember,
            )
        except (ProjectInvalid, Unavailable):
            raise
        except FlxError as error:
            refused = error
            await self._journal.write(lambda tx: skip(tx, refused))

    def _note(self, tx: Tx, row: Remembered, decision: Decision, **columns: str | int | None) -> None:
        """Remember that it was decided, and tell what was missed."""
        _hold(tx, row)
        missed = decision.missed
        if missed is not None:
            columns["missed_us"] = missed.last_us
            event = ScheduleEvent(
                "missed",
                row.name,
                missed.last_us,
                firings=missed.firings,
                first_us=missed.first_us,
                more=missed.more,
            )
            tx.emit(store.EVENTS, event, tenant=DEFAULT_TENANT)
        store.save(tx, row.name, mark=decision.past.mark, until_us=decision.past.until_us, **columns)


def principal_of(name: str) -> Principal:
    """Who makes the runs of a schedule: nobody whom a token could name, with no rights to anything else."""
    return Principal((PREFIX + name)[:_LONGEST_SUBJECT], DEFAULT_TENANT, ())


def _hold(tx: Tx, row: Remembered) -> None:
    """Hold that the row is as it was looked at. Disabling shows there too: it forgets."""
    if store.find(tx.connection, tx.project_id, row.name).past != row.past:
        raise _OvertakenError


def _usable_rule(schedule: Schedule, zone: str) -> Rule | None:
    try:
        return rule_of(schedule, zone)
    except UnusableError:
        return None  # `schedule.list` says why
