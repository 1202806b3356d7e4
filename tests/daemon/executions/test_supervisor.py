"""One attempt where something fails on its way; the ordinary ways are played in `test_executions`."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.executions.fake_runs import ALICE, Stage, StorageFault, doubted, over, submit, until

from flx_api.daemon.executions import outcome
from flx_api.daemon.executions.store import Store
from flx_api.daemon.executions.supervisor import Supervisor
from flx_api.daemon.journal import DEFAULT_TENANT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flx_api.daemon.executors import ExitRecord
    from flx_api.daemon.journal import Tx


def test_the_last_counts_are_told_although_the_end_had_to_be_written_twice(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, faults = Store.set_attempt, [StorageFault()]

    def faulty(store: Store, tx: Tx, attempt_id: str, **columns: Any) -> None:
        if "exit_code" in columns and faults:
            raise faults.pop()
        real(store, tx, attempt_id, **columns)

    async def story(stage: Stage) -> None:
        monkeypatch.setattr(Store, "set_attempt", faulty)
        # The counts are first told at the end.
        monkeypatch.setattr(Supervisor, "_tell_counts", lambda _self: None)
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            count = {"kind": "count", "ts_us": 20, "streams": {"s": {"records": 5, "bytes": 9}}}
            run.meter(0, "extractor", "tap-a", count)
            run.end(0)
            await over(executions, accepted)
            assert not faults
            told = stage.events(f"execution.{accepted.id}.metric")
            assert [event["streams"]["s"]["records"] for event in told] == [5]

    play(story)


def test_clearing_up_is_tried_again_before_the_state_id_is_given_free(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(stage: Stage) -> None:
        monkeypatch.setattr("flx_api.daemon.executions.supervisor._SETTLE_AGAIN_S", (0.0, 0.0))
        real, faults, calls = stage.executor.settle, [OSError("busy"), OSError("busy")], 0

        async def settle(attempt_id: str, *, run_started: bool) -> ExitRecord | None:
            nonlocal calls
            calls += 1
            if faults:
                raise faults.pop()
            return await real(attempt_id, run_started=run_started)

        monkeypatch.setattr(stage.executor, "settle", settle)
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            run.end(0)
            assert (await over(executions, accepted)).status == "succeeded"
            assert calls == 3
            assert not (run.folder / "sys").exists()
            # What never works ends all the same.
            faults.extend(OSError("busy") for _ in range(9))
            again = await submit(executions, "a")
            (await stage.executor.run_of(again)).end(0)
            assert (await over(executions, again)).status == "succeeded"
            assert calls == 6

    play(story)


@pytest.mark.parametrize("moved_s", [-86_400, 86_400])
def test_the_time_of_an_adopted_run_is_not_the_wall_clocks(play: Callable[..., None], moved_s: int) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            late = await submit(executions, "a", timeout_s=3600)
            early = await submit(executions, "b", timeout_s=3600)
            runs = [await stage.executor.run_of(each) for each in (late, early)]
            await until(lambda: all("running" in stage.statuses(each) for each in (late, early)), "the start")
        stage.clock.now_us += moved_s * 1_000_000
        for run, age_s in zip(runs, (3700.0, 10.0), strict=True):
            run.age_s = age_s
        async with stage.daemon() as executions:
            assert (await over(executions, late)).status == "timed_out"
            assert executions.get(early.id, DEFAULT_TENANT).status == "running"
            runs[1].end(0)
            assert (await over(executions, early)).status == "succeeded"

    play(story)


def test_where_only_the_wall_clock_knows_a_run_has_no_more_time_than_it_began_with(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a", timeout_s=1)
            await stage.executor.run_of(accepted)
            await until(lambda: "running" in stage.statuses(accepted), "the start")
        stage.clock.now_us -= 86_400_000_000
        async with stage.daemon(backstop_s=-0.95) as executions:
            assert (await over(executions, accepted)).status == "timed_out"

    play(story)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_start_that_was_written_although_storage_said_otherwise_is_gone_on_from(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    async def story(stage: Stage) -> None:
        monkeypatch.setattr("flx_api.daemon.executions.supervisor._RETRY_S", (0.0,))
        go = asyncio.Event()
        async with stage.daemon() as executions:
            told = doubted(stage, "Supervisor.run", go)
            accepted = await submit(executions, "a")
            await until(lambda: "starting" in stage.statuses(accepted), "the write in doubt")
            if cancelled:
                assert (await executions.cancel(accepted.id, "", ALICE)).status == "cancelling"
            go.set()
            if cancelled:
                assert (await over(executions, accepted)).status == "cancelled"
                assert stage.executor.runs == {}
            else:
                (await stage.executor.run_of(accepted)).end(0)
                assert (await over(executions, accepted)).status == "succeeded"
                assert stage.statuses(accepted) == ["queued", "starting", "running", "succeeded"]
            assert told
            assert executions.counts() == (0, 0)

    play(story)


def test_what_the_log_says_of_the_end_is_read_beside_the_loop(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, readers = outcome.read_facts, []

    def read(lines: Sequence[bytes]) -> outcome.LogFacts:
        readers.append(threading.current_thread())
        return real(lines)

    async def story(stage: Stage) -> None:
        monkeypatch.setattr(outcome, "read_facts", read)
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
            run.say("ValueError: boom", string_id="tap-a")
            run.end(1)
            done = await over(executions, accepted)
            assert done.error == "Meltano ended with exit code 1: ValueError: boom"
            assert threading.main_thread() not in readers
            assert len(readers) == 1

    play(story)


def test_of_an_adopted_run_nobody_knows_the_states_before_it(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            run = await stage.executor.run_of(accepted)
        async with stage.daemon() as executions:
            seen = {"s": {"records": 0, "schema": True}}
            end = {"kind": "end", "ts_us": 99, "exit_code": 0, "cpu_s": 1.0, "max_rss_kib": 10}
            run.meter(0, "extractor", "tap-a", {**end, "snapshot": {"streams": seen}})
            run.end(0)
            # An incremental run without news, for all that is known: no reason for a `no_rows`.
            done = await over(executions, accepted)
            assert (done.status, done.warnings) == ("succeeded", ())

    play(story)
