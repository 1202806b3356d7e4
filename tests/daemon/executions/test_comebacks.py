"""Executions that are tried again: by themselves, by hand, across restarts. Runs are played by hand."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from tests.daemon.executions.fake_runs import ALICE, MALLORY, Stage, over, submit, until

from flx_api.daemon.executions.log_file import LogFile
from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.daemon.journal.tables import attempts
from flx_api.daemon.journal.tables import executions as rows
from flx_api.errors import Conflict, NotFound
from flx_api.models.execution import ExecutionLogsArgs

if TYPE_CHECKING:
    from collections.abc import Callable

    from flx_api.daemon.executions import Executions
    from flx_api.daemon.executions.store import Stored
    from flx_api.daemon.journal import Tx
    from flx_api.models.execution import Execution


def shown(executions: Executions, execution: Execution) -> list[tuple[int, str, str, int | None]]:
    found = executions.attempts(execution.id, DEFAULT_TENANT)
    return [(one.number, one.trigger, one.status, one.exit_code) for one in found.items]


async def resting(executions: Executions, execution: Execution) -> Execution:
    def rests() -> Execution | None:
        found = executions.get(execution.id, DEFAULT_TENANT)
        return found if found.status == "retrying" else None

    found: Execution = await until(rests, "the pause")
    return found


def test_a_failure_is_tried_again_until_it_succeeds(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "at-once")
            for number, code in ((1, 1), (2, 7), (3, 0)):
                run = await stage.executor.run_of(accepted, number)
                run.say(f"attempt {number}")
                run.end(code)
            done = await over(executions, accepted)
            assert (done.status, done.attempts, done.exit_code, done.error) == ("succeeded", 3, 0, None)
            assert done.retry_at_us is None
            found = executions.attempts(accepted.id, DEFAULT_TENANT).items
            assert shown(executions, accepted) == [
                (1, "run", "failed", 1),
                (2, "automatic", "failed", 7),
                (3, "automatic", "succeeded", 0),
            ]
            assert found[0].error is not None
            assert all(one.started_us and one.finished_us and one.queued_us for one in found)
            # The first attempt bears the execution's id, each one its own, and that is Meltano's run id.
            ids = [run.spec.attempt_id for run in stage.executor.runs.values()]
            assert ids == [one.id for one in found]
            assert (ids[0], len(set(ids))) == (accepted.id, 3)
            once = ["starting", "running"]
            again = ["retrying", "queued", *once]
            assert stage.statuses(accepted) == ["queued", *once, *again, *again, "succeeded"]
            told = stage.events("execution_events")
            assert [event.get("attempt", 1) for event in told] == [1] * 4 + [2] * 4 + [3] * 4
            assert all(("retry_at_us" in event) == (event["status"] == "retrying") for event in told)

    play(story)


def test_all_attempts_are_one_log(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "at-once")
            log = executions.log(accepted.id)
            following = asyncio.create_task(log.changed(3))
            first = await stage.executor.run_of(accepted, 1)
            first.say("one", "two")
            with (first.folder / "log.jsonl").open("a") as file:
                file.write("cut off")
            first.end(1)
            second = await stage.executor.run_of(accepted, 2)
            assert executions.waiting() == {}
            second.say("four")
            second.end(0)
            await following
            await over(executions, accepted)
            page = await executions.logs(ExecutionLogsArgs(accepted.id), DEFAULT_TENANT)
            assert not page.complete, "a page ends where an attempt does"
            rest = await executions.logs(ExecutionLogsArgs(accepted.id, page.next_line), DEFAULT_TENANT)
            lines = [*page.lines, *rest.lines]
            assert rest.complete
            assert [line if line == "cut off" else line.split('"')[3] for line in lines] == [
                "one", "two", "cut off", "four",
            ]  # fmt: skip
        async with stage.daemon() as executions:
            again = executions.log(accepted.id)
            assert (again.last_line, again.earlier_lines, again.complete) == (4, 3, True)
            assert again.lines(3, 10) == [b"cut off"]
            assert len(again.lines(4, 10)) == 1

    play(story)


def test_what_is_not_tried_again(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            cancelled = await submit(executions, "at-once")
            await stage.executor.run_of(cancelled)
            await executions.cancel(cancelled.id, "", ALICE)
            assert (await over(executions, cancelled)).status == "cancelled"
            other_end = await submit(executions, "late")
            (await stage.executor.run_of(other_end)).end(1)
            assert (await over(executions, other_end)).status == "failed"
            exhausted = await submit(executions, "at-once", retries=1)
            for number in (1, 2):
                (await stage.executor.run_of(exhausted, number)).end(1)
            assert (await over(executions, exhausted)).status == "failed"
            assert [done for _, _, done, _ in shown(executions, exhausted)] == ["failed", "failed"]
            never = await submit(executions, "at-once", retries=0)
            (await stage.executor.run_of(never)).end(1)
            assert (await over(executions, never)).attempts == 1
            assert len(stage.executor.runs) == 5

    play(story)


def test_a_crash_and_a_run_that_could_not_begin_are_tried_again(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            crashed = await submit(executions, "at-once")
            (await stage.executor.run_of(crashed)).end(None)
            (await stage.executor.run_of(crashed, 2)).end(0)
            assert (await over(executions, crashed)).status == "succeeded"
            assert [done for _, _, done, _ in shown(executions, crashed)] == ["crashed", "succeeded"]
            stage.executor.fault = OSError("no processes left")
            unable = await submit(executions, "later")
            rests = await resting(executions, unable)
            assert rests.error is not None
            assert shown(executions, unable) == [(1, "run", "failed", None)]
            assert executions.log(unable.id).last_line == 0
            # The attempt that never began has no log, and is not missed in that of the whole.
            stage.executor.fault = None
            await executions.retry(unable.id, ALICE)
            run = await stage.executor.run_of(unable)
            run.say("one")
            run.end(0)
            assert (await over(executions, unable)).status == "succeeded"
            page = await executions.logs(ExecutionLogsArgs(unable.id), DEFAULT_TENANT)
            assert (len(page.lines), page.complete) == (1, True)

    play(story)


def test_whoever_rests_holds_nothing_and_can_be_cancelled(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "later")
            (await stage.executor.run_of(accepted)).end(3)
            rests = await resting(executions, accepted)
            assert (rests.finished_us, rests.exit_code) == (None, 3)
            assert rests.retry_at_us is not None
            assert 1_800_000_000 <= rests.retry_at_us - stage.clock() + 1000 <= 3_600_001_000
            # Its slot is free a moment after the row is written.
            await until(lambda: executions.counts() == (0, 0), "the free slot")
            assert executions.waiting() == {accepted.id: 0}
            with pytest.raises(Conflict) as running:
                await submit(executions, "later")
            assert running.value.code == "already_running"
            # Another pipeline of the same state id.
            other = await submit(executions, "a")
            (await stage.executor.run_of(other)).end(0)
            await over(executions, other)
            waiting = asyncio.create_task(over(executions, accepted))
            ended = await executions.cancel(accepted.id, "enough", ALICE)
            assert (ended.status, ended.error, ended.retry_at_us) == (
                "cancelled", "cancelled by alice: enough", None,
            )  # fmt: skip
            assert (await waiting).status == "cancelled"
            assert shown(executions, accepted) == [(1, "run", "failed", 3)]
            assert executions.waiting() == {}
        async with stage.daemon() as executions:
            assert executions.waiting() == {}
            assert len(stage.executor.runs) == 2

    play(story, slots=1)


@pytest.mark.parametrize("cancel_runs", [True, False])
def test_a_pause_outlives_the_daemon(play: Callable[..., None], cancel_runs: bool) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon(cancel_runs=cancel_runs) as executions:
            accepted = await submit(executions, "later")
            run = await stage.executor.run_of(accepted)
            run.say("one")
            run.end(1)
            rests = await resting(executions, accepted)
        async with stage.daemon() as executions:
            assert executions.get(accepted.id, DEFAULT_TENANT) == rests
            assert executions.waiting() == {accepted.id: 1}
            assert len(stage.executor.runs) == 1
        stage.clock.now_us += 3_600_000_000
        async with stage.daemon() as executions:
            second = await stage.executor.run_of(accepted, 2)
            second.say("two")
            second.end(0)
            done = await over(executions, accepted)
            assert (done.status, done.attempts) == ("succeeded", 2)
            assert executions.log(accepted.id).last_line == 2

    play(story)


def test_a_pause_that_has_just_begun_outlives_the_daemon_too(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon(cancel_runs=True) as executions:
            read_back, cancel, go_on = executions._read_back, executions._cancel, asyncio.Event()

            async def held(execution_id: str) -> Stored:
                await go_on.wait()
                return await read_back(execution_id)

            async def last(*args: Any, **options: Any) -> Execution:
                try:
                    return await cancel(*args, **options)
                finally:
                    go_on.set()

            monkeypatch.setattr(executions, "_read_back", held)
            monkeypatch.setattr(executions, "_cancel", last)
            accepted = await submit(executions, "later")
            (await stage.executor.run_of(accepted)).end(1)
            rests = await resting(executions, accepted)
        async with stage.daemon() as executions:
            assert executions.get(accepted.id, DEFAULT_TENANT) == rests

    play(story)


def test_an_attempt_by_hand(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "at-once")
            with pytest.raises(Conflict) as running:
                await executions.retry(accepted.id, ALICE)
            assert running.value.code == "already_running"
            with pytest.raises(NotFound):
                await executions.retry(accepted.id, MALLORY)
            first = await stage.executor.run_of(accepted)
            first.say("one")
            await executions.cancel(accepted.id, "", ALICE)
            await over(executions, accepted)
            assert executions.log(accepted.id).complete
            again = await executions.retry(accepted.id, ALICE)
            assert (again.status, again.attempts, again.finished_us, again.id) == ("queued", 2, None, accepted.id)
            # Whoever asks gives it all its tries anew.
            for number, code in ((2, 1), (3, 1), (4, 1)):
                run = await stage.executor.run_of(accepted, number)
                run.say(str(number))
                run.end(code)
            done = await over(executions, accepted)
            assert (done.status, done.attempts) == ("failed", 4)
            assert [trigger for _, trigger, _, _ in shown(executions, accepted)] == [
                "run", "manual", "automatic", "automatic",
            ]  # fmt: skip
            assert executions.log(accepted.id).last_line == 4
            other = await submit(executions, "at-once")
            with pytest.raises(Conflict) as busy:
                await executions.retry(accepted.id, ALICE)
            assert busy.value.code == "already_running"
            (await stage.executor.run_of(other)).end(0)
            await over(executions, other)
            with pytest.raises(Conflict) as succeeded:
                await executions.retry(other.id, ALICE)
            assert succeeded.value.code == "conflict"

    play(story)


@pytest.mark.parametrize("pipeline", ["a", "later"])
def test_while_it_runs_again_the_end_of_the_attempt_before_is_told_by_that_attempt_alone(
    play: Callable[..., None], pipeline: str
) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, pipeline)
            first = await stage.executor.run_of(accepted)
            seen = {"s": {"records": 5, "schema": True}}
            end = {"kind": "end", "ts_us": 99, "exit_code": 1, "cpu_s": 1.0, "max_rss_kib": 10}
            first.meter(0, "extractor", "tap-a", {**end, "snapshot": {"streams": seen}})
            first.end(1)
            # The pause keeps what is known so far; see also above.
            before = await (over if pipeline == "a" else resting)(executions, accepted)
            assert (before.exit_code, before.records, before.verdict) == (1, 5, "unverified")
            assert before.error is not None
            assert executions.streams(accepted.id, DEFAULT_TENANT).ledger is not None
            again = await executions.retry(accepted.id, ALICE)
            second = await stage.executor.run_of(accepted, 2)
            await until(lambda: stage.statuses(accepted)[-1] == "running", "the second attempt")
            for found in (again, executions.get(accepted.id, DEFAULT_TENANT)):
                told = (found.exit_code, found.error, found.records, found.verdict, found.warnings)
                assert told == (None, None, None, None, ())
            ends = [event for event in stage.events("execution_events") if event.get("attempt", 1) == 2]
            assert [event["status"] for event in ends] == ["queued", "starting", "running"]
            assert not any({"exit_code", "error", "verdict", "warnings"} & set(event) for event in ends)
            with stage.journal.read() as connection:
                row = connection.execute(select(rows).where(rows.c.id == accepted.id)).one()
            assert (row.cpu_s, row.max_rss_kib, row.ledger) == (None, None, None)
            count = {"kind": "count", "ts_us": 20, "streams": {"s": {"records": 2, "bytes": 9}}}
            second.meter(0, "extractor", "tap-a", count)
            await until(lambda: executions.streams(accepted.id, DEFAULT_TENANT).counts == {"s": 2}, "the counts so far")
            assert shown(executions, accepted)[0][2:] == ("failed", 1)
            assert executions.attempts(accepted.id, DEFAULT_TENANT).items[0].error == before.error
            second.obeys = False
            await executions.cancel(accepted.id, "", ALICE)
            second.end(None)
            done = await over(executions, accepted)
            assert (done.status, done.exit_code, done.error) == ("cancelled", None, "cancelled by alice")

    play(story)


def test_by_hand_a_pause_is_cut_short(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "later")
            (await stage.executor.run_of(accepted)).end(1)
            await resting(executions, accepted)
            await executions.retry(accepted.id, ALICE)
            (await stage.executor.run_of(accepted, 2)).end(1)
            done = await over(executions, accepted)
            assert (done.status, done.attempts) == ("failed", 2), "it was the last one that its pipeline allows"
            with stage.journal.read() as connection:
                assert list(connection.execute(select(attempts.c.tries)).scalars()) == [1, 2]

    play(story)


def test_only_whole_logs_are_shown(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "at-once")
            for number, code in ((1, 1), (2, 0)):
                run: Any = await stage.executor.run_of(accepted, number)
                run.say("x")
                run.end(code)
            await over(executions, accepted)
            (stage.runs_dir / accepted.id / "log.jsonl").unlink()
            with pytest.raises(NotFound):
                await executions.logs(ExecutionLogsArgs(accepted.id), DEFAULT_TENANT)

    play(story)


def test_a_cancellation_in_the_last_moment_of_a_pause_holds(play: Callable[..., None]) -> None:
    """The pause is over, and what would end it is written right behind the cancellation, in the same group."""

    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            write = stage.journal.write
            cancelling: list[asyncio.Task[Execution]] = []

            async def first_the_cancellation(change: Any) -> Any:
                if not cancelling and executions.get(accepted.id, DEFAULT_TENANT).status == "retrying":
                    cancelling.append(asyncio.create_task(executions.cancel(accepted.id, "", ALICE)))
                    await asyncio.sleep(0)
                return await write(change)

            accepted = await submit(executions, "at-once")
            stage.journal.write = first_the_cancellation  # type: ignore[assignment, method-assign]
            (await stage.executor.run_of(accepted)).end(1)
            await until(lambda: cancelling, "the pause's end")
            assert (await cancelling[0]).status == "cancelled"
            await write(lambda _tx: None)
            done = executions.get(accepted.id, DEFAULT_TENANT)
            assert (done.status, done.attempts) == ("cancelled", 1)
            assert executions.waiting() == {}

    play(story)


def test_by_hand_before_the_end_was_taken_notice_of(play: Callable[..., None]) -> None:
    """Another attempt is written in the same group as the end of the one before, and told only when it runs."""

    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            first = await stage.executor.run_of(accepted)
            first.say("one")
            # Then its end is the next thing that is written.
            await until(lambda: executions.get(accepted.id, DEFAULT_TENANT).status == "running", "the start")
            write, begun, both = stage.journal.write, threading.Event(), threading.Event()
            retrying: list[asyncio.Task[Execution]] = []

            def hold(_tx: Tx) -> None:
                begun.set()
                both.wait()

            async def then_another(change: Any) -> Any:
                task = asyncio.current_task()
                if task in retrying:
                    written = asyncio.ensure_future(write(change))
                    await asyncio.sleep(0)
                    both.set()
                    result = await written
                    await stage.executor.run_of(accepted, 2)
                    return result
                if task is not None and task.get_name() == f"run {accepted.id}" and not (first.is_alive or retrying):
                    # Both wait while the writer is kept busy, so that they are one group.
                    busy = asyncio.ensure_future(write(hold))
                    await until(begun.is_set, "the writer")
                    retrying.append(asyncio.create_task(executions.retry(accepted.id, ALICE)))
                    ended = await write(change)
                    await busy
                    return ended
                return await write(change)

            stage.journal.write = then_another  # type: ignore[assignment, method-assign]
            first.end(1)
            second = await stage.executor.run_of(accepted, 2)
            assert (await retrying[0]).attempts == 2
            second.say("two")
            second.end(0)
            done = await over(executions, accepted)
            assert (done.status, done.attempts) == ("succeeded", 2)
            assert (executions.counts(), executions.log(accepted.id).last_line) == ((0, 0), 2)

    play(story)


def test_after_a_restart_what_is_due_waits_for_what_is_alive(play: Callable[..., None]) -> None:
    """A look at the logs takes long; meanwhile an attempt is due whose state id a live run holds."""

    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            due = await submit(executions, "later")
            (await stage.executor.run_of(due)).end(1)
            await resting(executions, due)
            alive = await submit(executions, "a")
            run = await stage.executor.run_of(alive)
        stage.clock.now_us += 3_600_000_000
        loop, take_rest = asyncio.get_running_loop(), LogFile.take_rest

        async def much_happens() -> None:
            for _ in range(20):
                await stage.journal.write(lambda _tx: None)

        def slowly(log: LogFile) -> None:
            with contextlib.suppress(RuntimeError):  # on the loop itself: nobody waits
                asyncio.get_running_loop()
                return take_rest(log)
            asyncio.run_coroutine_threadsafe(much_happens(), loop).result()
            return take_rest(log)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LogFile, "take_rest", slowly)
            async with stage.daemon() as executions:
                await until(lambda: executions.get(due.id, DEFAULT_TENANT).status == "queued", "the pause's end")
                await much_happens()
                assert list(stage.executor.runs) == [due.id, alive.id]
                run.end(0)
                (await stage.executor.run_of(due, 2)).end(0)
                await over(executions, due)

    play(story)
