"""Executions over real Meltano: the daemon's own parts without gateway or gRPC, on the scripted project.

What a run is, how it is followed, and what a daemon that dies in the middle leaves to the next one.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from tests.e2e.scripted_project import Bench, make_project, until

import flx_api.daemon
from flx_api import _core
from flx_api.config import Settings
from flx_api.daemon.executions import Executions
from flx_api.daemon.executions.meltano_state import read_states
from flx_api.daemon.executions.store import Store
from flx_api.daemon.executors.local import MeterCommand
from flx_api.daemon.journal import DEFAULT_TENANT, Journal
from flx_api.daemon.principal import Principal
from flx_api.daemon.processes import session_members
from flx_api.daemon.project import ProjectCache
from flx_api.models.execution import ExecutionLogsArgs
from flx_api.models.pipeline import PipelineRunArgs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from flx_api.daemon.executors.local import LocalExecutor
    from flx_api.models.execution import Execution

pytestmark = pytest.mark.e2e

ALICE = Principal("alice", DEFAULT_TENANT, ("operator",))
JOBS = """jobs:
- {name: rows, tasks: [tap-scripted target-scripted]}
- {name: rows-again, tasks: [tap-scripted target-scripted]}
- {name: tool, tasks: ["tool:work"]}
"""


def run_async(story: Coroutine[Any, Any, None]) -> None:
    """Each test is one story on the loop the daemon uses."""
    uvloop.run(story)


def now_us() -> int:
    return time.time_ns() // 1000


class Scene:
    """One daemon after another on one project; each has an executor of its own, as after a restart."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        with (bench.project / "meltano.yml").open("a") as file:
            file.write(JOBS)
        self.settings = Settings(project=str(bench.project), data_dir=str(bench.data_dir), max_runs=2)
        bench.data_dir.mkdir(exist_ok=True)
        script = Path(flx_api.daemon.__file__).parent / "meter.py"
        self._meter = MeterCommand(Path(sys.executable), script, Path(_core.__file__))
        self.executor: LocalExecutor
        self.journal: Journal

    @asynccontextmanager
    async def daemon(self, *, cancel_runs: bool = False) -> AsyncIterator[Executions]:
        """A daemon's life; without `cancel_runs` it ends like a crash, its runs go on."""
        self.journal = await Journal.open(self.settings.database, "scripted", now_us)
        self.executor = self.bench.executor(meter=self._meter)
        database = str(self.bench.project / ".meltano" / "meltano.db")
        executions = Executions(
            self.journal,
            ProjectCache(self.bench.project, {}),
            self.executor,
            self.settings,
            clock=now_us,
            read_states=lambda state_ids: read_states(database, state_ids),
        )
        await executions.start()
        try:
            yield executions
        finally:
            await executions.close(cancel_runs=cancel_runs)
            await self.executor.close()
            await self.journal.close()


@pytest.fixture
def scene(tmp_path: Path, meltano_env: Path) -> Scene:
    """The scripted project with jobs, and the means to run daemons on it."""
    return Scene(Bench(make_project(tmp_path / "project"), meltano_env))


async def submit(executions: Executions, pipeline: str, **args: Any) -> Execution:
    return (await executions.submit(PipelineRunArgs(pipeline, **args), ALICE)).execution


async def over(executions: Executions, execution: Execution) -> Execution:
    done = await executions.wait(execution.id, 60_000, DEFAULT_TENANT)
    assert done.finished_us is not None, done
    return done


async def plugin_started(scene: Scene) -> None:
    await asyncio.to_thread(scene.bench.plugin_started)


def test_a_run_succeeds_and_its_books_are_kept(scene: Scene) -> None:
    async def story() -> None:
        async with scene.daemon() as executions:
            accepted = await submit(executions, "rows")
            done = await over(executions, accepted)
            page = await executions.logs(ExecutionLogsArgs(accepted.id), DEFAULT_TENANT)
            assert done.status in {"succeeded", "succeeded_with_warnings"}, (done, page.lines)
            assert (done.exit_code, done.records, done.state_ids) == (0, 2, ("dev:tap-scripted-to-target-scripted",))
            assert scene.bench.rows() == 2
            assert page.complete
            assert "Run completed" in page.lines[-1]
            streams = executions.streams(accepted.id, DEFAULT_TENANT)
            assert streams.ledger is not None
            assert [stream.stream for stream in streams.ledger.blocks[0].streams] == ["s"]
            [(state, *_)] = scene.bench.meltano_rows(accepted.id)
            assert state == "SUCCESS"
            assert not (scene.bench.data_dir / "runs" / accepted.id / "sys").exists()

    run_async(story())


def test_a_failure_names_its_side(scene: Scene) -> None:
    async def story() -> None:
        (scene.bench.project / "target.py").write_text(
            "#!/usr/bin/env python3\nraise ValueError('password=hunter2 no disk')\n"
        )
        async with scene.daemon() as executions:
            done = await over(executions, await submit(executions, "rows"))
            assert (done.status, done.exit_code) == ("failed", 1)
            assert done.error is not None
            assert done.error.startswith("Loader target-scripted ended with exit code 1")
            assert "ValueError" in done.error
            assert "hunter2" not in done.error

    run_async(story())


