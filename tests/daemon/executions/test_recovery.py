"""What a daemon makes of the executions an earlier one left, whenever that one died."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.executions.fake_runs import ALICE, FakeRun, Stage, StorageFault, over, submit, until

from flx_api.daemon.executions import recovery, supervisor
from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_run_that_lives_is_adopted_and_its_log_goes_on(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            await until(lambda: "running" in stage.statuses(accepted))
            run.say("one")
        run.say("two")
        async with stage.daemon() as executions:
            with pytest.raises(Conflict):
                await submit(executions, "a")
            waiting = await submit(executions, "a-again")
            log = executions.log(accepted.id)
            await log.changed(1)
            assert executions.counts() == (1, 1)
            run.end(0)
            done = await over(executions, accepted)
            assert (done.status, log.last_line) == ("succeeded", 2)
            assert [event["type"] for event in stage.events("system_events")] == ["adopted"]
            (await stage.executor.run_of(waiting)).end(0)
            await over(executions, waiting)

    play(story)


@pytest.mark.parametrize(("code", "status"), [(0, "succeeded"), (1, "failed"), (None, "crashed")])
def test_a_run_that_ended_meanwhile_has_its_true_end(play: Callable[..., None], code: int | None, status: str) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            await until(lambda: "running" in stage.statuses(accepted))
        run.end(code)
        async with stage.daemon() as executions:
            done = executions.get(accepted.id, DEFAULT_TENANT)
            assert (done.status, done.exit_code) == (status, code), "known before the service is ready"
            assert not (run.folder / "sys").exists()
            assert [event["type"] for event in stage.events("system_events")] == ["settled"]
            assert executions.log(accepted.id).complete

    play(story)


def test_an_attempt_without_a_process_starts_again(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        stage.executor.gate.clear()
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            await until(lambda: "starting" in stage.statuses(accepted))
        stage.executor.gate.set()
        async with stage.daemon() as executions:
            (await stage.executor.run_of(accepted)).end(0)
            done = await over(executions, accepted)
            assert (done.status, done.attempts) == ("succeeded", 1)
            assert stage.statuses(accepted) == [
                "queued", "starting", "queued", "starting", "running", "succeeded"
            ]  # fmt: skip

    play(story)


def test_a_process_whose_gate_never_opened_starts_again(play: Callable[..., None], monkeypatch: Any) -> None:
    async def story(stage: Stage) -> None:
        async def dies_here(self: FakeRun) -> None:
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(FakeRun, "release", dies_here)
            async with stage.daemon() as executions:
                accepted = await submit(executions, "a")
                run = await until(lambda: stage.executor.runs.get(accepted.id))
                assert stage.statuses(accepted)[-1] == "starting"
                seq = stage.journal.seq
                await stage.journal.write(lambda _tx: None)
                assert stage.journal.seq == seq
        run.end(None)  # the gate closed with the daemon
        async with stage.daemon() as executions:
            await until(lambda: stage.executor.runs[accepted.id] is not run)
            (await stage.executor.run_of(accepted)).end(0)
            assert (await over(executions, accepted)).status == "succeeded"

    play(story)


def test_a_released_run_that_was_not_called_running_yet_is_adopted(play: Callable[..., None], monkeypatch: Any) -> None:
    async def story(stage: Stage) -> None:
        begin = FakeRun.release

        async def dies_then(self: FakeRun) -> None:
            await begin(self)
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(FakeRun, "release", dies_then)
            async with stage.daemon() as executions:
                accepted = await submit(executions, "a")
                run = await stage.executor.run_of(accepted)
                assert stage.statuses(accepted)[-1] == "starting"
        async with stage.daemon() as executions:
            await until(lambda: stage.statuses(accepted)[-1] == "running")
            assert executions.get(accepted.id, DEFAULT_TENANT).started_us is not None
            run.end(0)
            assert (await over(executions, accepted)).status == "succeeded"
            assert len(stage.executor.runs) == 1

    play(story)


@pytest.mark.parametrize("alive", [True, False])
def test_a_cancellation_goes_on(play: Callable[..., None], alive: bool) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            run.obeys = False
            await executions.cancel(accepted.id, "enough", ALICE)
            await until(lambda: run.cancelled_after)
        run.obeys = True
        if not alive:
            run.end(143)
        async with stage.daemon() as executions:
            done = await over(executions, accepted)
            assert (done.status, done.error) == ("cancelled", "cancelled by alice: enough")
            assert len(run.cancelled_after) == (2 if alive else 1)

    play(story)


def test_what_waited_waits_on_in_order(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            first = await submit(executions, "a")
            second = await submit(executions, "b")
            third = await submit(executions, "work")
            await stage.executor.run_of(first)
        async with stage.daemon() as executions:
            assert executions.counts() == (1, 2)
            stage.executor.runs[first.id].end(0)
            await over(executions, first)
            await stage.executor.run_of(second)
            assert third.id not in stage.executor.runs
            for execution in (second, third):
                (await stage.executor.run_of(execution)).end(0)
                await over(executions, execution)

    play(story, slots=1)


def test_secrets_of_runs_that_nobody_knows_are_removed(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        left = stage.runs_dir / "0190-unknown" / "sys"
        left.mkdir(parents=True)
        async with stage.daemon() as executions:
            running = await submit(executions, "a")
            run = await stage.executor.run_of(running)
            await until(lambda: not left.exists(), "the clean-up")
            assert (run.folder / "sys").exists()
            run.end(0)
            await over(executions, running)

    play(story)


def test_a_full_disk_delays_an_end_and_loses_nothing(play: Callable[..., None], monkeypatch: Any) -> None:
    async def story(stage: Stage) -> None:
        monkeypatch.setattr(supervisor, "_RETRY_S", (0.001,))
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            await until(lambda: "running" in stage.statuses(accepted))
            write = stage.journal.write
            faults: list[Any] = []

            async def full(change: Any) -> Any:
                if len(faults) < 3:
                    faults.append(change)
                    raise StorageFault
                return await write(change)

            monkeypatch.setattr(stage.journal, "write", full)
            run.end(0)
            assert (await over(executions, accepted)).status == "succeeded"
            assert len(faults) == 3

    play(story)


def test_a_leftover_that_cannot_be_removed_does_not_keep_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "sys").mkdir(parents=True)
    settled: list[str] = []

    class Executor:
        async def settle(self, attempt_id: str, *, run_started: bool) -> None:
            assert run_started
            settled.append(attempt_id)
            if attempt_id == "a":
                raise PermissionError

    asyncio.run(recovery.clear_leftovers(Executor(), tmp_path, tuple))  # type: ignore[arg-type]
    assert settled == ["a", "b"]
