"""From a schedule of meltano.yml to what its run is: the same that `meltano schedule run` would do.

Strategy: a schedule of a job is a run of that job. One in the old form (extractor, loader, transform) is what Meltano
makes of it, `meltano elt` with the schedule's name as state id, so that a project which has run its schedules elsewhere
goes on where it was. It is no pipeline; its executions bear the name `schedule:NAME`.

Rules:
- Pure: a model and a schedule in; arguments or a plan, or a refusal, out.
- `MELTANO_ENVIRONMENT`, `MELTANO_RUN_FULL_REFRESH` and `MELTANO_RUN_STATE_ID_SUFFIX` among a schedule's variables mean
  what they mean to Meltano; a command's own arguments win.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from flx_api.daemon.executions.store import Plan
from flx_api.daemon.executors import Elt
from flx_api.daemon.project.blocks import CommandBlock, SingerBlock
from flx_api.errors import ValidationFailed
from flx_api.models.pipeline import RetryPolicy

if TYPE_CHECKING:
    from flx_api.daemon.project import ProjectModel, Schedule
    from flx_api.models.pipeline import PipelineRunArgs

PREFIX: Final = "schedule:"
# The only plugin that `meltano elt` uses for transforms.
_TRANSFORMER = "dbt"
_TRANSFORMS = ("skip", "only", "run")
_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})


def pipeline_of(schedule: Schedule) -> str:
    """What the executions of a schedule bear as their pipeline."""
    return PREFIX + schedule.name if schedule.job is None else schedule.job


def giver_of(schedule: Schedule | None) -> str | None:
    """The name of the schedule, if it has variables to give."""
    return schedule.name if schedule is not None and schedule.variables else None


def suffix_of(model: ProjectModel, schedule: Schedule | None) -> str | None:
    """The end of state ids that `meltano run` is asked for: by a schedule's variable, else by the daemon's own."""
    own = None if schedule is None else schedule.variables.get("MELTANO_RUN_STATE_ID_SUFFIX")
    return own or model.run_suffix


def arguments(
    model: ProjectModel, schedule: Schedule, args: PipelineRunArgs, environment: str | None
) -> PipelineRunArgs:
    """The arguments of its run.

    Args:
        model: the project.
        schedule: which one.
        args: what was asked for; `id` does not matter.
        environment: where, when `args` do not say it.

    Raises:
        NotFound: the project does not have its job.
        ValidationFailed: the project has no such environment.
    """
    if schedule.job is not None:
        model.job(schedule.job)
    own = schedule.variables.get("MELTANO_ENVIRONMENT")
    chosen = args.environment or environment or own or model.default_environment
    if chosen is not None and chosen not in model.environments_by_name:
        raise ValidationFailed.field("environment", "the project has no such environment")
    full = schedule.variables.get("MELTANO_RUN_FULL_REFRESH", "").strip().lower() in _TRUE
    refresh = "full" if full else args.refresh
    return msgspec.structs.replace(args, id=pipeline_of(schedule), environment=chosen, refresh=refresh)


def elt_plan(model: ProjectModel, schedule: Schedule, args: PipelineRunArgs) -> Plan:
    """The plan of a schedule in the old form.

    Raises:
        ValidationFailed: Meltano would refuse its extractor, its loader or its transform.
    """
    transform = schedule.transform or "skip"
    if transform not in _TRANSFORMS:
        raise ValidationFailed.field("schedule.transform", f"is none of {', '.join(_TRANSFORMS)}")
    for kind, name in (("extractor", schedule.extractor), ("loader", schedule.loader)):
        plugin = model.plugins_by_name.get((f"{kind}s", name or ""))
        if plugin is None:
            raise ValidationFailed.field(f"schedule.{kind}", f"the project has no such {kind}")
        if plugin.source == "broken":
            raise ValidationFailed.field(f"schedule.{kind}", f"the plugin cannot be used: {plugin.problem}")
    extractor, loader = schedule.extractor or "", schedule.loader or ""
    moves = () if transform == "only" else (SingerBlock(extractor, (), loader, schedule.name),)
    transforms = () if transform == "skip" else (CommandBlock(_TRANSFORMER, None),)
    elt = Elt(schedule.name, transform)
    return Plan(
        ((extractor, loader),),
        (*moves, *transforms),
        RetryPolicy() if args.retries is None else RetryPolicy(args.retries),
        elt=elt,
        schedule=giver_of(schedule),
    )
