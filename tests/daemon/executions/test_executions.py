"""Accepting, planning, running and ending executions, on a real journal with runs played by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import insert, select
from tests.daemon.executions.fake_runs import ALICE, MALLORY, Stage, doubted, over, submit, until

from flx_api.daemon.executions import executions as executions_module
from flx_api.daemon.journal import DEFAULT_TENANT, Rehearsed, rehearsing
from flx_api.daemon.journal.tables import attempts, pipelines
from flx_api.errors import Conflict, NotFound, ProjectInvalid, Unavailable, ValidationFailed
from flx_api.models.execution import ExecutionListArgs, ExecutionLogsArgs
from flx_api.models.listing import encode_cursor
from flx_api.models.pipeline import PipelineRunArgs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from flx_api.daemon.executions.log_file import LogFile
    from flx_api.daemon.journal import Tx


def end_record(code: int, streams: dict[str, int]) -> dict[str, Any]:
    seen = {name: {"records": records, "bytes": records, "schema": True} for name, records in streams.items()}
    snapshot = {"lines": 1, "bytes": 1, "states": 0, "streams": seen}
    return {"kind": "end", "ts_us": 99, "exit_code": code, "cpu_s": 1.0, "max_rss_kib": 10, "snapshot": snapshot}


def test_a_run_goes_from_queued_to_succeeded_and_every_step_is_told(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a", timeout_s=60, refresh="full")
            assert (accepted.status, accepted.environment, accepted.triggered_by) == ("queued", "dev", "alice")
            assert accepted.state_ids == ("dev:tap-a-to-target-x",)
            run = await stage.executor.run_of(accepted)
            assert run.spec.attempt_id == run.spec.execution_id == accepted.id
            assert run.spec.blocks == ("tap-a", "target-x")
            assert (run.spec.environment, run.spec.full_refresh, run.spec.timeout_s) == ("dev", True, 60)
            assert (run.spec.extractors, run.spec.loaders) == (("tap-a",), ("target-x",))
            run.meter(0, "extractor", "tap-a", end_record(0, {"s": 3}))
            run.say("Run completed", status="success")
            run.end(0)
            done = await over(executions, accepted)
            assert (done.status, done.exit_code, done.error) == ("succeeded", 0, None)
            assert (done.records, done.verdict, done.cpu_s, done.max_rss_kib) == (3, "unverified", 1.5, 1000)
            assert stage.statuses(accepted) == ["queued", "starting", "running", "succeeded"]
            told = stage.events("execution_events")
            assert [event["status"] for event in told] == stage.statuses(accepted)
            assert [event.get("previous") for event in told] == [None, "queued", "starting", "running"]
            assert stage.executor.settled == [(accepted.id, True)]
            ledger = executions.streams(accepted.id, DEFAULT_TENANT)
            assert ledger.ledger is not None
            assert ledger.counts == {"s": 3}
            assert executions.counts() == (0, 0)

    play(story)


def test_the_process_is_in_the_journal_before_its_gate_opens(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            with stage.journal.read() as connection:
                row = connection.execute(select(attempts)).mappings().one()
            assert (row["pid"], row["process_start"]) == (run.identity.pid, run.identity.start_time)
            assert (row["id"], row["execution_id"], row["number"]) == (accepted.id, accepted.id, 1)
            run.end(0)
            await over(executions, accepted)

    play(story)


def test_what_cannot_be_accepted(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            with pytest.raises(NotFound):
                await submit(executions, "absent")
            with pytest.raises(ValidationFailed) as environment:
                await submit(executions, "a", environment="staging")
            assert environment.value.errors[0].field == "args.environment"
            with pytest.raises(ValidationFailed):
                await submit(executions, "broken")
            running = await submit(executions, "a")
            with pytest.raises(Conflict) as conflict:
                await submit(executions, "a")
            assert conflict.value.code == "already_running"
            (await stage.executor.run_of(running)).end(0)
            await over(executions, running)
            again = await submit(executions, "a")
            (await stage.executor.run_of(again)).end(0)
            await over(executions, again)
            (stage.projects.root / "meltano.yml").write_text("plugins: [")
            with pytest.raises(ProjectInvalid):
                await submit(executions, "b")

    play(story)


def test_a_pipeline_of_the_api_runs_its_tasks_and_names_the_block_at_fault(play: Callable[..., None]) -> None:
    async def add(stage: Stage, name: str, tasks: list[list[str]]) -> None:
        values = {
            "tenant": DEFAULT_TENANT, "project_id": "scripted", "name": name, "description": "",
            "tasks": msgspec.json.encode(tasks), "environment": "prod", "tags": b"[]", "revision": 1,
            "created_us": 1, "updated_us": 1, "created_by": "alice",
        }  # fmt: skip
        await stage.journal.write(lambda tx: tx.connection.execute(insert(pipelines).values(values)))

    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            await add(stage, "mine", [["tap-b", "target-x"], ["tool:work"]])
            await add(stage, "wrong", [["tap-b", "target-x"], ["tap-a", "absent"]])
            accepted = await submit(executions, "mine")
            assert (accepted.environment, accepted.state_ids) == ("prod", ("prod:tap-b-to-target-x",))
            run = await stage.executor.run_of(accepted)
            assert run.spec.blocks == ("tap-b", "target-x", "tool:work")
            run.end(0)
            await over(executions, accepted)
            with pytest.raises(ValidationFailed) as refused:
                await submit(executions, "wrong")
            assert refused.value.errors[0].field == "tasks[1][1]"
            with pytest.raises(NotFound):
                await submit(executions, "mine", MALLORY)

    play(story)


def test_slots_bound_runs_and_state_ids_keep_them_apart(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            first = await submit(executions, "a")
            same_state = await submit(executions, "a-again")
            both = await submit(executions, "a-and-b")
            waits_for_both = await submit(executions, "b")
            unrelated = await submit(executions, "work")
            await stage.executor.run_of(unrelated)
            assert executions.counts() == (2, 3)
            assert set(stage.executor.runs) == {first.id, unrelated.id}
            for execution, beside in ((first, unrelated), (same_state, unrelated), (both, unrelated)):
                run = await stage.executor.run_of(execution)
                alive = {key for key, other in stage.executor.runs.items() if other.is_alive}
                assert alive == {execution.id, beside.id}
                run.end(0)
                await over(executions, execution)
            (await stage.executor.run_of(waits_for_both)).end(0)
            stage.executor.runs[unrelated.id].end(0)
            await over(executions, waits_for_both)
            await over(executions, unrelated)

    play(story)


def test_an_idempotency_key_is_looked_up_and_kept_in_one_transaction(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            kept: dict[str, str] = {}

            def replay(_tx: Tx) -> str | None:
                return kept.get("key")

            def remember(tx: Tx, execution: Any) -> None:
                assert executions._store.find(tx.connection, execution.id).execution == execution
                kept["key"] = execution.id

            async def ask() -> Any:
                args = PipelineRunArgs("a")
                return await executions.submit(args, ALICE, idempotency_key="key", replay=replay, remember=remember)

            answers = await asyncio.gather(*(ask() for _ in range(5)))
            assert len({answer.execution.id for answer in answers}) == 1
            assert sorted(answer.replayed for answer in answers) == [False, True, True, True, True]
            execution = answers[0].execution
            (await stage.executor.run_of(execution)).end(0)
            await over(executions, execution)
            (stage.projects.root / "meltano.yml").write_text("plugins: [")
            later = await ask()
            assert (later.replayed, later.execution.id, later.execution.status) == (True, execution.id, "succeeded")
            assert len(stage.executor.runs) == 1

    play(story)


def test_a_rehearsal_checks_and_changes_nothing(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            with rehearsing(), pytest.raises(Rehearsed) as told:
                await executions.submit(PipelineRunArgs("a"), ALICE)
            made = next(row.after for row in told.value.rows if row.table == "executions")
            assert made is not None
            assert made["state_ids"] == b'["dev:tap-a-to-target-x"]'
            assert executions.page(ExecutionListArgs(), ALICE).items == ()
            assert (stage.journal.seq, executions.counts()) == (0, (0, 0))
            assert executions.outlook(["dev:tap-a-to-target-x"], DEFAULT_TENANT) == ()
            first = await submit(executions, "a")
            waits = executions.outlook(["dev:tap-a-to-target-x"], DEFAULT_TENANT)
            assert [wait.execution for wait in waits] == [first.id]
            second = await submit(executions, "a-again")
            behind = executions.outlook(["dev:tap-b-to-target-x"], DEFAULT_TENANT, second.id)
            assert behind == ()
            third = await submit(executions, "a-and-b")
            behind = executions.outlook(["dev:tap-b-to-target-x"], DEFAULT_TENANT)
            assert [wait.execution for wait in behind] == [third.id]
            # Who comes back was accepted before it.
            assert executions.outlook(["dev:tap-b-to-target-x"], DEFAULT_TENANT, second.id) == ()
            for waiting in (second, third):
                await executions.cancel(waiting.id, "", ALICE)
            (await stage.executor.run_of(first)).end(0)
            await over(executions, first)

    play(story)


def test_cancelling_in_every_state(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            running = await submit(executions, "a")
            waiting = await submit(executions, "a-again")
            run = await stage.executor.run_of(running)
            gone = await executions.cancel(waiting.id, "changed my mind", ALICE)
            assert (gone.status, gone.error) == ("cancelled", "cancelled by alice: changed my mind")
            assert stage.statuses(waiting) == ["queued", "cancelled"]
            assert (await executions.cancel(running.id, "", ALICE)).status == "cancelling"
            done = await over(executions, running)
            assert (done.status, done.exit_code, done.error) == ("cancelled", 143, "cancelled by alice")
            assert run.cancelled_after == [stage.settings.cancel_grace_s]
            assert stage.statuses(running) == ["queued", "starting", "running", "cancelling", "cancelled"]
            assert (await executions.cancel(running.id, "again", ALICE)) == done
            with pytest.raises(NotFound):
                await executions.cancel(running.id, "", MALLORY)

    play(story)


def test_cancelling_before_the_gate_opens_releases_nothing(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            stage.executor.gate.clear()
            accepted = await submit(executions, "a")
            await until(lambda: "starting" in stage.statuses(accepted))
            assert (await executions.cancel(accepted.id, "", ALICE)).status == "cancelling"
            stage.executor.gate.set()
            done = await over(executions, accepted)
            assert done.status == "cancelled"
            assert not stage.executor.runs[accepted.id].released
            assert not (stage.runs_dir / accepted.id / "sys").exists()

    play(story)


def test_a_run_that_ends_well_while_it_is_cancelled_has_succeeded(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            run.obeys = False
            await executions.cancel(accepted.id, "", ALICE)
            await until(lambda: run.cancelled_after)
            run.end(0)
            done = await over(executions, accepted)
            assert (done.status, done.error) == ("succeeded", None)

    play(story)


@pytest.mark.parametrize(("code", "status"), [(1, "failed"), (None, "crashed"), (143, "failed"), (-9, "failed")])
def test_ends_that_nobody_asked_for(play: Callable[..., None], code: int | None, status: str) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            run.say("ValueError: boom", string_id="tap-a")
            run.end(code)
            done = await over(executions, accepted)
            assert (done.status, done.exit_code) == (status, code)
            assert done.error

    play(story)


def test_a_run_beyond_its_time_is_ended_by_the_backstop(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon(backstop_s=-0.95) as executions:
            accepted = await submit(executions, "a", timeout_s=1)
            run = await stage.executor.run_of(accepted)
            done = await over(executions, accepted)
            assert (done.status, done.error) == ("timed_out", "The run took longer than 1 s.")
            assert run.cancelled_after

    play(story)


def test_a_run_that_cannot_be_started_has_failed_and_gives_its_slot_back(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            stage.executor.fault = Unavailable("Meltano cannot be started.")
            done = await over(executions, await submit(executions, "a"))
            assert (done.status, done.error) == ("failed", "The run could not be started: Meltano cannot be started.")
            stage.executor.fault = RuntimeError("secret detail")
            done = await over(executions, await submit(executions, "a"))
            assert done.status == "failed"
            assert "secret" not in str(done.error)
            stage.executor.fault = None
            again = await submit(executions, "a")
            (await stage.executor.run_of(again)).end(0)
            assert (await over(executions, again)).status == "succeeded"

    play(story, slots=1)


def test_counts_are_told_while_it_runs_and_at_the_end(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            topic = f"execution.{accepted.id}.metric"
            run.meter(
                0, "extractor", "tap-a", {"kind": "count", "ts_us": 20, "streams": {"s": {"records": 5, "bytes": 9}}}
            )
            [told] = await until(lambda: stage.events(topic), "a metric event")
            assert told == {"execution": accepted.id, "plugin": "tap-a", "role": "extractor",
                            "streams": {"s": {"records": 5, "bytes": 9}}}  # fmt: skip
            live = executions.streams(accepted.id, DEFAULT_TENANT)
            assert (live.status, live.ledger, live.counts) == ("running", None, {"s": 5})
            run.meter(
                0, "extractor", "tap-a", {"kind": "count", "ts_us": 30, "streams": {"s": {"records": 7, "bytes": 9}}}
            )
            run.end(0)
            await over(executions, accepted)
            assert [event["streams"]["s"]["records"] for event in stage.events(topic)] == [5, 7]

    play(story)


def test_executions_that_wait_are_known_as_such(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            running = await submit(executions, "a")
            waiting = await submit(executions, "b")
            assert (executions.active_logs(), executions.waiting()) == ((running.id,), {waiting.id: 0})
            (await stage.executor.run_of(running)).end(0)
            (await stage.executor.run_of(waiting)).end(0)
            await over(executions, waiting)
            assert executions.waiting() == {}

    play(story, slots=1)


def test_warnings_of_the_ledger_show_and_a_full_refresh_is_compared_with_the_last_one(
    play: Callable[..., None],
) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            done = []
            for records in (100, 10):
                accepted = await submit(executions, "a", refresh="full")
                run = await stage.executor.run_of(accepted)
                run.meter(0, "extractor", "tap-a", end_record(0, {"s": records}))
                run.end(0)
                done.append(await over(executions, accepted))
            assert [execution.status for execution in done] == ["succeeded", "succeeded_with_warnings"]
            assert done[1].warnings[0].startswith("stream_fell: s: ")
            assert stage.events("execution_events")[-1]["warnings"] == list(done[1].warnings)

    play(story)


def test_waiting_ends_with_the_execution_or_with_the_time(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            assert (await executions.wait(accepted.id, 0, DEFAULT_TENANT)).finished_us is None
            assert (await executions.wait(accepted.id, 1, DEFAULT_TENANT)).finished_us is None
            waits = [asyncio.create_task(executions.wait(accepted.id, 30_000, DEFAULT_TENANT)) for _ in range(3)]
            (await stage.executor.run_of(accepted)).end(0)
            assert {execution.status for execution in await asyncio.gather(*waits)} == {"succeeded"}
            with pytest.raises(NotFound):
                await executions.wait(accepted.id, 0, "other")

    play(story)


def test_pages_go_from_new_to_old_and_show_nothing_twice(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            made = []
            for number in range(7):
                accepted = await submit(executions, "a" if number % 2 else "b")
                (await stage.executor.run_of(accepted)).end(number % 3)
                made.append((await over(executions, accepted)).id)
            found, cursor = [], None
            while True:
                page = executions.page(ExecutionListArgs(limit=3, cursor=cursor), ALICE)
                found += [execution.id for execution in page.items]
                if (cursor := page.next_cursor) is None:
                    break
            assert found == made[::-1]
            of_a = executions.page(ExecutionListArgs(pipeline="a"), ALICE)
            assert [execution.id for execution in of_a.items] == made[1::2][::-1]
            failed = executions.page(ExecutionListArgs(status="failed"), ALICE)
            assert {execution.exit_code for execution in failed.items} == {1, 2}
            assert executions.page(ExecutionListArgs(), MALLORY).items == ()
            for foreign in ("none", ":x", "-1:x", f"{2**63}:x", f"{'9' * 5000}:x", "\N{ARABIC-INDIC DIGIT ONE}:x"):
                with pytest.raises(ValidationFailed):
                    executions.page(ExecutionListArgs(cursor=encode_cursor(foreign)), ALICE)

    play(story)


def test_the_end_of_the_service_cancels_what_runs_and_what_waits(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon(cancel_runs=True) as executions:
            running = await submit(executions, "a")
            waiting = await submit(executions, "a-again")
            await stage.executor.run_of(running)
        async with stage.daemon() as executions:
            for execution in (running, waiting):
                found = executions.get(execution.id, DEFAULT_TENANT)
                assert (found.status, found.error) == ("cancelled", "service stopped")
            assert stage.executor.settled[-1] == (running.id, True)
        with pytest.raises(Unavailable):
            await submit(executions, "a")

    play(story)


def test_the_end_of_the_service_kills_what_does_not_obey(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(stage: Stage) -> None:
        monkeypatch.setattr(executions_module, "CLOSE_S", 2.02)
        async with stage.daemon(cancel_runs=True) as executions:
            stubborn = await submit(executions, "a")
            run = await stage.executor.run_of(stubborn)
            run.obeys = False
        async with stage.daemon() as executions:
            found = executions.get(stubborn.id, DEFAULT_TENANT)
            assert (found.status, found.error) == ("cancelled", "service stopped")

    play(story)


def test_a_fault_of_ours_ends_the_run_and_says_so(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_options: object) -> None:
        msg = "secret detail"
        raise ZeroDivisionError(msg)

    async def story(stage: Stage) -> None:
        monkeypatch.setattr("flx_api.daemon.executions.supervisor.outcome.judge", broken)
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            (await stage.executor.run_of(accepted)).end(0)
            done = await over(executions, accepted)
            assert (done.status, done.error) == ("crashed", "A fault of the service ended this run.")
            assert executions.counts() == (0, 0)

    play(story)


def test_logs_beyond_the_retention_go_and_the_execution_stays(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            old = await submit(executions, "a")
            run = await stage.executor.run_of(old)
            run.say("one")
            run.end(0, ended_us=stage.clock())
            await over(executions, old)
            running = await submit(executions, "b")
            await stage.executor.run_of(running)
            stage.clock.now_us += 31 * 86_400_000_000
            assert await executions.retain() == (old.id,)
            assert executions.get(old.id, DEFAULT_TENANT).status == "succeeded"
            assert executions.streams(old.id, DEFAULT_TENANT).ledger is not None
            with pytest.raises(NotFound, match="removed by retention"):
                await executions.logs(ExecutionLogsArgs(old.id), DEFAULT_TENANT)
            assert executions.log(old.id).lines(1, 10) == []
            assert (stage.runs_dir / running.id).exists()
            assert stage.events("system_events")[-1]["type"] == "retention"
            stage.executor.runs[running.id].end(0)
            await over(executions, running)

    play(story)


def test_an_end_is_told_although_storage_could_not_be_read_at_first(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            find, faults = executions._store.find, ["once"]

            def faulty(connection: Any, execution_id: str, tenant: str | None = None) -> Any:
                found = find(connection, execution_id, tenant)
                if found.execution.status == "succeeded" and faults:
                    faults.clear()
                    raise Unavailable(code="storage_unavailable")
                return found

            monkeypatch.setattr(executions._store, "find", faulty)
            monkeypatch.setattr(executions_module, "_READ_AGAIN_S", 0)
            run.end(0)
            assert (await over(executions, accepted)).status == "succeeded"
            assert not faults
            await until(lambda: executions.counts() == (0, 0))

    play(story)


def test_what_was_accepted_starts_although_storage_could_not_be_read_at_first(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            log, faults = executions.log, ["first", "second"]

            def faulty(execution_id: str) -> LogFile:
                if faults:
                    faults.pop()
                    raise Unavailable(code="storage_unavailable")
                return log(execution_id)

            monkeypatch.setattr(executions, "log", faulty)
            monkeypatch.setattr(executions_module, "_READ_AGAIN_S", 0)
            accepted = await submit(executions, "a")
            (await stage.executor.run_of(accepted)).end(0)
            assert (await over(executions, accepted)).status == "succeeded"
            assert not faults

    play(story)


@pytest.mark.parametrize("name", ["submit", "now", "_cancel"])
def test_what_was_refused_and_found_later_is_followed(play: Callable[..., None], name: str) -> None:
    """A run, one that is tried again, and a cancellation: told as failed, committed all the same, and told of then."""

    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            failed = await submit(executions, "a")
            (await stage.executor.run_of(failed)).end(1)
            assert (await over(executions, failed)).status == "failed"
            await until(lambda: executions.counts() == (0, 0))
            if name == "_cancel":
                blocking, waiting = await submit(executions, "b"), await submit(executions, "a")
                waited_for = asyncio.create_task(over(executions, waiting))
            go = asyncio.Event()
            go.set()
            told = doubted(stage, f"Executions.{name}" if name != "now" else "Comebacks.now", go)
            asked: Awaitable[Any] = (
                submit(executions, "a")
                if name == "submit"
                else executions.retry(failed.id, ALICE)
                if name == "now"
                else executions.cancel(waiting.id, "", ALICE)
            )
            with pytest.raises(Unavailable):
                await asked
            assert told
            stage.journal._tell_found()
            stage.journal._tell_found()
            if name == "_cancel":
                assert (await waited_for).status == "cancelled"
                assert executions.counts() == (1, 0)
                (await stage.executor.run_of(blocking)).end(0)
                return
            found = executions.page(ExecutionListArgs(), ALICE).items[0]
            (await stage.executor.run_of(found, 2 if name == "now" else 1)).end(0)
            assert (await over(executions, found)).status == "succeeded"
            await until(lambda: executions.counts() == (0, 0))
            assert stage.statuses(found)[-4:] == ["queued", "starting", "running", "succeeded"]

    play(story, slots=1)


def test_what_is_found_before_it_is_answered_starts_once(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            write = stage.journal.write

            def found_first(change: Any) -> Any:
                written = write(change)
                if "submit" in change.__qualname__:
                    written.add_done_callback(lambda _done: stage.journal._tell_found())
                return written

            stage.journal.write = found_first  # type: ignore[method-assign]
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            assert executions.counts() == (1, 0)
            run.end(0)
            assert (await over(executions, accepted)).status == "succeeded"
            assert stage.statuses(accepted) == ["queued", "starting", "running", "succeeded"]

    play(story)
