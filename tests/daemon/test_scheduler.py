"""Firing: once for each time, never in a storm, never lost without a word. Runs are played by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import select
from tests.daemon.executions.fake_runs import ALICE, StorageFault, over, until
from tests.daemon.scheduled_stage import Day, ScheduledStage, at_us

from flx_api.daemon.journal.tables import events as told
from flx_api.daemon.journal.tables import executions, idempotency
from flx_api.daemon.scheduler import Scheduler
from flx_api.errors import Internal, ProjectInvalid, Unavailable
from flx_api.models.pipeline import PipelineRunArgs
from flx_api.models.schedule import ScheduleNameArgs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

HOURLY = "{name: hourly, interval: '@hourly', job: a}"


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Run a story within one daemon's life."""

    def run(story: Callable[..., Coroutine[Any, Any, None]], schedules: str = HOURLY, **settings: Any) -> None:
        async def staged() -> None:
            stage = ScheduledStage(tmp_path, schedules, **settings)
            async with stage.day() as day:
                await story(stage, day)

        asyncio.run(staged())

    return run


def test_a_firing_is_one_run_however_often_it_is_looked_at(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        assert at_us("2026-03-02T09:00") == await day.look("08:00")
        assert [] == day.runs()
        assert at_us("2026-03-02T09:00") == await day.look("08:59:59.999")
        assert at_us("2026-03-02T10:00") == await day.look("09:00")
        await day.look()
        await day.look("09:30")
        (run,) = day.runs()
        assert ("a", "schedule", "schedule:hourly") == (run.pipeline, run.trigger, run.triggered_by)
        (event,) = stage.events("schedule_events")
        assert {
            "type": "fired",
            "schedule": "hourly",
            "fire_us": at_us("2026-03-02T09:00"),
            "execution": run.id,
        } == event
        assert "succeeded" == (await day.finish(run)).status
        await day.look("10:00:00.5")
        assert 2 == len(day.runs())

    play(story)


def test_key_run_and_events_are_one_transaction(play: Callable[..., None]) -> None:
    """Whatever of it fails, nothing of it is there; once storage is well again, all is."""

    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        execute, seq = stage.journal.write, stage.journal.seq

        async def full(change: Callable[[Any], Any]) -> Any:
            def then_the_disk_is_full(tx: Any) -> Any:
                made = change(tx)
                # Others write too (housekeeping); and once only: what is tried at once after it must not take it for a
                # refusal of the run.
                if not any(row.topic == "schedule_events" for row in tx.emitted):
                    return made
                stage.journal.write = execute  # type: ignore[method-assign]
                raise StorageFault

            return await execute(then_the_disk_is_full)

        for time in ("09:00", "09:00:01"):
            stage.journal.write = full  # type: ignore[assignment, method-assign]
            with pytest.raises(Unavailable):
                await day.look(time)
        assert ([], seq) == (day.runs(), stage.journal.seq)
        await day.look("09:00:02")
        with stage.journal.read() as connection:
            (key,) = connection.execute(select(idempotency.c.key, idempotency.c.execution_id)).all()
        (run,) = day.runs()
        assert ("schedule:hourly:2026-03-02T09:00:00+00:00", run.id) == tuple(key)
        assert [("fired", "hourly", "09:00")] == stage.told()

    play(story)


def test_a_pipeline_that_is_not_over_is_skipped(play: Callable[..., None]) -> None:
    """Said once, and not made up for when the run is over."""

    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        (by_hand, _) = await day.executions.submit(PipelineRunArgs("a"), ALICE)
        await day.look("09:00")
        await day.finish(by_hand)
        await day.look("09:00:10")
        assert 1 == len(day.runs())
        (event,) = stage.events("schedule_events")
        assert ("skipped", "already_running") == (event["type"], event["reason"])
        await day.look("10:00")
        assert [("skipped", "hourly", "09:00"), ("fired", "hourly", "10:00")] == stage.told()

    play(story)


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        ("{name: s, interval: '@hourly', job: nowhere}", "not_found"),
        ("{name: s, interval: '@hourly', job: broken}", "validation_failed"),
        (
            "{name: s, interval: '@hourly', extractor: tap-q, loader: target-x, transform: skip}",
            "validation_failed",
        ),
        ("{name: s, interval: '@hourly', job: a, env: {MELTANO_ENVIRONMENT: moon}}", "validation_failed"),
    ],
)
def test_what_cannot_be_run_is_skipped_with_its_reason(play: Callable[..., None], schedule: str, reason: str) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        await day.look("09:00")
        (event,) = stage.events("schedule_events")
        assert ("skipped", reason) == (event["type"], event["reason"])
        assert event["detail"]

    play(story, schedule)


