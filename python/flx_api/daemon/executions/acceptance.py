"""Whether a request to run is acceptable, and what it then is.

Strategy: in two steps. `work_out` compares the request with the project, before the write; `execution_of` looks at what
only the database knows, inside it.

Rules:
- Nothing is changed here; a refusal is an error that names the field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from flx_api.daemon import pipelines
from flx_api.daemon.executions import scheduled
from flx_api.daemon.executions.store import Plan
from flx_api.daemon.project.blocks import SingerBlock
from flx_api.errors import Conflict, ValidationFailed
from flx_api.models.execution import Execution

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from flx_api.daemon.executions.store import Store
    from flx_api.daemon.journal import Journal, Tx
    from flx_api.daemon.principal import Principal
    from flx_api.daemon.project import ProjectModel
    from flx_api.models.execution import Trigger
    from flx_api.models.pipeline import PipelineRunArgs

_NOT_OVER = "The pipeline has an execution that is not over yet."


class Planned(NamedTuple):
    """A request to run, worked out against the project; `args.id` is what the execution bears as its pipeline."""

    args: PipelineRunArgs
    model: ProjectModel
    environment: str | None
    plan: Plan


def work_out(
    journal: Journal,
    model: ProjectModel,
    args: PipelineRunArgs,
    *,
    tenant: str,
    environment: str | None = None,
    schedule: str | None = None,
) -> Planned:
    """What would run.

    Args:
        journal: where the API's own pipelines are.
        model: the project.
        args: of `pipeline.run`; for a schedule its `id` does not matter.
        tenant: who asks.
        environment: where, when neither `args` nor the pipeline say it.
        schedule: the schedule of meltano.yml whose run it is.

    Raises:
        NotFound: there is no such pipeline or schedule.
        ValidationFailed: the environment or a block is not acceptable.
    """
    found = None if schedule is None else model.schedule(schedule)
    if found is not None:
        args = scheduled.arguments(model, found, args, environment)
        if found.job is None:
            return Planned(args, model, args.environment, scheduled.elt_plan(model, found, args))
    with journal.read() as connection:
        pipeline = pipelines.find(connection, model, tenant, journal.project_id, args.id)
    chosen = args.environment or environment or pipeline.environment or model.default_environment
    if chosen is not None and chosen not in model.environments_by_name:
        refused = ValidationFailed.field("args.environment", "the project has no such environment")
        raise refused
    # A job's own name and its blocks are the same run to Meltano; the blocks are what was accepted.
    if pipeline.source == "project":
        model.blocks((pipeline.id,), chosen)
    fields = [f"tasks[{i}][{j}]" for i, task in enumerate(pipeline.tasks) for j in range(len(task))]
    pipelines.check_blocks(model, pipeline.tasks, chosen, fields)
    words = [word for task in pipeline.tasks for word in task]
    retry = pipeline.retry if args.retries is None else msgspec.structs.replace(pipeline.retry, retries=args.retries)
    suffix = scheduled.suffix_of(model, found)
    blocks = model.blocks(words, chosen, suffix)
    plan = Plan(pipeline.tasks, blocks, retry, schedule=scheduled.giver_of(found), suffix=suffix)
    return Planned(args, model, chosen, plan)


def execution_of(tx: Tx, store: Store, planned: Planned, principal: Principal, trigger: Trigger) -> Execution:
    """The execution as it would be accepted, still without an id.

    Raises:
        NotFound: the pipeline is gone by now.
        Conflict: `already_running`.
    """
    args, tenant, connection = planned.args, principal.tenant, tx.connection
    _hold(connection, tx.project_id, planned, tenant)
    if store.active_of(connection, tenant, args.id) is not None:
        raise Conflict(_NOT_OVER, code="already_running")
    state_ids = [block.state_id for block in planned.plan.blocks if isinstance(block, SingerBlock)]
    return Execution(
        id="",
        pipeline=args.id,
        status="queued",
        trigger=trigger,
        triggered_by=principal.subject,
        environment=planned.environment,
        refresh=args.refresh,
        state_ids=tuple(dict.fromkeys(state_id for state_id in state_ids if state_id is not None)),
        attempts=1,
        queued_us=tx.now_us,
    )


def _hold(connection: Connection, project_id: str, planned: Planned, tenant: str) -> None:
    # A schedule in the old form is no pipeline.
    if planned.plan.elt is None:
        pipelines.find(connection, planned.model, tenant, project_id, planned.args.id)
