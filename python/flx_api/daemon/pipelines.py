"""Pipelines in the database and in meltano.yml, as one list.

Strategy: jobs of meltano.yml are pipelines of source `project`, revision 1, which the API shows and runs but does not
change; the API's own are rows. Where a job and a row have the same name the job is the one that counts: meltano.yml may
gain a job of a name that the API had taken before.

Rules:
- Reading takes any connection; changing takes the `Tx` of one journal write and emits its event in it.
- Every statement names tenant and project.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import UNSET
from sqlalchemy import bindparam, delete, func, select, update

from flx_api.daemon.executions.states import ACTIVE
from flx_api.daemon.journal.functions import elements
from flx_api.daemon.journal.tables import executions, pipelines
from flx_api.errors import Conflict, FieldError, NotFound, ValidationFailed
from flx_api.models.event import PipelineEvent
from flx_api.models.pipeline import USUAL_ENDS, Pipeline, RetryOn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from flx_api.daemon.journal import Tx
    from flx_api.daemon.principal import Principal
    from flx_api.daemon.project import Job, ProjectModel
    from flx_api.models.pipeline import PipelineCreateArgs, PipelineDeleteArgs, PipelineUpdateArgs

T = TypeVar("T")

EVENTS = "pipeline_events"
_NONE = "There is no such pipeline."

_encode = msgspec.json.Encoder().encode
_decode_tasks = msgspec.json.Decoder(tuple[tuple[str, ...], ...]).decode
_decode_retry_on = msgspec.json.Decoder(tuple[RetryOn, ...]).decode
_decode_tags = msgspec.json.Decoder(tuple[str, ...]).decode

# Statements are built once: SQLAlchemy then finds their text in its cache.
_ROWS = select(
    pipelines.c.name,
    pipelines.c.description,
    pipelines.c.tasks,
    pipelines.c.environment,
    pipelines.c.tags,
    pipelines.c.revision,
    pipelines.c.created_us,
    pipelines.c.updated_us,
    pipelines.c.created_by,
    pipelines.c.retries,
    pipelines.c.retry_backoff_s,
    pipelines.c.retry_on,
).where(pipelines.c.tenant == bindparam("tenant"), pipelines.c.project_id == bindparam("project"))
_ROW = _ROWS.where(pipelines.c.name == bindparam("key"))

_names = elements(bindparam("names")).table_valued("value", name="names")
_newest = executions.alias("newest")
# One step in the index (tenant, project_id, pipeline, queued_us) for each name, however many executions there are. Ids
# are made in the order of acceptance, so they decide between two of the same microsecond.
_LAST_ID = (
    select(_newest.c.id)
    .where(
        _newest.c.tenant == bindparam("tenant"),
        _newest.c.project_id == bindparam("project"),
        _newest.c.pipeline == _names.c.value,
    )
    .order_by(_newest.c.queued_us.desc(), _newest.c.id.desc())
    .limit(1)
    .scalar_subquery()
    .correlate(_names)
)
_LAST_RUNS = select(executions.c.pipeline, executions.c.id, executions.c.status, executions.c.finished_us).select_from(
    _names.join(executions, executions.c.id == _LAST_ID)
)


def find(connection: Connection, model: ProjectModel, tenant: str, project_id: str, name: str) -> Pipeline:
    """The pipeline of a name, without how it did last.

    Raises:
        NotFound: there is none.
    """
    job = model.jobs_by_name.get(name)
    if job is not None:
        return _of_job(job)
    row = connection.execute(_ROW, {"tenant": tenant, "project": project_id, "key": name}).one_or_none()
    if row is None:
        raise NotFound(_NONE)
    return _of_row(row)


def all_of(connection: Connection, model: ProjectModel, tenant: str, project_id: str) -> list[Pipeline]:
    """Every pipeline by name, without how they did last."""
    rows = connection.execute(_ROWS, {"tenant": tenant, "project": project_id}).all()
    found = {row[0]: _of_row(row) for row in rows}
    found.update((job.name, _of_job(job)) for job in model.jobs)
    return [found[name] for name in sorted(found)]


def with_runs(connection: Connection, tenant: str, project_id: str, found: Sequence[Pipeline]) -> tuple[Pipeline, ...]:
    """The same pipelines with how they did last."""
    where = {
        "tenant": tenant,
        "project": project_id,
        "names": msgspec.json.encode([item.id for item in found]).decode(),
    }
    runs = {row[0]: row for row in connection.execute(_LAST_RUNS, where).all()}
    return tuple(_with_run(item, runs.get(item.id)) for item in found)


def create(
    tx: Tx, model: ProjectModel, principal: Principal, args: PipelineCreateArgs, tasks: tuple[tuple[str, ...], ...]
) -> Pipeline:
    """Make a pipeline; `tasks` are what `tasks_of` made of `args`, and `check_blocks` has found them good.

    Raises:
        Conflict: `already_exists`.
    """
    if args.name in model.jobs_by_name or tx.find(pipelines, principal.tenant, tx.project_id, args.name) is not None:
        raise Conflict(code="already_exists")
    tags, retry_on = tuple(_without_repeats(args.tags)), tuple(_without_repeats(args.retry_on))
    tx.add(
        pipelines,
        {
            "tenant": principal.tenant,
            "project_id": tx.project_id,
            "name": args.name,
            "description": args.description,
            "tasks": _encode(tasks),
            "environment": args.environment,
            "tags": _encode(tags),
            "revision": 1,
            "created_us": tx.now_us,
            "updated_us": tx.now_us,
            "created_by": principal.subject,
            "retries": args.retries,
            "retry_backoff_s": args.retry_backoff_s,
            "retry_on": _encode(retry_on),
        },
    )
    tx.emit(EVENTS, PipelineEvent("created", args.name, principal.subject), tenant=principal.tenant)
    # What `_of_row` would make of the row; a test holds that.
    return Pipeline(
        args.name,
        args.name,
        "api",
        args.description,
        tasks,
        args.environment,
        tags,
        1,
        tx.now_us,
        tx.now_us,
        principal.subject,
        retries=args.retries,
        retry_backoff_s=args.retry_backoff_s,
        retry_on=retry_on,
    )


def change(tx: Tx, model: ProjectModel, principal: Principal, args: PipelineUpdateArgs) -> Pipeline:
    """Change a pipeline of the API's own.

    Raises:
        NotFound: there is none.
        Conflict: `managed_by_project`, or `precondition_failed` when the revision has changed.
    """
    present = _own(tx, model, principal, args.id)
    if args.revision is not None and args.revision != present.revision:
        raise Conflict(code="precondition_failed")
    values: dict[str, Any] = {}
    if args.description is not UNSET:
        values["description"] = args.description
    if args.environment is not UNSET:
        values["environment"] = args.environment
    if args.tasks is not UNSET:
        values["tasks"] = msgspec.json.encode(args.tasks)
    if args.tags is not UNSET:
        values["tags"] = msgspec.json.encode(_without_repeats(args.tags))
    if args.retries is not UNSET:
        values["retries"] = args.retries
    if args.retry_backoff_s is not UNSET:
        values["retry_backoff_s"] = args.retry_backoff_s
    if args.retry_on is not UNSET:
        values["retry_on"] = msgspec.json.encode(_without_repeats(args.retry_on))
    values.update(revision=present.revision + 1, updated_us=tx.now_us)
    tx.connection.execute(update(pipelines).where(*_key(tx, principal, args.id)).values(values))
    tx.emit(EVENTS, PipelineEvent("updated", args.id, principal.subject), tenant=principal.tenant)
    return find(tx.connection, model, principal.tenant, tx.project_id, args.id)


def remove(tx: Tx, model: ProjectModel, principal: Principal, args: PipelineDeleteArgs) -> None:
    """Delete a pipeline of the API's own; its executions stay.

    Raises:
        NotFound: there is none.
        Conflict: `managed_by_project`, `precondition_failed` when the revision has changed, or it has an execution that
            is not over.
    """
    name, present = args.id, _own(tx, model, principal, args.id)
    if args.revision is not None and args.revision != present.revision:
        raise Conflict(code="precondition_failed")
    active = select(func.count()).where(
        executions.c.tenant == principal.tenant,
        executions.c.project_id == tx.project_id,
        executions.c.status.in_(sorted(ACTIVE)),
        executions.c.pipeline == name,
    )
    if tx.connection.execute(active).scalar_one():
        detail = "The pipeline has an execution that is not over"
        raise Conflict(detail)
    tx.connection.execute(delete(pipelines).where(*_key(tx, principal, name)))
    tx.emit(EVENTS, PipelineEvent("deleted", name, principal.subject), tenant=principal.tenant)


def tasks_of(args: PipelineCreateArgs) -> tuple[tuple[str, ...], ...]:
    """The tasks that a request means: given as they are, or as extractor, loader and perhaps transform.

    Raises:
        ValidationFailed: both forms, or neither.
    """
    if args.tasks is None and args.extractor is not None and args.loader is not None:
        return ((args.extractor, args.loader), *(((args.transform,),) if args.transform is not None else ()))
    short = {"extractor": args.extractor, "loader": args.loader, "transform": args.transform}
    given = [name for name, value in short.items() if value is not None]
    if args.tasks is not None:
        if given:
            raise ValidationFailed(errors=[FieldError(f"args.{name}", "cannot stand beside tasks") for name in given])
        return args.tasks
    if not given:
        reason = "is required, or extractor and loader in its place"
        refused = ValidationFailed.field("args.tasks", reason)
        raise refused
    missing = [name for name in ("extractor", "loader") if name not in given]
    raise ValidationFailed(errors=[FieldError(f"args.{name}", "is required", "missing") for name in missing])


def check_blocks(
    model: ProjectModel,
    tasks: Sequence[Sequence[str]],
    environment: str | None,
    fields: Sequence[str] | None = None,
) -> None:
    """Refuse tasks that Meltano would refuse.

    Args:
        model: the project.
        tasks: the tasks.
        environment: where they will run; None is the project's default.
        fields: the field each block came from, in order; `args.tasks[i][j]` when not given.

    Raises:
        ValidationFailed: with the fields at fault.
    """
    try:
        model.blocks([block for task in tasks for block in task], environment or model.default_environment)
    except ValidationFailed as refused:
        if fields is None:
            fields = [f"args.tasks[{i}][{j}]" for i, task in enumerate(tasks) for j in range(len(task))]
        places = {f"blocks[{place}]": field for place, field in enumerate(fields)} | {"environment": "args.environment"}
        errors = [
            FieldError(places.get(error.field, error.field), error.reason, error.code) for error in refused.errors
        ]
        detail = "; ".join(f"{error.field}: {error.reason}" for error in errors) or refused.detail
        raise ValidationFailed(detail, errors=errors, suggestions=refused.suggestions) from None


def fields_of(args: PipelineCreateArgs) -> list[str] | None:
    """Where the blocks of `tasks_of` came from, for `check_blocks`."""
    if args.tasks is not None:
        return None
    return ["args.extractor", "args.loader", "args.transform"][: 2 if args.transform is None else 3]


def _own(tx: Tx, model: ProjectModel, principal: Principal, name: str) -> Pipeline:
    """The pipeline, if the API may change it."""
    present = find(tx.connection, model, principal.tenant, tx.project_id, name)
    if present.source == "project":
        raise Conflict(code="managed_by_project")
    return present


def _key(tx: Tx, principal: Principal, name: str) -> tuple[Any, ...]:
    return (
        pipelines.c.tenant == principal.tenant,
        pipelines.c.project_id == tx.project_id,
        pipelines.c.name == name,
    )


def _with_run(item: Pipeline, run: Any) -> Pipeline:  # noqa: ANN401 - a row of _LAST_RUNS or None
    if run is None:
        return item
    _, execution_id, status, finished_us = run
    return msgspec.structs.replace(
        item,
        # A pipeline has at most one execution that is not over, and nothing is accepted after it until it is.
        active_execution=execution_id if status in ACTIVE else None,
        last_execution=execution_id,
        last_status=status,
        last_finished_us=finished_us,
    )


def _of_job(job: Job) -> Pipeline:
    return Pipeline(
        job.name,
        job.name,
        "project",
        "",
        job.tasks,
        None,
        (),
        1,
        retries=job.retry.retries,
        retry_backoff_s=job.retry.backoff_s,
        retry_on=job.retry.on,
    )


def _of_row(row: Iterable[Any]) -> Pipeline:
    # Unpacked, since a look-up by name in a row costs several times as much.
    name, description, tasks, environment, tags, revision, created_us, updated_us, created_by, *retry = row
    retries, retry_backoff_s, retry_on = retry
    return Pipeline(
        name,
        name,
        "api",
        description,
        _decode_tasks(tasks),
        environment,
        _decode_tags(tags),
        revision,
        created_us,
        updated_us,
        created_by,
        retries=retries,
        retry_backoff_s=retry_backoff_s,
        retry_on=USUAL_ENDS if retry_on is None else _decode_retry_on(retry_on),
    )


def _without_repeats(words: Sequence[T]) -> list[T]:
    return list(dict.fromkeys(words))
