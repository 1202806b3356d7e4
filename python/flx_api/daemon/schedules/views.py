"""A schedule as it is shown: what meltano.yml says, what is remembered, when it fires next.

Rules:
- Pure. Variables are shown by name only: their values may be secrets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flx_api.daemon.executions.scheduled import pipeline_of
from flx_api.daemon.schedules.times import UnusableError, next_times, rule_of, spell
from flx_api.models.schedule import Schedule as View

if TYPE_CHECKING:
    from flx_api.daemon.project import ProjectModel, Schedule
    from flx_api.daemon.schedules.store import Remembered


def view(schedule: Schedule, row: Remembered, zone: str, now_us: int, coming: int) -> View:
    """One schedule.

    Args:
        schedule: as meltano.yml has it.
        row: what is remembered of it.
        zone: the time zone in which schedules fire.
        now_us: the present moment.
        coming: how many of the next fire times to tell.
    """
    problem: str | None = None
    found: tuple[int, ...] = ()
    try:
        rule = rule_of(schedule, zone)
        if rule is not None and row.enabled:
            found = next_times(rule, now_us, coming)
    except UnusableError as error:
        problem = str(error)
    return View(
        name=schedule.name,
        enabled=row.enabled,
        interval=schedule.interval,
        cron=schedule.cron,
        timezone=zone,
        pipeline=pipeline_of(schedule),
        job=schedule.job,
        extractor=None if schedule.job else schedule.extractor,
        loader=None if schedule.job else schedule.loader,
        transform=None if schedule.job else schedule.transform,
        start_date=schedule.start_date,
        env=schedule.env,
        problem=problem,
        next_us=found,
        next_local=tuple(spell(moment, zone) for moment in found),
        last_fired_us=row.fired_us,
        last_execution=row.execution_id,
        last_skipped_us=row.skipped_us,
        last_skip_reason=row.skip_reason,
        last_missed_us=row.missed_us,
    )


def all_in(model: ProjectModel) -> list[Schedule]:
    """The project's schedules; of two with one name the first counts."""
    return [schedule for schedule in model.schedules if model.schedules_by_name[schedule.name] is schedule]
