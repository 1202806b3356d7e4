"""`pipeline.*` but for `pipeline.run`: looking at pipelines and changing the API's own.

Rules:
- The project's files are looked at before the write, in the loop; everything is checked inside it, behind the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from flx_api.daemon import pipelines
from flx_api.daemon.handlers import idempotency
from flx_api.daemon.journal import Place, Prepared, tables
from flx_api.models.listing import decode_cursor, encode_cursor
from flx_api.models.pipeline import Deleted, PipelinePage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from flx_api.daemon.handlers.context import Context, Handler
    from flx_api.daemon.journal import Tx
    from flx_api.daemon.project import ProjectModel
    from flx_api.models.pipeline import (
        Pipeline,
        PipelineCreateArgs,
        PipelineDeleteArgs,
        PipelineIdArgs,
        PipelineListArgs,
        PipelineUpdateArgs,
    )

CREATE, UPDATE, DELETE = "pipeline.create", "pipeline.update", "pipeline.delete"


def page(context: Context, args: PipelineListArgs) -> bytes:
    """A page of pipelines, by name: the JSON of a `PipelinePage`."""
    services, tenant = context.services, context.principal.tenant
    model = services.projects.current()
    version = (services.journal.seq, model.revision)
    return services.memo.get(
        ("pipeline.list", tenant, args), version, lambda: msgspec.json.encode(_page(context, args, model))
    )


def _page(context: Context, args: PipelineListArgs, model: ProjectModel) -> PipelinePage:
    services, tenant = context.services, context.principal.tenant
    after = decode_cursor(args.cursor)
    project_id = services.journal.project_id
    with services.journal.read() as connection:
        found = [
            item
            for item in pipelines.all_of(connection, model, tenant, project_id)
            if (args.source is None or item.source == args.source) and (args.tag is None or args.tag in item.tags)
        ]
        rest = found if after is None else [item for item in found if item.name > after]
        shown = pipelines.with_runs(connection, tenant, project_id, rest[: args.limit])
    return PipelinePage(shown, encode_cursor(shown[-1].name) if len(rest) > args.limit else None, len(found))


def get(context: Context, args: PipelineIdArgs) -> Pipeline:
    """One pipeline."""
    services, tenant = context.services, context.principal.tenant
    model, project_id = services.projects.current(), services.journal.project_id
    with services.journal.read() as connection:
        found = pipelines.find(connection, model, tenant, project_id, args.id)
        return pipelines.with_runs(connection, tenant, project_id, [found])[0]


def create(context: Context, args: PipelineCreateArgs) -> Awaitable[Pipeline]:
    """Make a pipeline whose blocks are in the project."""
    project = idempotency.later(context.services.projects.current)

    def change(tx: Tx) -> Pipeline:
        # Only now: a repeated request is answered even if the project has changed since the first one.
        model = project()
        tasks = pipelines.tasks_of(args)
        pipelines.check_blocks(model, tasks, args.environment, pipelines.fields_of(args))
        return pipelines.create(tx, model, context.principal, args, tasks)

    journal = context.services.journal
    place = Place(tables.pipelines, (context.principal.tenant, journal.project_id, args.name))
    return journal.write(idempotency.once(context, CREATE, Prepared(change, (place,))))


def update(context: Context, args: PipelineUpdateArgs) -> Awaitable[Pipeline]:
    """Change a pipeline; what is not given stays."""
    project, principal = idempotency.later(context.services.projects.current), context.principal

    def change(tx: Tx) -> Pipeline:
        model = project()
        present = pipelines.find(tx.connection, model, principal.tenant, tx.project_id, args.id)
        tasks = present.tasks if args.tasks is UNSET else args.tasks
        environment = present.environment if args.environment is UNSET else args.environment
        if present.source == "api" and (args.tasks is not UNSET or args.environment is not UNSET):
            pipelines.check_blocks(model, tasks, environment)
        changed = pipelines.change(tx, model, principal, args)
        return pipelines.with_runs(tx.connection, principal.tenant, tx.project_id, [changed])[0]

    return context.services.journal.write(idempotency.once(context, UPDATE, change))


def delete(context: Context, args: PipelineDeleteArgs) -> Awaitable[Deleted]:
    """Delete a pipeline; its executions stay."""
    project, principal = idempotency.later(context.services.projects.current), context.principal

    def change(tx: Tx) -> Deleted:
        pipelines.remove(tx, project(), principal, args)
        return Deleted(args.id)

    return context.services.journal.write(idempotency.once(context, DELETE, change))


HANDLERS: Mapping[str, Handler] = {
    "pipeline.list": page,
    "pipeline.get": get,
    CREATE: create,
    UPDATE: update,
    DELETE: delete,
}
