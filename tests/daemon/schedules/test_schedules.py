"""Rules, keys and views of schedules, and the commands about them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.executions.fake_runs import ALICE, MALLORY, MELTANO_YML
from tests.daemon.scheduled_stage import Day, ScheduledStage, at_us

from flx_api.daemon.handlers.context import Accepted
from flx_api.daemon.project import Schedule
from flx_api.daemon.schedules.decisions import firing_key
from flx_api.daemon.schedules.times import Rule, UnusableError, next_times, rule_of, spell
from flx_api.errors import Conflict, FlxError, NotFound, ValidationFailed
from flx_api.models.schedule import ScheduleGetArgs, ScheduleListArgs, ScheduleNameArgs, ScheduleRunArgs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

MONDAY_US = at_us("2026-03-02T00:00")
SCHEDULES = """
  {name: nightly, interval: '30 2 * * *', job: a, env: {TAP_A_WORD: s3cret}},
  {name: by-hand, interval: '@once', job: b},
  {name: odd, interval: 'every day', job: b},
  {name: nightly, interval: '@hourly', job: b},
  {name: old, interval: '@hourly', extractor: tap-b, loader: target-x, transform: skip}
"""


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Run a story within one daemon's life, in Berlin."""

    def run(story: Callable[..., Coroutine[Any, Any, None]], **settings: Any) -> None:
        async def staged() -> None:
            stage = ScheduledStage(tmp_path, SCHEDULES, timezone="Europe/Berlin", **settings)
            async with stage.day() as day:
                await story(stage, day)

        asyncio.run(staged())

    return run


def schedule(cron: str, start_date: str | None = None) -> Schedule:
    return Schedule("s", cron, cron, job="a", start_date=start_date)


@pytest.mark.parametrize(
    ("cron", "times"),
    [
        ("0 6 * * fri-mon", ["2026-03-02T06:00:00+00:00", "2026-03-06T06:00:00+00:00"]),
        ("0 6 ? * 5-0", ["2026-03-06T06:00:00+00:00", "2026-03-07T06:00:00+00:00"]),
        ("0 6 * * 7-1", ["2026-03-02T06:00:00+00:00", "2026-03-08T06:00:00+00:00"]),
        ("0 6 L * ?", ["2026-03-31T06:00:00+00:00", "2026-04-30T06:00:00+00:00"]),
        ("0 6 1,15 * Tue", ["2026-03-03T06:00:00+00:00", "2026-03-10T06:00:00+00:00"]),
        ("0 0 29 2 *", ["2028-02-29T00:00:00+00:00", "2032-02-29T00:00:00+00:00"]),
    ],
)
def test_meltanos_spelling_is_understood(cron: str, times: list[str]) -> None:
    rule = rule_of(schedule(cron), "UTC")
    assert rule is not None
    assert times == [spell(moment, "UTC") for moment in next_times(rule, MONDAY_US, 2)]


@pytest.mark.parametrize(
    ("cron", "start_date", "reason"),
    [
        ("* * * *", None, "must have five fields"),
        ("0 0 * * * *", None, "must have five fields"),
        ("@fortnightly", None, "must have five fields"),
        ("61 * * * *", None, "bad minute"),
        ("* * * * x", None, "bad day-of-week"),
        ("0 0 30 2 *", None, "bad day-of-month"),
        ("* * */20 * 1L", None, "never comes true"),
        ("0 6 * * *", "soon", "start_date is no date"),
        ("0 6 * * *", "9999-12-31T23:59", "never comes true"),
    ],
)
def test_what_cannot_fire_says_why(cron: str, start_date: str | None, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason):
        rule_of(schedule(cron, start_date), "UTC")