def test_after_an_absence_the_newest_runs_and_the_others_are_told(tmp_path: Path) -> None:
    async def story() -> None:
        stage = ScheduledStage(tmp_path, HOURLY + ", {name: seldom, interval: '30 10 * * *', job: b}")
        async with stage.day() as day:
            await day.look("08:00")
        async with stage.day() as day:
            await day.look("12:20")
            assert ["a"] == [run.pipeline for run in day.runs()]
            assert [("missed", "hourly", "11:00"), ("fired", "hourly", "12:00"), ("missed", "seldom", "10:30")] == (
                stage.told()
            )
            missed, _, other = stage.events("schedule_events")
            assert (3, at_us("2026-03-02T09:00")) == (missed["firings"], missed["first_us"])
            assert 1 == other["firings"]
        async with stage.day() as day:
            await day.look("12:21")
            assert 3 == len(stage.told())

    asyncio.run(story())


def test_the_grace_is_a_setting(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        await day.look("09:00:11")
        await day.look("10:00:09")
        assert [("missed", "hourly", "09:00"), ("fired", "hourly", "10:00")] == stage.told()

    play(story, schedule_grace_s=10)


def test_a_clock_that_is_put_back_fires_nothing_again(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        await day.look("09:00")
        await day.finish(day.runs()[0])
        await day.look("08:30")
        await day.look("09:00")
        await day.look("09:01")
        assert [("fired", "hourly", "09:00")] == stage.told()
        # Two hours ahead by mistake: what was missed then comes in its own time.
        await day.look("11:59")
        assert [("missed", "hourly", "10:00"), ("fired", "hourly", "11:00")] == stage.told()[1:]
        await day.finish(day.runs()[1])
        await day.look("09:59")
        await day.look("10:00")
        await day.finish(day.runs()[2])
        await day.look("11:00")
        assert [("fired", "hourly", "10:00")] == stage.told()[3:]

    play(story)


def test_a_skipped_firing_is_not_made_up_for_by_the_clock(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        (by_hand, _) = await day.executions.submit(PipelineRunArgs("a"), ALICE)
        await day.look("09:00")
        await day.finish(by_hand)
        await day.look("08:30")
        await day.look("09:00")
        assert [("skipped", "hourly", "09:00")] == stage.told()

    play(story)


def test_edits_of_the_project_count_from_when_they_are_seen(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        stage.write("{name: hourly, interval: '30 8-9 * * *', job: a}, {name: new, interval: '5 * * * *', job: b}")
        assert at_us("2026-03-02T09:05") == await day.look("08:45")
        await day.look("09:30")
        assert [("fired", "hourly", "09:30"), ("fired", "new", "09:05")] == stage.told()
        await day.finish(day.runs()[0])
        # Gone for a while: what was not in the project was not missed.
        stage.write("{name: new, interval: '5 * * * *', job: b}")
        await day.look("09:31")
        stage.write(HOURLY)
        await day.look("14:30")
        await day.look("15:00")
        assert [("fired", "hourly", "15:00")] == stage.told()[2:]

    play(story)


def test_a_broken_project_is_waited_for(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        stage.write(HOURLY, "jobs: 3\n")
        with pytest.raises(ProjectInvalid):
            await day.look("09:00")
        stage.write(HOURLY)
        await day.look("10:10")
        assert [("missed", "hourly", "09:00"), ("fired", "hourly", "10:00")] == stage.told()

    play(story)


def test_a_project_that_breaks_between_look_and_firing_is_waited_for(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        submit = day.executions.submit

        async def late(*args: Any, **options: Any) -> Any:
            stage.write(HOURLY, "jobs: 3\n")
            return await submit(*args, **options)

        day.executions.submit = late  # type: ignore[method-assign]
        with pytest.raises(ProjectInvalid):
            await day.look("09:00")
        day.executions.submit = submit  # type: ignore[method-assign]
        stage.write(HOURLY)
        await day.look("09:00:05")
        assert [("fired", "hourly", "09:00")] == stage.told()

    play(story)


def test_a_disabled_schedule_neither_fires_nor_misses(tmp_path: Path) -> None:
    async def story() -> None:
        stage = ScheduledStage(tmp_path, HOURLY)
        async with stage.day() as day:
            await day.look("08:00")
            stage.set("08:30")
            assert not (await day.ask("schedule.disable", ScheduleNameArgs("hourly"))).enabled
            assert await day.look("09:00") is None
        async with stage.day() as day:
            await day.look("10:30")
            stage.set("10:59:59.9")
            shown = await day.ask("schedule.enable", ScheduleNameArgs("hourly"))
            assert (True, at_us("2026-03-02T11:00")) == (shown.enabled, shown.next_us[0])
            await day.look("11:00:01")
            assert [("disabled", "hourly"), ("enabled", "hourly"), ("fired", "hourly", "11:00")] == stage.told()
            assert "alice" == stage.events("schedule_events")[0]["by"]

    asyncio.run(story())


def test_disabling_between_look_and_firing_wins(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        stage.set("09:00")
        submit = day.executions.submit

        async def late(*args: Any, **options: Any) -> Any:
            await day.ask("schedule.disable", ScheduleNameArgs("hourly"))
            return await submit(*args, **options)

        day.executions.submit = late  # type: ignore[method-assign]
        await day.look()
        assert ([], [("disabled", "hourly")]) == (day.runs(), stage.told())

    play(story)


def test_a_fault_at_one_schedule_keeps_no_other_from_firing(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        stage.set("09:00")
        submit = day.executions.submit

        async def faulty(*args: Any, **options: Any) -> Any:
            if options["schedule"] == "bad":
                raise KeyError
            return await submit(*args, **options)

        day.executions.submit = faulty  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(KeyError):
                await day.look()
        assert [("fired", "hourly", "09:00")] == stage.told()
        day.executions.submit = submit  # type: ignore[method-assign]
        await day.finish(day.runs()[0])
        await day.look()
        assert [("fired", "hourly", "09:00"), ("fired", "bad", "09:00")] == stage.told()

    play(story, "{name: bad, interval: '@hourly', job: a}, " + HOURLY)


def test_two_schedulers_fire_once(play: Callable[..., None]) -> None:
    """At the same moment, over the same database."""

    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        other = Scheduler(stage.journal, stage.projects, day.executions, stage.settings, stage.clock)
        for hour in range(9, 14):
            stage.set(f"{hour:02}:00")
            await asyncio.gather(day.scheduler.consider(), other.consider(), day.scheduler.consider())
            await day.finish(day.runs()[-1])
        assert 5 == len(day.runs())
        assert [("fired", "hourly", f"{hour:02}:00") for hour in range(9, 14)] == stage.told()

    play(story)


def test_two_daemons_on_one_database_fire_once(tmp_path: Path) -> None:
    """Each with a connection of its own. Whose write comes second finds that it was overtaken."""

    async def story() -> None:
        stage = ScheduledStage(tmp_path, HOURLY)
        async with stage.day() as first:
            await first.look("08:00")
            async with stage.day() as second:
                for hour in range(9, 14):
                    stage.set(f"{hour:02}:00")
                    looks = [day.scheduler.consider() for day in (first, second, first, second)]
                    # Only one of them knows the numbers of the newest events: the other one fails to write any.
                    for fault in await asyncio.gather(*looks, return_exceptions=True):
                        assert isinstance(fault, (int, Internal))
        async with stage.day():
            with stage.journal.read() as connection:
                found = connection.execute(select(idempotency.c.key, idempotency.c.result)).all()
                events = connection.execute(select(told.c.data).where(told.c.topic == "schedule_events")).all()
                runs = connection.execute(select(executions.c.id)).all()
        # The run is not over, so what comes after the first one is skipped: each time is decided about once.
        assert [f"schedule:hourly:2026-03-02T{hour:02}:00:00+00:00" for hour in range(9, 14)] == [
            row.key for row in found
        ]
        assert [row.result for row in found] == [row.data for row in events]
        assert 1 == len(runs)

    asyncio.run(story())


def test_a_daemon_that_ends_at_the_moment_of_firing_has_fired_or_not(tmp_path: Path) -> None:
    """The next one looks at the same moment, and the run that was accepted is the next one's to start."""

    async def story() -> None:
        stage = ScheduledStage(tmp_path, HOURLY)
        async with stage.day() as day:
            await day.look("08:00")
            stage.executor.gate.clear()
            await day.look("09:00")
        async with stage.day() as day:
            await day.look("09:00:00.1")
            stage.executor.gate.set()
            (run,) = day.runs()
            assert "succeeded" == (await day.finish(run)).status
            assert [("fired", "hourly", "09:00")] == stage.told()

    asyncio.run(story())


def test_the_old_form_is_an_elt_run_with_the_schedules_state_and_variables(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        await day.look("09:00")
        (execution,) = day.runs()
        assert ("schedule:old", ("old",)) == (execution.pipeline, execution.state_ids)
        assert ("prod", "full") == (execution.environment, execution.refresh)
        run = await stage.executor.run_of(execution)
        assert run.spec.elt is not None
        assert ("old", "run") == (run.spec.elt.state_id, run.spec.elt.transform)
        assert ("tap-a", "target-x") == run.spec.blocks
        assert {"MELTANO_ENVIRONMENT": "prod", "MELTANO_RUN_FULL_REFRESH": "true", "WORD": "s3cret", "N": "1"} == (
            run.spec.overrides
        )
        # Values may be secrets: no row and no event holds them.
        assert b"s3cret" not in b"".join(file.read_bytes() for file in stage.settings.data_path.glob("flx.db*"))
        assert "succeeded" == (await day.finish(execution)).status

    variables = "env: {MELTANO_ENVIRONMENT: prod, MELTANO_RUN_FULL_REFRESH: true, WORD: s3cret, N: 1}"
    play(
        story,
        f"{{name: old, interval: '@hourly', extractor: tap-a, loader: target-x, transform: run, {variables}}}",
    )


def test_the_suffix_of_a_schedules_variables_is_that_of_its_state_ids(play: Callable[..., None]) -> None:
    """What is shown, locked and looked up is what the run reads and writes."""

    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        await day.look("09:00")
        (execution,) = day.runs()
        assert ("dev:tap-a-to-target-x:nightly",) == execution.state_ids
        run = await stage.executor.run_of(execution)
        assert "nightly" == run.spec.state_id_suffix
        assert "succeeded" == (await day.finish(execution)).status

    play(story, "{name: hourly, interval: '@hourly', job: a, env: {MELTANO_RUN_STATE_ID_SUFFIX: nightly}}")


def test_a_run_whose_schedule_is_gone_does_not_start_without_its_variables(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        (other, _) = await day.executions.submit(PipelineRunArgs("a-again"), ALICE)
        await stage.executor.run_of(other)
        await day.look("08:00")
        await day.look("09:00")
        execution = day.runs()[-1]
        stage.write("")
        await day.finish(other)
        ended = await over(day.executions, execution)
        assert "failed" == ended.status
        assert "could not be started" in (ended.error or "")

    play(story, "{name: hourly, interval: '@hourly', job: a, env: {A: b}}")


def test_off_means_that_nothing_fires_and_nothing_is_missed(tmp_path: Path) -> None:
    async def story() -> None:
        stage = ScheduledStage(tmp_path, HOURLY)
        for switch, time in (("on", "08:00"), ("off", "12:00"), ("on", "12:10")):
            stage.settings = msgspec.structs.replace(stage.settings, schedules=switch)
            async with stage.day() as day:
                stage.set(time)
                if switch == "off":
                    await day.scheduler.run()
                else:
                    await day.look()
        assert [] == stage.told()
        async with stage.day() as day:
            await day.look("13:00")
        assert [("fired", "hourly", "13:00")] == stage.told()

    asyncio.run(story())


def test_it_runs_by_itself_until_it_is_closed(play: Callable[..., None]) -> None:
    """The loop looks when it is time, and once it is closed nothing fires any more."""

    async def story(stage: ScheduledStage, day: Day) -> None:
        scheduler = Scheduler(stage.journal, stage.projects, day.executions, stage.settings, stage.clock, poll_s=0.001)
        scheduler.start()
        await until(lambda: stage.clock.now_us > at_us("2026-03-02T08:00:00") + 20, "a few looks")
        stage.set("09:00")
        await until(stage.told, "a firing")
        await day.finish(day.runs()[0])
        stage.write(HOURLY, "jobs: 3\n")
        stage.set("10:00")
        await until(lambda: stage.clock.now_us > at_us("2026-03-02T10:00:00") + 20, "looks at a broken project")
        stage.write(HOURLY)
        await until(lambda: len(stage.told()) > 1, "a firing after that")
        await scheduler.close()
        await day.finish(day.runs()[1])
        stage.set("11:00")
        assert [("fired", "hourly", "09:00"), ("fired", "hourly", "10:00")] == stage.told()

    play(story)
