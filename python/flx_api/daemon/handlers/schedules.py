"""`schedule.*`: looking at the schedules of meltano.yml, switching them on and off, running one by hand.

Rules:
- Schedules belong to the default tenant, as what they run does; to any other there are none.
- What fires them is `flx_api.daemon.scheduler`; handlers and it meet in the database alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flx_api.daemon.executions.scheduled import PREFIX
from flx_api.daemon.handlers import idempotency, runs
from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.daemon.schedules import store
from flx_api.daemon.schedules.times import UnusableError, rule_of
from flx_api.daemon.schedules.views import all_in, view
from flx_api.errors import NotFound
from flx_api.models.event import ScheduleEvent
from flx_api.models.pipeline import PipelineRunArgs
from flx_api.models.schedule import SchedulePage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flx_api.daemon.handlers.context import Accepted, Context, Handler, Replay
    from flx_api.daemon.journal import Tx
    from flx_api.daemon.project import Schedule
    from flx_api.models.execution import Execution
    from flx_api.models.schedule import (
        Schedule as View,
    )
    from flx_api.models.schedule import (
        ScheduleGetArgs,
        ScheduleListArgs,
        ScheduleNameArgs,
        ScheduleRunArgs,
    )

ENABLE, DISABLE, RUN = "schedule.enable", "schedule.disable", "schedule.run"
_NONE = "The project has no such schedule."
_SHOWN = 10


def page(context: Context, args: ScheduleListArgs) -> SchedulePage:
    """All schedules."""
    services, zone = context.services, context.services.settings.timezone
    shown: tuple[View, ...] = ()
    if context.principal.tenant == DEFAULT_TENANT:
        with services.journal.read() as connection:
            rows = store.all_of(connection, services.journal.project_id)
        now_us = services.clock()
        shown = tuple(
            view(schedule, rows.get(schedule.name) or store.new(schedule.name), zone, now_us, args.coming)
            for schedule in all_in(services.projects.current())
        )
    return SchedulePage(shown, zone, services.settings.schedules == "on")


def get(context: Context, args: ScheduleGetArgs) -> View:
    """One schedule."""
    services, schedule = context.services, _find(context, args.name)
    with services.journal.read() as connection:
        row = store.find(connection, services.journal.project_id, args.name)
    return view(schedule, row, services.settings.timezone, services.clock(), args.coming)


async def switch(context: Context, args: ScheduleNameArgs, *, on: bool) -> View:
    """Let a schedule fire, or not. It counts from now on: what was not to fire was not missed."""
    services = context.services
    zone, find = services.settings.timezone, idempotency.later(lambda: _find(context, args.name))

    def change(tx: Tx) -> View:
        schedule = find()
        if store.find(tx.connection, tx.project_id, args.name).enabled != on:
            mark = _mark(schedule, zone) if on else None
            store.save(tx, args.name, enabled=on, mark=mark, until_us=tx.now_us if mark is not None else None)
            event = ScheduleEvent("enabled" if on else "disabled", args.name, by=context.principal.subject)
            tx.emit(store.EVENTS, event, tenant=DEFAULT_TENANT)
        return view(schedule, store.find(tx.connection, tx.project_id, args.name), zone, tx.now_us, _SHOWN)

    return await services.journal.write(idempotency.once(context, ENABLE if on else DISABLE, change))


async def run(context: Context, args: ScheduleRunArgs) -> Accepted | Execution | Replay:
    """Run now what a schedule runs, enabled or not."""
    _check_tenant(context)
    wanted = PipelineRunArgs(PREFIX + args.name, args.refresh, args.environment, args.timeout_s, args.retries)
    return await runs.accept(context, RUN, wanted, args.name)


def _check_tenant(context: Context) -> None:
    if context.principal.tenant != DEFAULT_TENANT:
        raise NotFound(_NONE)


def _find(context: Context, name: str) -> Schedule:
    _check_tenant(context)
    return context.services.projects.current().schedule(name)


def _mark(schedule: Schedule, zone: str) -> str | None:
    try:
        rule = rule_of(schedule, zone)
    except UnusableError:
        return None
    return None if rule is None else rule.mark


HANDLERS: Mapping[str, Handler] = {
    "schedule.list": page,
    "schedule.get": get,
    ENABLE: partial(switch, on=True),
    DISABLE: partial(switch, on=False),
    RUN: run,
}