@pytest.mark.parametrize(
    ("start_date", "first"),
    [
        ("2026-03-05", "2026-03-05T00:00:00+01:00"),
        ("2026-03-05T00:00:01", "2026-03-06T00:00:00+01:00"),
        ("2026-03-05T00:00:00Z", "2026-03-06T00:00:00+01:00"),
        ("2020-01-01", "2026-03-03T00:00:00+01:00"),
    ],
)
def test_nothing_fires_before_its_start_date(start_date: str, first: str) -> None:
    rule = rule_of(schedule("0 0 * * *", start_date), "Europe/Berlin")
    assert rule is not None
    assert first == spell(next_times(rule, MONDAY_US, 1)[0], "Europe/Berlin")


def test_a_schedule_for_people_has_no_rule() -> None:
    assert rule_of(Schedule("s", "@once", None, job="a"), "UTC") is None


def test_lost_and_repeated_hours() -> None:
    """What the head of `times` says, by example."""

    def times(cron: str, after: str, count: int) -> list[str]:
        rule = Rule(cron, "Europe/Berlin")
        return [spell(moment, rule.zone)[5:22] for moment in next_times(rule, at_us(after), count)]

    assert ["03-29T03:00:00+02", "03-30T02:15:00+02"] == times("15 2 * * *", "2026-03-29T00:00", 2)
    assert ["03-29T03:00:00+02", "03-30T02:00:00+02"] == times("0,15,30 2 * * *", "2026-03-29T00:00", 2)
    assert ["10-25T02:15:00+02", "10-26T02:15:00+01"] == times("15 2 * * *", "2026-10-25T00:00", 2)
    assert ["03-29T01:00:00+01", "03-29T03:00:00+02"] == times("0 * * * *", "2026-03-28T23:30", 2)
    assert ["10-25T02:00:00+02", "10-25T02:00:00+01"] == times("0 * * * *", "2026-10-24T23:30", 2)


def test_keys_are_the_name_and_the_fire_time() -> None:
    assert "schedule:nightly:2026-03-02T00:00:00+00:00" == firing_key("nightly", MONDAY_US)
    long = firing_key("n" * 255, MONDAY_US)
    assert len(long) <= 255
    assert long != firing_key("n" * 254 + "m", MONDAY_US)


