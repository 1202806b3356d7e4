"""Handlers of `pipeline.run` and `execution.*`: from a context and arguments to the executions, and back.

Rules:
- Nothing is decided here that `flx_api.daemon.executions` could decide.
- A run or a cancellation that is asked for twice with one idempotency key is answered with the execution as it is now.
- Waiting never goes beyond the command's deadline: the answer is then the execution as it is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from flx_api.daemon.executions.states import FINAL
from flx_api.daemon.handlers import idempotency
from flx_api.daemon.handlers.context import Accepted, Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from flx_api.daemon.handlers.context import Context, Handler
    from flx_api.daemon.journal import Tx
    from flx_api.models.execution import (
        AttemptPage,
        Execution,
        ExecutionCancelArgs,
        ExecutionIdArgs,
        ExecutionListArgs,
        ExecutionLogsArgs,
        ExecutionPage,
        ExecutionWaitArgs,
        LogPage,
        StreamsResult,
    )
    from flx_api.models.pipeline import PipelineRunArgs

RUN, CANCEL, RETRY = "pipeline.run", "execution.cancel", "execution.retry"
# What is left of a deadline for the answer to travel.
_ANSWER_MS = 50


async def run(context: Context, args: PipelineRunArgs) -> Accepted | Execution | Replay:
    """Accept a run; with `wait_ms`, answer when it is over, at the latest then."""
    return await accept(context, RUN, args)


async def accept(
    context: Context, command: str, args: PipelineRunArgs, schedule: str | None = None
) -> Accepted | Execution | Replay:
    """Accept a run of a pipeline, or of what a schedule runs, for this command."""
    executions = context.services.executions

    def replay(tx: Tx) -> str | None:
        stored = idempotency.look_up(tx, context, command)
        return None if stored is None else stored.execution_id

    def remember(tx: Tx, execution: Execution) -> None:
        idempotency.remember(tx, context, command, execution, execution.id)

    submitted = await executions.submit(
        args,
        context.principal,
        environment=context.environment,
        idempotency_key=context.client_key,
        replay=replay,
        remember=remember,
        schedule=schedule,
    )
    return await _waited(context, submitted.execution, replayed=submitted.replayed)


def get(context: Context, args: ExecutionIdArgs) -> Execution:
    """One execution."""
    return context.services.executions.get(args.id, context.principal.tenant)


def page(context: Context, args: ExecutionListArgs) -> ExecutionPage:
    """A page of executions."""
    return context.services.executions.page(args, context.principal)


async def cancel(context: Context, args: ExecutionCancelArgs) -> Execution | Replay:
    """Ask for the end of an execution; with `wait_ms`, answer when it has ended."""
    executions, tenant = context.services.executions, context.principal.tenant
    replayed = False
    try:
        execution = await executions.cancel(args.id, args.reason, context.principal, _once(context, CANCEL))
    except idempotency.Replayed:
        replayed, execution = True, executions.get(args.id, tenant)
        # The first one may have been told that storage failed, although it was written.
        executions.hand_on(execution)
    if context.wait_ms and execution.status not in FINAL:
        execution = await executions.wait(args.id, _patience_ms(context, context.wait_ms), tenant)
    return Replay(msgspec.json.encode(execution)) if replayed else execution


async def retry(context: Context, args: ExecutionIdArgs) -> Accepted | Execution | Replay:
    """Another attempt; with `wait_ms`, answer when the execution is over, at the latest then."""
    executions, tenant = context.services.executions, context.principal.tenant
    replayed = False
    try:
        execution = await executions.retry(args.id, context.principal, _once(context, RETRY, args.id))
    except idempotency.Replayed:
        if context.dry_run:
            raise
        replayed, execution = True, executions.get(args.id, tenant)
    return await _waited(context, execution, replayed=replayed)


def attempts(context: Context, args: ExecutionIdArgs) -> AttemptPage:
    """The attempts."""
    return context.services.executions.attempts(args.id, context.principal.tenant)


async def wait(context: Context, args: ExecutionWaitArgs) -> Execution:
    """The execution when it is over."""
    patience = _patience_ms(context, args.timeout_ms)
    return await context.services.executions.wait(args.id, patience, context.principal.tenant)


async def logs(context: Context, args: ExecutionLogsArgs) -> LogPage:
    """Lines of an execution's log."""
    return await context.services.executions.logs(args, context.principal.tenant)


def streams(context: Context, args: ExecutionIdArgs) -> StreamsResult:
    """The row ledger."""
    return context.services.executions.streams(args.id, context.principal.tenant)


async def _waited(context: Context, execution: Execution, *, replayed: bool) -> Accepted | Execution | Replay:
    """Accepted; or, with `wait_ms`, done when it is over by then."""
    if not context.wait_ms:
        return Accepted(execution, execution.id, replayed)
    if execution.status not in FINAL:
        patience_ms = _patience_ms(context, context.wait_ms)
        execution = await context.services.executions.wait(execution.id, patience_ms, context.principal.tenant)
    if execution.status not in FINAL:
        return Accepted(execution, execution.id, replayed)
    return Replay(msgspec.json.encode(execution)) if replayed else execution


def _once(context: Context, command: str, begins: str | None = None) -> Callable[..., Any]:
    return partial(idempotency.once, context, command, begins=begins)


def _patience_ms(context: Context, wanted_ms: int) -> int:
    if context.dry_run:
        return 0
    if context.deadline_us is None:
        return wanted_ms
    left_ms = (context.deadline_us - context.services.clock()) // 1000 - _ANSWER_MS
    return max(0, min(wanted_ms, left_ms))


HANDLERS: Mapping[str, Handler] = {
    RUN: run,
    "execution.list": page,
    "execution.get": get,
    CANCEL: cancel,
    RETRY: retry,
    "execution.attempts": attempts,
    "execution.wait": wait,
    "execution.logs": logs,
    "execution.streams": streams,
}
