"""Watchers: cursors over the journal and logs."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.daemon_parts import Parts, growing_log, parts, turn
from tests.daemon.executions.fake_runs import ALICE, Stage, over, submit, until

from flx_api._core import Hub
from flx_api.daemon.executions.log_file import LogFile
from flx_api.daemon.watch import BATCH_EVENTS, Pages, Topics, Watcher, log_batches
from flx_api.events.ephemeral_log import EphemeralLog
from flx_api.events.follower import told as told_to_hub
from flx_api.models.event import ExecutionEvent, PipelineEvent
from flx_api.models.topic_rules import Expiry
from flx_api.proto.flx.v1.daemon_pb2 import EventBatch, LogPosition, WatchRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from flx_api.models.execution import Status


def watch(daemon: Parts, *topics: str, tenant: str | None = None, **request: object) -> AsyncIterator[EventBatch]:
    sent = WatchRequest(topics=topics or ("*",), **request)  # type: ignore[arg-type]
    services = daemon.services
    watcher = Watcher(
        sent, services.journal, services.executions, services.ephemeral, tenant=tenant, clock=daemon.clock
    )
    return watcher.batches()


async def emit(daemon: Parts, topic: str = "t", tenant: str = "default", text: str = "p") -> int:
    return await daemon.journal.write(lambda tx: tx.emit(topic, PipelineEvent("created", text, ""), tenant=tenant))


async def emit_status(daemon: Parts, execution: str, status: Status = "running") -> int:
    event = ExecutionEvent(execution, "p", status)
    return await daemon.journal.write(lambda tx: tx.emit(f"execution.{execution}.status", event, tenant="default"))


def new_log(daemon: Parts, folder: Path, execution: str) -> LogFile:
    log = daemon.fake.logs[execution] = LogFile(folder / execution, tenant="default")
    return log


def shown(batch: EventBatch) -> list[tuple[str, int, int]]:
    return [(event.topic, event.seq, event.prev) for event in batch.events]


def test_without_a_position_it_begins_now_and_says_where_that_is(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await emit(daemon)
            batches = watch(daemon)
            first = await anext(batches)
            assert (first.journal_seq, first.epoch, first.gap_reason, shown(first)) == (1, daemon.journal.epoch, "", [])
            await emit(daemon)
            assert shown(await anext(batches)) == [("t", 2, 1)]
            waiting = asyncio.ensure_future(anext(batches))
            await turn()
            assert not waiting.done()
            await emit(daemon, "u")
            assert shown(await waiting) == [("u", 3, 0)]

    asyncio.run(story())


def test_from_a_position_nothing_is_missing_and_batches_are_bounded(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await asyncio.gather(*(emit(daemon) for _ in range(600)))
            batches = watch(daemon, epoch=daemon.journal.epoch, after_seq=10)
            seen: list[int] = []
            sizes: list[int] = []
            while len(seen) < 590:
                batch = await anext(batches)
                seen += [event.seq for event in batch.events]
                sizes.append(len(batch.events))
                assert batch.journal_seq == seen[-1]
            assert seen == list(range(11, 601))
            assert max(sizes) == BATCH_EVENTS
            await emit(daemon, text="x" * 200_000)
            await emit(daemon)
            assert [len((await anext(batches)).events) for _ in range(2)] == [1, 1]

    asyncio.run(story())


def test_what_cannot_be_given_is_told(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await asyncio.gather(*(emit(daemon) for _ in range(10)))
            other = await anext(watch(daemon, epoch="other", after_seq=3))
            assert (other.gap_reason, other.journal_seq, shown(other)) == ("epoch", 10, [])
            ahead = await anext(watch(daemon, epoch=daemon.journal.epoch, after_seq=11))
            assert (ahead.gap_reason, ahead.journal_seq) == ("epoch", 10)
            slow = watch(daemon, after_seq=2)
            assert (await anext(slow)).gap_reason == ""
            await daemon.journal.prune(0, 4)
            gone = await anext(watch(daemon, after_seq=2))
            assert (gone.gap_reason, [seq for _, seq, _ in shown(gone)]) == ("evicted", [7, 8, 9, 10])
            assert (await anext(watch(daemon, after_seq=6))).gap_reason == ""

    asyncio.run(story())


def test_what_the_rule_of_a_topic_has_forgotten_is_told_to_who_would_hear_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            for topic in ("app.a", "app.b", "app.a", "app.b"):
                await emit(daemon, topic)
            await daemon.journal.forget([Expiry("app.a", 2**60)])
            gone = await anext(watch(daemon, "app.*", after_seq=0))
            assert ("evicted", [2, 4], 4) == (gone.gap_reason, [seq for _, seq, _ in shown(gone)], gone.journal_seq)
            other = await anext(watch(daemon, "app.b", after_seq=0))
            assert ("", [2, 4]) == (other.gap_reason, [seq for _, seq, _ in shown(other)])
            assert "" == (await anext(watch(daemon, "app.*", after_seq=3))).gap_reason

    asyncio.run(story())


def test_it_sees_its_topics_and_its_tenant_only(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            for topic in ("pipeline_events", "app.a", "app.b.c", "apple", "system_events"):
                await emit(daemon, topic)
            await emit(daemon, "app.a", "other")
            named = await anext(watch(daemon, "app.*", "system_events", after_seq=0))
            assert [topic for topic, _, _ in shown(named)] == ["app.a", "app.b.c", "system_events", "app.a"]
            mine = await anext(watch(daemon, "app.*", tenant="other", after_seq=0))
            assert (shown(mine), mine.journal_seq) == ([("app.a", 6, 0)], 6)

    asyncio.run(story())


def test_what_is_between_daemon_and_gateways_is_told_to_no_client(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await emit(daemon, "revocation_events")
            await emit(daemon, "t")
            for topics in (["*"], ["revocation_events", "t"]):
                of_client = await anext(watch(daemon, *topics, tenant="default", after_seq=0))
                assert [event.topic for event in of_client.events] == ["t"]
                of_gateway = await anext(watch(daemon, *topics, after_seq=0))
                assert [event.topic for event in of_gateway.events] == ["revocation_events", "t"]

    asyncio.run(story())


def test_a_watcher_that_hears_nothing_is_told_how_far_it_has_come(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            batches = watch(daemon, "nothing")
            await anext(batches)
            waiting = asyncio.ensure_future(anext(batches))
            await asyncio.gather(*(emit(daemon) for _ in range(1500)))
            batch = await waiting
            assert shown(batch) == []
            assert batch.journal_seq >= 1024

    asyncio.run(story())


def test_lines_of_logs_from_named_positions_present_ends_and_first_lines(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            old, named = new_log(daemon, tmp_path, "old"), new_log(daemon, tmp_path, "named")
            with growing_log(tmp_path / "old", old) as to_old, growing_log(tmp_path / "named", named) as to_named:
                to_old(b"1", b"2")
                to_named(b"1", b'{"a": 1}', b"3")
                named.finish()
                batches = watch(daemon, tenant="default", logs=[LogPosition(execution_id="named", after_line=1)])
                first = await anext(batches)
                assert shown(first) == [("execution.named.log", 2, 1), ("execution.named.log", 3, 2)]
                assert [event.data for event in first.events] == [b'{"a": 1}', b'"3"']
                to_old(b"\xff{")
                (line,) = (await anext(batches)).events
                assert (line.topic, line.seq, msgspec.json.decode(line.data)) == ("execution.old.log", 3, "\ufffd{")
                # A new one that is over before anybody looked.
                new = new_log(daemon, tmp_path, "new")
                with growing_log(tmp_path / "new", new) as to_new:
                    to_new(b"a", b"b")
                new.finish()
                await emit_status(daemon, "new")
                seen = [item for _ in range(1) for item in shown(await anext(batches))]
                assert seen == [
                    ("execution.new.status", 1, 0),
                    ("execution.new.log", 1, 0),
                    ("execution.new.log", 2, 1),
                ]

    asyncio.run(story())


def test_a_gateway_that_begins_hears_the_last_line_of_a_quiet_log_and_has_it_in_its_positions(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            quiet, empty = new_log(daemon, tmp_path, "quiet"), new_log(daemon, tmp_path, "empty")
            with growing_log(tmp_path / "quiet", quiet) as to_quiet, growing_log(tmp_path / "empty", empty):
                to_quiet(b"1", b"2")
                first = await anext(watch(daemon))
                assert shown(first) == [("execution.quiet.log", 2, 1)]
                hub = Hub("here")
                hub.restart(first.epoch, first.journal_seq, "start", 0)
                hub.append(told_to_hub(first.events), 0)
                assert hub.position() == (daemon.journal.epoch, 0, {"quiet": 2})
                # Who has a position names what it has.
                again = watch(daemon, epoch=daemon.journal.epoch, after_seq=0)
                assert shown(await anext(again)) == []

    asyncio.run(story())


def test_logs_of_topics_or_tenants_that_do_not_concern_it_are_not_followed(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            log = new_log(daemon, tmp_path, "e")
            with growing_log(tmp_path / "e", log) as write:
                status = watch(daemon, "execution.e.status", after_seq=0)
                other = watch(daemon, tenant="other", after_seq=0)
                assert shown(await anext(status)) == shown(await anext(other)) == []
                write(b"line")
                waits = [asyncio.ensure_future(anext(batches)) for batches in (status, other)]
                await turn()
                assert not any(wait.done() for wait in waits)
                await emit_status(daemon, "e")
                assert shown(await waits[0]) == [("execution.e.status", 1, 0)]
                waits[1].cancel()
                await asyncio.gather(*waits, return_exceptions=True)

    asyncio.run(story())


NAMES = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(".".join)
PATTERNS = st.lists(NAMES | NAMES.map(lambda name: name + ".*") | st.just("*"), max_size=3)


@given(PATTERNS, NAMES)
def test_topics_like_a_naive_matcher(patterns: list[str], topic: str) -> None:
    def naive(pattern: str) -> bool:
        if pattern == "*":
            return True
        words, name = pattern.split("."), topic.split(".")
        return name[: len(words) - 1] == words[:-1] and len(name) >= len(words) if words[-1] == "*" else name == words

    assert Topics(patterns).match(topic) == any(naive(pattern) for pattern in patterns)


def test_a_log_that_is_over_is_not_given_again_while_its_run_is_written_down(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            log = new_log(daemon, tmp_path, "run")
            daemon.fake.active_logs = lambda: ("run",)  # type: ignore[method-assign]
            with growing_log(tmp_path / "run", log) as to_run:
                batches = watch(daemon)
                await anext(batches)
                to_run(b"one", b"two")
                log.finish()
                assert [line for _, line, _ in shown(await anext(batches))] == [1, 2]
                await emit(daemon)
                assert shown(await anext(batches)) == [("t", 1, 0)]

    asyncio.run(story())


def test_events_that_vanish_before_anybody_is_told_are_a_gap(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            for _ in range(3):
                await emit(daemon)
            real = daemon.journal.events_after
            # Retention has committed, and the loop has not heard of it yet.
            daemon.journal.events_after = lambda seq, limit: real(max(seq, 2), limit)  # type: ignore[method-assign]
            batches = watch(daemon, epoch=daemon.journal.epoch, after_seq=1)
            first = await anext(batches)
            assert (first.gap_reason, shown(first)) == ("evicted", [("t", 3, 2)])

    asyncio.run(story())


def test_a_log_that_floods_does_not_keep_the_others_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            flood, quiet = new_log(daemon, tmp_path, "flood"), new_log(daemon, tmp_path, "quiet")
            with growing_log(tmp_path / "flood", flood) as to_flood, growing_log(tmp_path / "quiet", quiet) as to_quiet:
                batches = watch(daemon)
                await anext(batches)
                to_flood(*[b"x"] * (3 * BATCH_EVENTS))
                to_quiet(b"one")
                topics = [{topic for topic, _, _ in shown(await anext(batches))} for _ in range(2)]
                assert topics == [{"execution.flood.log"}, {"execution.flood.log", "execution.quiet.log"}]

    asyncio.run(story())


def test_an_execution_that_waited_when_the_watcher_came_is_given_from_its_first_line(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await emit_status(daemon, "waiting")
            log = new_log(daemon, tmp_path, "waiting")
            daemon.fake.active_logs = tuple  # type: ignore[method-assign]
            daemon.fake.queued.append("waiting")
            batches = watch(daemon)
            await anext(batches)
            daemon.fake.queued.clear()
            # It begins and ends before anybody looks again.
            with growing_log(tmp_path / "waiting", log) as write:
                write(b"a", b"b")
            log.finish()
            await emit_status(daemon, "waiting")
            assert shown(await anext(batches)) == [
                ("execution.waiting.status", 2, 1),
                ("execution.waiting.log", 1, 0),
                ("execution.waiting.log", 2, 1),
            ]

    asyncio.run(story())


def test_an_execution_that_is_tried_again_goes_on_where_its_log_ended(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            log = new_log(daemon, tmp_path, "e")
            batches = watch(daemon)
            await anext(batches)
            await emit_status(daemon, "e")
            with growing_log(tmp_path / "e", log) as write:
                write(b"{}", b"{}")
            log.finish()
            given = shown(await anext(batches))
            assert [place[:2] for place in given if place[0].endswith(".log")] == [
                ("execution.e.log", 1), ("execution.e.log", 2),
            ]  # fmt: skip
            # Its end was given; by hand there is another attempt, told before memory knows of it.
            waiting = asyncio.ensure_future(anext(batches))
            await turn()
            daemon.fake.behind["e"] = again = LogFile(tmp_path / "e2", tenant="default", earlier=[tmp_path / "e"])
            await emit_status(daemon, "e", "queued")
            found = shown(await waiting)
            with growing_log(tmp_path / "e2", again) as write:
                write(b"{}")
            again.finish()
            while not any(place[0].endswith(".log") for place in found):
                found += shown(await anext(batches))
            assert [place for place in found if place[0].endswith(".log")] == [("execution.e.log", 3, 2)]

    asyncio.run(story())


def test_an_attempt_by_hand_is_followed_as_it_goes_and_what_was_given_is_not_given_again(tmp_path: Path) -> None:
    async def story() -> None:
        stage = Stage(tmp_path)
        async with stage.daemon() as executions:
            ephemeral = EphemeralLog("ephemeral", stage.clock)
            watcher = Watcher(
                WatchRequest(topics=["*"]), stage.journal, executions, ephemeral, tenant=None, clock=stage.clock
            )
            lines: list[tuple[int, str]] = []

            async def follow() -> None:
                async for batch in watcher.batches():
                    told = [event for event in batch.events if event.topic.endswith(".log")]
                    lines.extend((event.seq, msgspec.json.decode(event.data)["event"]) for event in told)

            following = asyncio.create_task(follow())
            accepted = await submit(executions, "a")
            first = await stage.executor.run_of(accepted)
            first.say("one", "two")
            first.end(1)
            await over(executions, accepted)
            await until(lambda: len(lines) == 2, "the first attempt's lines")
            await executions.retry(accepted.id, ALICE)
            second = await stage.executor.run_of(accepted, 2)
            second.say("three")
            await until(lambda: len(lines) > 2, "a line of a run that goes on")
            second.say("four")
            second.end(0)
            await over(executions, accepted)
            await until(lambda: len(lines) >= 4, "the last line")
            assert lines == [(1, "one"), (2, "two"), (3, "three"), (4, "four")]
            # Who reads the same from old events is given the last attempt, and the index is kept.
            kept = executions.log(accepted.id)
            executions.renew_log(accepted.id)
            assert executions.log(accepted.id) is kept
            following.cancel()

    asyncio.run(story())


def told(batch: EventBatch) -> list[bytes]:
    return [event.data for event in batch.ephemeral]


def test_ephemeral_events_come_where_they_were_asked_for(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            log = daemon.services.ephemeral
            log.append("default", "app.x", b"0")
            asked, one_tenant = watch(daemon, ephemeral=True), watch(daemon, "app.x", tenant="other", ephemeral=True)
            not_asked = watch(daemon)
            first = await anext(asked)
            assert (("ephemeral", 1, ""), []) == (
                (first.ephemeral_epoch, first.ephemeral_seq, first.ephemeral_gap_reason),
                told(first),
            )
            assert "" == (await anext(not_asked)).ephemeral_epoch
            await anext(one_tenant)
            nothing = asyncio.ensure_future(anext(not_asked))
            for number, tenant in enumerate(["default", "other"]):
                log.append(tenant, "app.x", b"%d" % number)
            assert [b"0", b"1"] == told(await anext(asked))
            assert [b"1"] == told(await anext(one_tenant))
            await turn()
            assert not nothing.done()
            nothing.cancel()
            await asyncio.gather(nothing, return_exceptions=True)

    asyncio.run(story())


def test_ephemeral_events_go_on_from_a_number_or_are_said_to_be_lost(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            log = daemon.services.ephemeral
            for number in range(600):
                log.append("default", "app.x", b"%d" % number)
            batches = watch(daemon, ephemeral=True, ephemeral_epoch="ephemeral", ephemeral_after=10)
            found: list[bytes] = []
            while len(found) < 590:
                batch = await anext(batches)
                assert "" == batch.ephemeral_gap_reason
                found += told(batch)
            assert [b"%d" % number for number in range(10, 600)] == found
            other = await anext(watch(daemon, ephemeral=True, ephemeral_epoch="gone", ephemeral_after=10))
            assert ("epoch", []) == (other.ephemeral_gap_reason, told(other))
            slow = watch(daemon, ephemeral=True)
            await anext(slow)
            for _ in range(10_000):
                log.append("default", "app.x", b"1")
            behind = await anext(slow)
            assert ("evicted", []) == (behind.ephemeral_gap_reason, told(behind))

    asyncio.run(story())


def test_watchers_at_the_same_line_read_it_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            log = new_log(daemon, tmp_path, "e1")
            services, pages, looked = daemon.services, Pages(), []
            lines = log.lines

            def looking(*asked: int) -> list[bytes]:
                looked.append(asked)
                return lines(*asked)

            log.lines = looking  # type: ignore[assignment, method-assign]
            watchers = [
                Watcher(
                    WatchRequest(topics=["*"]),
                    services.journal,
                    services.executions,
                    services.ephemeral,
                    tenant=None,
                    clock=daemon.clock,
                    pages=pages,
                ).batches()
                for _ in range(3)
            ]
            for batches in watchers:
                await anext(batches)
            for number in range(1, 4):
                with log.path.open("ab") as file:
                    file.write(b"line %d\n" % number)
                log.advance()
                told = [list((await anext(batches)).events) for batches in watchers]
                assert told[0] == told[1] == told[2]
                assert [(event.seq, event.data) for event in told[0]] == [(number, b'"line %d"' % number)]
            assert len(looked) == 3

    asyncio.run(story())


async def followed(daemon: Parts, folder: Path) -> tuple[LogFile, AsyncIterator[EventBatch]]:
    """An empty log and who follows it; it fails who asks again and again for lines without waiting for anything."""
    log = new_log(daemon, folder, "e1")
    lines, asked = log.lines, []

    def counted(*wanted: int) -> list[bytes]:
        asked.append(wanted)
        assert len(asked) < 20
        return lines(*wanted)

    log.lines = counted  # type: ignore[assignment, method-assign]
    batches = watch(daemon)
    await anext(batches)
    return log, batches


def test_lines_that_cannot_be_read_are_looked_at_again_when_there_is_news(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            log, batches = await followed(daemon, tmp_path)
            alone = log_batches(log, 1, 0, follow=True)
            with growing_log(log.path, log) as write:
                write(b"one")
                away = log.path.rename(tmp_path / "away")
                waiting = [asyncio.ensure_future(anext(each)) for each in (batches, alone)]
                await turn()
                assert not any(one.done() for one in waiting)
                away.rename(log.path)
                write(b"two")
                assert [("execution.e1.log", 1, 0), ("execution.e1.log", 2, 1)] == shown(await waiting[0])
                assert [b"one", b"two"] == list((await waiting[1]).lines)

    asyncio.run(story())


def test_lines_that_are_gone_with_their_run_are_a_gap(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            log, batches = await followed(daemon, tmp_path)
            with growing_log(log.path, log) as write:
                write(b"one")
                log.path.unlink()
                log.finish()
                assert ("evicted", []) == ((told := await anext(batches)).gap_reason, shown(told))
                assert [] == [batch async for batch in log_batches(log, 1, 0, follow=True)]
                await emit(daemon)
                assert [("t", 1, 0)] == shown(await anext(batches))

    asyncio.run(story())


def test_lines_of_an_attempt_whose_file_is_gone_are_passed_over(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            log, batches = await followed(daemon, tmp_path)
            with growing_log(log.path, log) as write:
                write(b"one", b"two")
            log.path.unlink()
            log.continue_in(tmp_path / "second")
            with growing_log(log.path, log) as write:
                write(b"three")
                told = await anext(batches)
                assert "evicted" == told.gap_reason
                assert [("execution.e1.log", 3, 2)] == (shown(told) or shown(await anext(batches)))

    asyncio.run(story())


def test_logs_of_old_are_counted_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = LogFile._index

    def elsewhere(log: LogFile, until: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        index(log, until)

    async def story() -> None:
        async with parts(tmp_path) as daemon:
            for name in ("e1", "e2"):
                (tmp_path / name).write_bytes(b"line\n" * (BATCH_EVENTS + 50))
                daemon.fake.logs[name] = LogFile(tmp_path / name, tenant="default", complete=True)
            named = [LogPosition(execution_id=name, after_line=0) for name in ("e1", "e2")]
            monkeypatch.setattr(LogFile, "_index", elsewhere)
            batches, lines = watch(daemon, logs=named), 0
            while lines < 2 * (BATCH_EVENTS + 50):
                lines += len((await anext(batches)).events)

    asyncio.run(story())
