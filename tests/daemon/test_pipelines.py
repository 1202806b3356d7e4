"""Pipelines in the database; the commands over them are in `handlers/test_handlers`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.daemon.daemon_parts import PROJECT, parts

from flx_api.daemon import pipelines
from flx_api.daemon.principal import Principal
from flx_api.errors import NotFound
from flx_api.models.pipeline import PipelineCreateArgs

if TYPE_CHECKING:
    from pathlib import Path

ANN = Principal("ann", "default", ("admin",))
TASKS = (("tap-a", "target-b"),)
ARGS = PipelineCreateArgs("mine", tasks=TASKS, tags=("b", "a", "b"), retry_on=("failed", "failed"))


def test_a_job_that_comes_later_takes_the_name(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            model = daemon.services.projects.current()
            told = await daemon.journal.write(lambda tx: pipelines.create(tx, model, ANN, ARGS, TASKS))
            with daemon.journal.read() as connection:
                own = pipelines.find(connection, model, "default", "test", "mine")
                assert told == own
                assert (own.source, own.tags, own.retry_on) == ("api", ("b", "a"), ("failed",))
            (tmp_path / "meltano.yml").write_text(PROJECT.replace("name: load", "name: mine"), encoding="utf-8")
            model = daemon.services.projects.current()
            with daemon.journal.read() as connection:
                assert pipelines.find(connection, model, "default", "test", "mine").source == "project"
                assert [item.source for item in pipelines.all_of(connection, model, "default", "test")] == ["project"]

    asyncio.run(story())


def test_rows_of_another_project_or_tenant_are_not_there(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            model = daemon.services.projects.current()
            await daemon.journal.write(lambda tx: pipelines.create(tx, model, ANN, ARGS, TASKS))
            with daemon.journal.read() as connection:
                for tenant, project in (("other", "test"), ("default", "other")):
                    with pytest.raises(NotFound):
                        pipelines.find(connection, model, tenant, project, "mine")

    asyncio.run(story())


def test_of_two_executions_of_one_moment_the_later_id_is_the_last(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            await daemon.add_execution("e2", "load", "succeeded", 5)
            await daemon.add_execution("e1", "load", "failed", 5)
            model = daemon.services.projects.current()
            with daemon.journal.read() as connection:
                load = pipelines.find(connection, model, "default", "test", "load")
                (shown,) = pipelines.with_runs(connection, "default", "test", [load])
                assert (shown.last_execution, shown.active_execution) == ("e2", None)
                assert pipelines.with_runs(connection, "default", "test", []) == ()

    asyncio.run(story())
