"""`pipeline.run` and `execution.*` as the dispatcher calls them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest
from msgspec.structs import replace
from sqlalchemy import select
from tests.daemon.executions.fake_runs import ALICE, MALLORY, Stage, over, until

from flx_api.daemon.handlers.context import Accepted, Context, Replay, Services
from flx_api.daemon.handlers.runs import HANDLERS
from flx_api.daemon.journal import DEFAULT_TENANT, tables
from flx_api.daemon.principal import Principal
from flx_api.errors import NotFound, ProjectInvalid, Unavailable, ValidationFailed
from flx_api.models.envelope import MADE_KEY
from flx_api.models.execution import (
    Execution,
    ExecutionCancelArgs,
    ExecutionIdArgs,
    ExecutionListArgs,
    ExecutionLogsArgs,
    ExecutionWaitArgs,
)
from flx_api.models.pipeline import PipelineRunArgs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from flx_api.daemon.executions import Executions


@pytest.fixture
def play(play: Callable[..., None]) -> Callable[..., None]:
    """Run a story with a context on a new stage."""

    def run(story: Callable[[Stage, Executions, Context], Coroutine[Any, Any, None]]) -> None:
        async def with_context(stage: Stage) -> None:
            async with stage.daemon() as executions:
                nothing = cast("Any", None)
                services = Services(
                    journal=stage.journal,
                    projects=stage.projects,
                    executions=executions,
                    settings=stage.settings,
                    tokens=nothing,
                    users=nothing,
                    revocations=nothing,
                    ephemeral=nothing,
                    clock=stage.clock,
                    started_us=0,
                )
                await story(stage, executions, Context(ALICE, services))

        play(with_context)

    return run


async def call(command: str, context: Context, args: msgspec.Struct) -> Any:
    answer = HANDLERS[command](context, args)
    return await answer if asyncio.iscoroutine(answer) else answer


def test_a_run_is_accepted_and_looked_at(play: Callable[..., None]) -> None:
    async def story(stage: Stage, executions: Executions, context: Context) -> None:
        answer = await call("pipeline.run", context, PipelineRunArgs("a"))
        assert isinstance(answer, Accepted)
        assert isinstance(answer.result, Execution)
        assert (answer.execution_id, answer.replayed, answer.result.status) == (answer.result.id, False, "queued")
        of_it = ExecutionIdArgs(answer.execution_id)
        run = await stage.executor.run_of(answer.result)
        waiting = await call("execution.wait", context, ExecutionWaitArgs(answer.execution_id, 0))
        assert waiting.finished_us is None
        cancelling = await call("execution.cancel", context, ExecutionCancelArgs(answer.execution_id))
        assert cancelling.status == "cancelling"
        assert (await over(executions, answer.result)).status == "cancelled"
        assert run.cancelled_after
        assert (await call("execution.get", context, of_it)).status == "cancelled"
        assert (await call("execution.streams", context, of_it)).status == "cancelled"
        assert (await call("execution.logs", context, ExecutionLogsArgs(answer.execution_id))).complete
        assert len((await call("execution.list", context, ExecutionListArgs())).items) == 1
        with pytest.raises(NotFound):
            await call("execution.get", replace(context, principal=MALLORY), of_it)

    play(story)


def test_an_idempotency_key_gives_the_first_execution_again(play: Callable[..., None]) -> None:
    async def story(stage: Stage, executions: Executions, context: Context) -> None:
        keyed = replace(context, idempotency_key="once", body_hash="same")
        first = await call("pipeline.run", keyed, PipelineRunArgs("a"))
        run = await stage.executor.run_of(first.result)
        again = await call("pipeline.run", keyed, PipelineRunArgs("a"))
        assert (again.replayed, again.execution_id) == (True, first.execution_id)
        with pytest.raises(ValidationFailed) as reuse:
            await call("pipeline.run", replace(keyed, body_hash="other"), PipelineRunArgs("b"))
        assert reuse.value.code == "idempotency_key_reuse"
        mine = ExecutionListArgs(idempotency_key="once")
        (found,) = (await call("execution.list", context, mine)).items
        assert found.id == first.execution_id
        with stage.journal.read() as connection:
            assert connection.execute(select(tables.executions.c.idempotency_key)).scalar_one() == "once"
        somebody = replace(context, principal=Principal("bob", DEFAULT_TENANT, ("operator",)))
        assert (await call("execution.list", somebody, mine)).items == ()
        assert (await call("execution.list", context, ExecutionListArgs(idempotency_key="never"))).items == ()
        run.end(0)
        await over(executions, first.result)
        later = await call("pipeline.run", keyed, PipelineRunArgs("a"))
        assert (later.replayed, later.result.status) == (True, "succeeded")

    play(story)


def test_a_key_of_the_gateway_works_and_is_not_shown_as_the_clients(play: Callable[..., None]) -> None:
    async def story(stage: Stage, executions: Executions, context: Context) -> None:
        keyed = replace(context, idempotency_key=f"{MADE_KEY}0", body_hash="same")
        first = await call("pipeline.run", keyed, PipelineRunArgs("a"))
        again = await call("pipeline.run", keyed, PipelineRunArgs("a"))
        assert (again.replayed, again.execution_id) == (True, first.execution_id)
        with stage.journal.read() as connection:
            assert connection.execute(select(tables.executions.c.idempotency_key)).scalar_one() is None
        (await stage.executor.run_of(first.result)).end(0)
        await over(executions, first.result)

    play(story)


def test_a_cancellation_with_a_key_happens_once(play: Callable[..., None]) -> None:
    async def story(stage: Stage, executions: Executions, context: Context) -> None:
        accepted = await call("pipeline.run", context, PipelineRunArgs("a"))
        await stage.executor.run_of(accepted.result)
        keyed = replace(context, idempotency_key="stop", body_hash="same")
        args = ExecutionCancelArgs(accepted.execution_id, "enough")
        assert (await call("execution.cancel", keyed, args)).status == "cancelling"
        await over(executions, accepted.result)
        seq = stage.journal.seq
        again = await call("execution.cancel", keyed, args)
        assert isinstance(again, Replay)
        assert msgspec.json.decode(again.result, type=Execution).status == "cancelled"
        with pytest.raises(ValidationFailed) as reuse:
            await call("execution.cancel", replace(keyed, body_hash="other"), args)
        assert reuse.value.code == "idempotency_key_reuse"
        assert stage.journal.seq == seq

    play(story)


async def cancel_in_doubt(stage: Stage, context: Context, args: ExecutionCancelArgs) -> None:
    """It is written, and told as if it were not."""
    write, faults = stage.journal.write, [Unavailable(code="storage_unavailable")]

    async def in_doubt(change: Any) -> Any:
        await write(change)
        raise faults.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.journal, "write", in_doubt)
        with pytest.raises(Unavailable):
            await call("execution.cancel", context, args)


def test_a_cancellation_that_was_written_although_storage_said_otherwise_is_handed_on_when_repeated(
    play: Callable[..., None],
) -> None:
    async def story(stage: Stage, executions: Executions, context: Context) -> None:
        accepted = await call("pipeline.run", context, PipelineRunArgs("a"))
        run = await stage.executor.run_of(accepted.result)
        keyed = replace(context, idempotency_key="stop", body_hash="same")
        args = ExecutionCancelArgs(accepted.execution_id, "enough")
        await cancel_in_doubt(stage, keyed, args)
        assert executions.get(accepted.execution_id, DEFAULT_TENANT).status == "cancelling"
        assert not run.cancelled_after
        assert isinstance(await call("execution.cancel", keyed, args), Replay)
        assert (await over(executions, accepted.result)).status == "cancelled"
        assert run.cancelled_after

    play(story)


def test_nor_does_one_of_a_run_in_the_queue_leave_it_there(play: Callable[..., None]) -> None:
    async def story(stage: Stage, executions: Executions, context: Context) -> None:
        first = await call("pipeline.run", context, PipelineRunArgs("a"))
        run = await stage.executor.run_of(first.result)
        # It waits for the state id of the first one.
        queued = await call("pipeline.run", context, PipelineRunArgs("a-again"))
        assert list(executions.waiting()) == [queued.execution_id]
        keyed = replace(context, idempotency_key="stop", body_hash="same")
        args = ExecutionCancelArgs(queued.execution_id, "enough")
        await cancel_in_doubt(stage, keyed, args)
        assert isinstance(await call("execution.cancel", keyed, args), Replay)
        assert (await over(executions, queued.result)).status == "cancelled"
        assert executions.waiting() == {}
        run.end(0)
        assert (await over(executions, first.result)).status == "succeeded"

    play(story)


def test_another_attempt_with_a_key_is_made_once(play: Callable[..., None]) -> None:
    async def story(stage: Stage, executions: Executions, context: Context) -> None:
        accepted = await call("pipeline.run", context, PipelineRunArgs("a"))
        (await stage.executor.run_of(accepted.result)).end(1)
        await over(executions, accepted.result)
        args = ExecutionIdArgs(accepted.execution_id)
        keyed = replace(context, idempotency_key="again", body_hash="same")
        first = await call("execution.retry", keyed, args)
        assert (first.execution_id, first.replayed, first.result.attempts) == (accepted.execution_id, False, 2)
        (await stage.executor.run_of(accepted.result, 2)).end(1)
        await over(executions, accepted.result)
        again = await call("execution.retry", keyed, args)
        assert (again.execution_id, again.replayed, again.result.status) == (accepted.execution_id, True, "failed")
        done = await call("execution.retry", replace(keyed, wait_ms=60_000), args)
        assert isinstance(done, Replay), "it is over, so it is done and not accepted"
        assert msgspec.json.decode(done.result, type=Execution) == again.result
        assert len((await call("execution.attempts", context, args)).items) == 2
        found = await call("execution.list", context, ExecutionListArgs(idempotency_key="again"))
        assert [one.id for one in found.items] == [accepted.execution_id]

    play(story)


def test_of_a_project_that_cannot_be_read_a_repetition_hears_nothing(play: Callable[..., None]) -> None:
    async def story(stage: Stage, executions: Executions, context: Context) -> None:
        accepted = await call("pipeline.run", replace(context, idempotency_key="run"), PipelineRunArgs("a"))
        await stage.executor.run_of(accepted.result)
        cancel, of_it = ExecutionCancelArgs(accepted.execution_id), ExecutionIdArgs(accepted.execution_id)
        await call("execution.cancel", replace(context, idempotency_key="cancel"), cancel)
        await over(executions, accepted.result)
        await call("execution.retry", replace(context, idempotency_key="retry"), of_it)
        (await stage.executor.run_of(accepted.result, 2)).end(0)
        await over(executions, accepted.result)
        (stage.settings.project_dir / "meltano.yml").write_text("jobs: [")
        for command, args in (("run", PipelineRunArgs("a")), ("retry", of_it)):
            name = f"{'pipeline' if command == 'run' else 'execution'}.{command}"
            again = await call(name, replace(context, idempotency_key=command), args)
            assert (again.execution_id, again.replayed) == (accepted.execution_id, True)
        assert isinstance(await call("execution.cancel", replace(context, idempotency_key="cancel"), cancel), Replay)
        with pytest.raises(ProjectInvalid):
            await call("pipeline.run", context, PipelineRunArgs("a"))

    play(story)


def test_waiting_for_a_run_ends_with_it_or_with_the_deadline(play: Callable[..., None]) -> None:
    async def story(stage: Stage, executions: Executions, context: Context) -> None:
        hurried = replace(context, wait_ms=30_000, deadline_us=stage.clock() + 51_500)
        early = await call("pipeline.run", hurried, PipelineRunArgs("a"))
        assert early.result.finished_us is None
        patient = replace(context, wait_ms=30_000)
        asking = asyncio.create_task(call("pipeline.run", patient, PipelineRunArgs("b")))
        (await stage.executor.run_of(early.result)).end(0)
        await over(executions, early.result)
        found = await until(lambda: executions.page(ExecutionListArgs(pipeline="b"), ALICE).items)
        (await stage.executor.run_of(found[0])).end(0)
        done = await asking
        assert isinstance(done, Execution), "done in time is no longer accepted"
        assert done.status == "succeeded"

    play(story)


def test_a_dry_run_of_a_wait_does_not_wait(play: Callable[..., None]) -> None:
    async def story(stage: Stage, executions: Executions, context: Context) -> None:
        accepted = await call("pipeline.run", context, PipelineRunArgs("a"))
        dry = replace(context, dry_run=True)
        waiting = await call("execution.wait", dry, ExecutionWaitArgs(accepted.execution_id, 600_000))
        assert waiting.finished_us is None
        (await stage.executor.run_of(accepted.result)).end(0)
        await over(executions, accepted.result)

    play(story)
