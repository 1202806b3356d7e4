"""A stage with schedules: daemons that fire them, on a clock that a test sets."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import msgspec
from sqlalchemy import select
from tests.daemon.executions.fake_runs import ALICE, MELTANO_YML, Stage, over

from flx_api.daemon.handlers.context import Context, Services
from flx_api.daemon.handlers.schedules import HANDLERS
from flx_api.daemon.journal.tables import executions as rows
from flx_api.daemon.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from flx_api.daemon.executions import Executions
    from flx_api.daemon.principal import Principal
    from flx_api.models.execution import Execution


def at_us(text: str) -> int:
    """The moment of a time in UTC."""
    return int(datetime.fromisoformat(f"{text}+00:00").timestamp() * 1_000_000)


class Day:
    """A daemon's life, with what fires its schedules and somebody who may ask for anything."""

    def __init__(self, stage: ScheduledStage, executions: Executions) -> None:
        self.stage = stage
        self.executions = executions
        self.scheduler = Scheduler(stage.journal, stage.projects, executions, stage.settings, stage.clock)

    async def look(self, time: str | None = None) -> int | None:
        """One look at the schedules, at a time of the stage's date or as the clock goes."""
        if time is not None:
            self.stage.set(time)
        return await self.scheduler.consider()

    async def ask(self, command: str, args: msgspec.Struct, principal: Principal = ALICE, **context: Any) -> Any:
        """What a command answers."""
        nothing = cast("Any", None)
        services = Services(
            journal=self.stage.journal,
            projects=self.stage.projects,
            executions=self.executions,
            settings=self.stage.settings,
            tokens=nothing,
            users=nothing,
            revocations=nothing,
            ephemeral=nothing,
            clock=self.stage.clock,
            started_us=0,
        )
        answer = HANDLERS[command](Context(principal, services, **context), args)
        return answer if isinstance(answer, msgspec.Struct | bytes) else await answer

    def runs(self) -> list[Execution]:
        """All executions, oldest first."""
        with self.stage.journal.read() as connection:
            ids = connection.execute(select(rows.c.id).order_by(rows.c.queued_us, rows.c.id)).scalars().all()
        return [self.executions.get(key, "default") for key in ids]

    async def finish(self, execution: Execution) -> Execution:
        """Let a run end well."""
        run = await self.stage.executor.run_of(execution)
        run.end(0)
        return await over(self.executions, execution)


class ScheduledStage(Stage):
    """A stage on 2026-03-02, a Monday without any change of clocks."""

    date = "2026-03-02"

    def __init__(self, folder: Path, written: str = "", **settings: Any) -> None:
        super().__init__(folder)
        self.settings = msgspec.structs.replace(self.settings, **settings)
        self.write(written)
        self.set("08:00")

    def write(self, schedules: str, more: str = "") -> None:
        """Give the project these schedules, as a list in one line, in place of those it had."""
        file = self.settings.project_dir / "meltano.yml"
        file.write_text(f"{MELTANO_YML}schedules: [{schedules}]\n{more}", encoding="utf-8")

    def set(self, time: str) -> None:
        """Set the clock to a time of the date, or to a moment of another one."""
        self.clock.now_us = at_us(time if "T" in time else f"{self.date}T{time}")

    @asynccontextmanager
    async def day(self, **options: Any) -> AsyncIterator[Day]:
        """A daemon's life."""
        async with self.daemon(**options) as executions:
            yield Day(self, executions)

    def told(self) -> list[tuple[str, ...]]:
        """What `schedule_events` say: type, schedule, and the time of day that a firing is about."""
        found = []
        for event in self.events("schedule_events"):
            time = event.get("fire_us")
            clock = () if time is None else (datetime.fromtimestamp(time / 1e6, UTC).strftime("%H:%M"),)
            found.append((event["type"], event["schedule"], *clock))
        return found