def test_a_line_of_the_log_is_seen_at_once(scene: Scene) -> None:
    async def story() -> None:
        async with scene.daemon() as executions:
            await scene.executor.warm()
            accepted = await submit(executions, "rows")
            log = executions.log(accepted.id)
            await log.changed(0)
            seen_us = now_us()
            written_us = log.path.stat().st_mtime_ns // 1000
            assert seen_us - written_us < 500_000
            await over(executions, accepted)

    run_async(story())


def test_cancelling_leaves_nothing_and_the_next_run_starts_at_once(scene: Scene) -> None:
    async def story() -> None:
        async with scene.daemon() as executions:
            scene.bench.hold()
            running = await submit(executions, "rows")
            waiting = await submit(executions, "rows-again")
            await plugin_started(scene)
            await executions.cancel(running.id, "enough", ALICE)
            done = await over(executions, running)
            assert (done.status, done.error) == ("cancelled", "cancelled by alice: enough")
            scene.bench.let_go()
            again = await over(executions, waiting)
            assert again.status in {"succeeded", "succeeded_with_warnings"}, again
            assert scene.bench.meltano_rows(running.id)[0][0] == "FAIL"
            assert scene.bench.rows() == 2

    run_async(story())


def test_a_run_takes_no_longer_than_it_may(scene: Scene) -> None:
    async def story() -> None:
        async with scene.daemon() as executions:
            scene.bench.hold()
            done = await over(executions, await submit(executions, "rows", timeout_s=2))
            assert (done.status, done.error) == ("timed_out", "The run took longer than 2 s.")

    run_async(story())


def test_a_run_outlives_its_daemon_and_is_adopted(scene: Scene) -> None:
    async def story() -> None:
        scene.bench.hold()
        async with scene.daemon() as executions:
            accepted = await submit(executions, "rows")
            await plugin_started(scene)
        async with scene.daemon() as executions:
            assert executions.get(accepted.id, DEFAULT_TENANT).status == "running"
            scene.bench.let_go()
            done = await over(executions, accepted)
            assert done.status in {"succeeded", "succeeded_with_warnings"}
            assert scene.bench.rows() == 2

    run_async(story())


def test_a_run_that_ends_while_no_daemon_lives_has_its_true_end(scene: Scene) -> None:
    async def story() -> None:
        scene.bench.hold()
        async with scene.daemon() as executions:
            accepted = await submit(executions, "rows")
            await plugin_started(scene)
        scene.bench.let_go()
        record = scene.bench.data_dir / "runs" / accepted.id / "exit.json"
        until(record.exists, "the exit record")
        async with scene.daemon() as executions:
            done = await over(executions, accepted)
            assert (done.exit_code, done.records) == (0, 2)

    run_async(story())


def test_the_end_of_the_service_ends_its_runs(scene: Scene) -> None:
    async def story() -> None:
        scene.bench.hold()
        async with scene.daemon(cancel_runs=True) as executions:
            accepted = await submit(executions, "rows")
            await plugin_started(scene)
            with scene.journal.read() as connection:
                identity = Store("scripted").find(connection, accepted.id).identity
            began = time.monotonic()
        assert time.monotonic() - began < 8
        assert identity is not None
        assert session_members(identity) == []
        async with scene.daemon() as executions:
            done = executions.get(accepted.id, DEFAULT_TENANT)
            assert (done.status, done.error) == ("cancelled", "service stopped")

    run_async(story())


FAILS_ONCE = """#!/usr/bin/env python3
import os, pathlib, subprocess, sys
here = pathlib.Path(os.environ["MELTANO_PROJECT_ROOT"])
if "--discover" not in sys.argv and not (here / "failed-once").exists():
    (here / "failed-once").touch()
    raise OSError("the source is away")
os.execv(sys.executable, [sys.executable, str(here / "works.py"), *sys.argv[1:]])
"""


def test_a_failed_attempt_is_followed_by_another_meltano_run(scene: Scene) -> None:
    async def story() -> None:
        project = scene.bench.project
        (project / "tap.py").rename(project / "works.py")
        (project / "tap.py").write_text(FAILS_ONCE)
        (project / "tap.py").chmod(0o755)
        flx = "annotations: {flx: {retries: 1, retry_backoff_s: 0}}"
        with (project / "meltano.yml").open("a") as file:
            file.write(f"- {{name: again, tasks: [tap-scripted target-scripted], {flx}}}\n")
        async with scene.daemon() as executions:
            accepted = await submit(executions, "again")
            done = await over(executions, accepted)
            assert done.status in {"succeeded", "succeeded_with_warnings"}, done
            assert (done.attempts, done.records, scene.bench.rows()) == (2, 2, 2)
            first, second = executions.attempts(accepted.id, DEFAULT_TENANT).items
            assert (first.id, first.status, second.trigger) == (accepted.id, "failed", "automatic")
            assert first.error is not None
            assert "the source is away" in first.error
            # Meltano knows each attempt as a run of its own, by the attempt's id.
            states = [scene.bench.meltano_rows(one.id)[0][0] for one in (first, second)]
            assert states == ["FAIL", "SUCCESS"]
            log = executions.log(accepted.id)
            lines: list[bytes] = []
            while page := log.lines(len(lines) + 1, 1000):
                lines += page
            assert [first.id.encode() in line or second.id.encode() in line for line in lines].count(True) > 0
            assert sum(b'"Run completed"' in line for line in lines) == 2

    run_async(story())