def test_a_schedule_is_shown_with_its_next_times(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        page = await day.ask("schedule.list", ScheduleListArgs(2))
        assert ("Europe/Berlin", True) == (page.timezone, page.firing)
        assert ["nightly", "by-hand", "odd", "old"] == [item.name for item in page.items]
        nightly, by_hand, odd, old = page.items
        assert ("2026-03-03T02:30:00+01:00", "2026-03-04T02:30:00+01:00") == nightly.next_local
        assert nightly.next_us[0] == at_us("2026-03-03T01:30")
        assert (("TAP_A_WORD",), "a", "a") == (nightly.env, nightly.job, nightly.pipeline)
        assert "s3cret" not in str(page)
        assert (None, (), None) == (by_hand.cron, by_hand.next_us, by_hand.problem)
        assert ((), True) == (odd.next_us, "five fields" in (odd.problem or ""))
        assert ("tap-b", "target-x", "schedule:old") == (old.extractor, old.loader, old.pipeline)
        one = await day.ask("schedule.get", ScheduleGetArgs("nightly", 100))
        assert 100 == len(one.next_us)
        with pytest.raises(NotFound) as caught:
            await day.ask("schedule.get", ScheduleGetArgs("nightli"))
        assert ("nightly",) == tuple(caught.value.suggestions)

    play(story)


def test_what_became_of_it_is_shown(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        await day.look("10:00")
        (run,) = day.runs()
        await day.look("11:00")
        shown = await day.ask("schedule.get", ScheduleGetArgs("old", 0))
        assert (at_us("2026-03-02T10:00"), run.id) == (shown.last_fired_us, shown.last_execution)
        assert (at_us("2026-03-02T11:00"), "already_running") == (shown.last_skipped_us, shown.last_skip_reason)
        assert at_us("2026-03-02T09:00") == shown.last_missed_us

    play(story)


def test_by_hand_it_runs_what_it_would_run(play: Callable[..., None]) -> None:
    """Also one that is disabled, or that nothing ever fires; the firing itself stays as it was."""

    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.ask("schedule.disable", ScheduleNameArgs("nightly"))
        answer = await day.ask("schedule.run", ScheduleRunArgs("nightly"), idempotency_key="k", body_hash="h")
        assert isinstance(answer, Accepted)
        (run,) = day.runs()
        assert ("a", "api", "alice") == (run.pipeline, run.trigger, run.triggered_by)
        spec = (await stage.executor.run_of(run)).spec
        assert {"TAP_A_WORD": "s3cret"} == spec.overrides
        again = await day.ask("schedule.run", ScheduleRunArgs("nightly"), idempotency_key="k", body_hash="h")
        assert (run.id, True) == (again.execution_id, again.replayed)
        # Also when the project has changed since, or cannot be read.
        file = stage.settings.project_dir / "meltano.yml"
        written = file.read_text()
        for changed, code in ((MELTANO_YML, "not_found"), ("jobs: [", "project_invalid"), (written, "")):
            file.write_text(changed)
            again = await day.ask("schedule.run", ScheduleRunArgs("nightly"), idempotency_key="k", body_hash="h")
            assert (run.id, True) == (again.execution_id, again.replayed)
            if code:
                with pytest.raises(FlxError) as refused:
                    await day.ask("schedule.run", ScheduleRunArgs("nightly"))
                assert refused.value.code == code
        with pytest.raises(Conflict):
            await day.ask("schedule.run", ScheduleRunArgs("nightly"))
        with pytest.raises(ValidationFailed):
            await day.ask("schedule.run", ScheduleRunArgs("by-hand", environment="moon"))
        await day.ask("schedule.run", ScheduleRunArgs("by-hand", "full", "prod", 60))
        assert ("full", "prod") == (day.runs()[1].refresh, day.runs()[1].environment)
        assert (await day.ask("schedule.get", ScheduleGetArgs("nightly"))).last_fired_us is None

    play(story)


def test_switching_twice_is_told_once(play: Callable[..., None]) -> None:
    async def story(stage: ScheduledStage, day: Day) -> None:
        for command in ("schedule.enable", "schedule.disable", "schedule.disable", "schedule.enable"):
            await day.ask(command, ScheduleNameArgs("odd"))
        assert [("disabled", "odd"), ("enabled", "odd")] == stage.told()

    play(story)


def test_other_tenants_have_no_schedules(play: Callable[..., None]) -> None:
    """What fires is the default tenant's; nobody else sees it or runs it."""

    async def story(stage: ScheduledStage, day: Day) -> None:
        assert () == (await day.ask("schedule.list", ScheduleListArgs(), MALLORY)).items
        for command, args in (
            ("schedule.get", ScheduleGetArgs("nightly")),
            ("schedule.enable", ScheduleNameArgs("nightly")),
            ("schedule.disable", ScheduleNameArgs("nightly")),
            ("schedule.run", ScheduleRunArgs("nightly")),
        ):
            with pytest.raises(NotFound):
                await day.ask(command, args, MALLORY)
        assert ([], []) == (day.runs(), stage.told())

    play(story)


def test_nobody_can_use_up_a_firings_key(play: Callable[..., None]) -> None:
    """A client that gives the key of a firing, under the very name that fires, has a key of its own."""

    async def story(stage: ScheduledStage, day: Day) -> None:
        await day.look("08:00")
        for subject in ("schedule", "schedule:old", "schedule@scripted"):
            context = {"idempotency_key": firing_key("old", at_us("2026-03-02T09:00")), "body_hash": "h"}
            principal = ALICE.__class__(subject, "default", ("operator",))
            answer = await day.ask("schedule.run", ScheduleRunArgs("old"), principal, **context)
            await day.finish(answer.result)
        await day.look("09:00")
        assert [("fired", "old", "09:00")] == stage.told()

    play(story)


def test_off_is_shown(play: Callable[..., None]) -> None:
    """Whoever wonders why nothing fires finds it in the list."""

    async def story(stage: ScheduledStage, day: Day) -> None:
        assert not (await day.ask("schedule.list", ScheduleListArgs())).firing

    play(story, schedules="off")
