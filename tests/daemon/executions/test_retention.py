"""Which run folders go, and which events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.executions.retention import RunLog, expired, remove, survey, with_ends
from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.models.event import SystemEvent
from flx_api.models.topic_rules import TopicRule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.daemon.executions.fake_runs import Stage

DAY_US = 86_400_000_000
MIB = 1024 * 1024


def test_what_is_too_old_goes_whatever_its_size() -> None:
    logs = [RunLog("new", 9 * DAY_US, 0), RunLog("old", 1 * DAY_US, 0)]
    assert expired(logs, 10 * DAY_US, 5, 1000) == ["old"]


def test_beyond_the_size_the_oldest_go_first() -> None:
    logs = [RunLog(str(day), day * DAY_US, MIB) for day in (3, 1, 2)]
    assert expired(logs, 4 * DAY_US, 30, 2) == ["1"]
    assert expired(logs, 4 * DAY_US, 30, 1) == ["1", "2"]


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 5)), max_size=20),
    st.integers(1, 50),
    st.integers(1, 20),
)
def test_what_stays_is_within_both_limits_and_is_the_newest(found: list[tuple[int, int]], days: int, mib: int) -> None:
    logs = [RunLog(f"{number:03}", day * DAY_US, size * MIB) for number, (day, size) in enumerate(found)]
    gone = set(expired(logs, 100 * DAY_US, days, mib))
    stays = [log for log in logs if log.attempt_id not in gone]
    assert sum(log.size for log in stays) <= mib * MIB
    assert all(log.finished_us >= (100 - days) * DAY_US for log in stays)
    oldest = min((log.finished_us for log in stays), default=101 * DAY_US)
    assert all(log.finished_us <= oldest for log in logs if log.attempt_id in gone)


def test_the_survey_leaves_out_what_goes_on_and_links(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "big").write_bytes(b"x" * 1000)
    runs = tmp_path / "runs"
    for name in ("over", "active", "unknown"):
        (runs / name / "meter").mkdir(parents=True)
        (runs / name / "log.jsonl").write_bytes(b"x" * 10)
        (runs / name / "meter" / "000.jsonl").write_bytes(b"x" * 5)
        (runs / name / "sys").mkdir()
        (runs / name / "sys" / "link").symlink_to(elsewhere)
    found = {log.attempt_id: log for log in with_ends(survey(runs), {"over": 7, "active": None})}
    assert found["over"] == RunLog("over", 7, 15)
    assert set(found) == {"over", "unknown"}
    remove(runs, ["over"])
    assert sorted(path.name for path in runs.iterdir()) == ["active", "unknown"]
    assert (elsewhere / "big").exists()
    assert survey(tmp_path / "absent") == []


async def tell(stage: Stage, topic: str) -> None:
    event = SystemEvent("started", "x")
    await stage.journal.write(lambda tx: tx.emit(topic, event, tenant=DEFAULT_TENANT))


def test_events_of_a_topic_go_when_its_rule_says_so(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            for topic in ("app.short.x", "app.long"):
                await tell(stage, topic)
            stage.clock.now_us += 2 * 3_600_000_000
            await tell(stage, "app.short.x")
            await executions.retain()
            kept = {row.seq: row.topic for row in stage.journal.events_after(0, 9) if row.data}
            assert {2: "app.long", 3: "app.short.x", 4: "system_events"} == kept
            assert "Removed 0 run logs and 1 events." == stage.events("system_events")[-1]["message"]

    play(story, topics=(TopicRule("app.short.*", retention_h=1), TopicRule("app.*")))
