"""Logs that are followed, and those that were read lately, on a real journal with runs played by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest
from tests.daemon.executions.fake_runs import ALICE, Stage, over, submit

from flx_api.daemon.executions import open_logs
from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.errors import NotFound
from flx_api.models.execution import ExecutionListArgs, ExecutionLogsArgs

if TYPE_CHECKING:
    from collections.abc import Callable


def test_the_log_is_followed_line_by_line_from_before_its_beginning(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            log = executions.log(accepted.id)
            assert not log.complete
            run = await stage.executor.run_of(accepted)
            assert accepted.id in executions.active_logs()
            run.say("one")
            await log.changed(0)
            assert [msgspec.json.decode(line)["event"] for line in log.lines(1, 9)] == ["one"]
            page = await executions.logs(ExecutionLogsArgs(accepted.id), DEFAULT_TENANT)
            assert (page.next_line, page.complete) == (2, False)
            run.say("two", "three")
            with (run.folder / "log.jsonl").open("a") as file:
                file.write("no end")
            await log.changed(1)
            run.end(0)
            await over(executions, accepted)
            assert executions.log(accepted.id).complete
            assert log.last_line == 4
            page = await executions.logs(ExecutionLogsArgs(accepted.id, 2, 2), DEFAULT_TENANT)
            assert (page.first_line, len(page.lines), page.next_line, page.complete) == (2, 2, 4, False)
            page = await executions.logs(ExecutionLogsArgs(accepted.id, 4), DEFAULT_TENANT)
            assert (page.lines, page.complete) == (("no end",), True)
            assert executions.log(accepted.id) is log
            with pytest.raises(NotFound):
                await executions.logs(ExecutionLogsArgs(accepted.id), "other")

    play(story)


def test_readers_of_a_waiting_execution_are_told_when_it_is_cancelled(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            await submit(executions, "a")
            waiting = await submit(executions, "a-again")
            reader = asyncio.create_task(executions.log(waiting.id).changed(0))
            await executions.cancel(waiting.id, "", ALICE)
            await reader
            assert executions.log(waiting.id).complete
            page = await executions.logs(ExecutionLogsArgs(waiting.id), DEFAULT_TENANT)
            assert (page.lines, page.complete) == ((), True)

    play(story)


def test_of_logs_that_are_over_the_last_are_kept(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_logs, "_MOST", 1)

    async def story(stage: Stage) -> None:
        async with stage.daemon() as executions:
            kept = []
            for _ in range(2):
                accepted = await submit(executions, "a")
                (await stage.executor.run_of(accepted)).end(0)
                await over(executions, accepted)
                kept.append(executions.log(accepted.id))
                assert executions.log(accepted.id) is kept[-1]
            first, second = [item.id for item in reversed(executions.page(ExecutionListArgs(), ALICE).items)]
            assert executions.log(second) is kept[1]
            assert executions.log(first) is not kept[0]
            assert executions.log(first).path == kept[0].path
            with pytest.raises(NotFound):
                executions.log("none")

    play(story)
