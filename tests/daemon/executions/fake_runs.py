"""Executions on a real journal and a real project model, with runs that a test plays by hand.

Strategy: `FakeExecutor` keeps the Protocol's promises (a gate, a folder, an exit record that outlives it) without any
process, so that a test decides when a run ends and how. `Stage` is a data folder over which one daemon follows another:
`stage.daemon()` opens a new journal connection and new Executions on what the last one left.

Rules:
- Nothing is waited for by time: `until` lets the loop go round until a condition holds.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from flx_api.config import Retention, Settings
from flx_api.daemon.executions import Executions
from flx_api.daemon.executors import ExitRecord, ProcessIdentity, RunSpec
from flx_api.daemon.journal import DEFAULT_TENANT, Journal
from flx_api.daemon.principal import Principal
from flx_api.daemon.project import ProjectCache
from flx_api.errors import Unavailable
from flx_api.models.pipeline import PipelineRunArgs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from flx_api.models.execution import Execution
    from flx_api.models.topic_rules import TopicRule

TURNS = 40_000
ALICE = Principal("alice", DEFAULT_TENANT, ("operator",))
MALLORY = Principal("mallory", "other", ("operator",))

MELTANO_YML = """default_environment: dev
project_id: scripted
environments: [{name: dev}, {name: prod}]
plugins:
  extractors:
  - {name: tap-a, namespace: tap_a, executable: ./a}
  - {name: tap-b, namespace: tap_b, executable: ./b}
  loaders:
  - {name: target-x, namespace: target_x, executable: ./x}
  utilities:
  - {name: tool, namespace: tool, executable: ./tool, commands: {work: work}}
jobs:
- {name: a, tasks: [tap-a target-x]}
- {name: a-again, tasks: [tap-a target-x]}
- {name: b, tasks: [tap-b target-x]}
- {name: a-and-b, tasks: [tap-a target-x, tap-b target-x]}
- {name: work, tasks: ["tool:work"]}
- {name: broken, tasks: [tap-a tap-b]}
- {name: at-once, tasks: [tap-a target-x], annotations: {flx: {retries: 2, retry_backoff_s: 0}}}
- {name: later, tasks: [tap-a target-x], annotations: {flx: {retries: 1, retry_backoff_s: 3600}}}
- {name: late, tasks: [tap-b target-x], annotations: {flx: {retries: 1, retry_backoff_s: 0, retry_on: [timed_out]}}}
"""


async def until(condition: Callable[[], Any], what: str = "it") -> Any:
    """The condition's value once it is true; the loop goes round meanwhile."""
    for _ in range(TURNS):
        if value := condition():
            return value
        await asyncio.sleep(0.001)
    pytest.fail(f"waited in vain for {what}")


class Clock:
    """Microseconds that pass by one at each look; `now_us` may be set forward."""

    def __init__(self) -> None:
        self.now_us = 1_700_000_000_000_000

    def __call__(self) -> int:
        self.now_us += 1
        return self.now_us


class FakeRun:
    """A run that a test plays."""

    def __init__(self, spec: RunSpec, identity: ProcessIdentity, folder: Path) -> None:
        self.spec = spec
        self.identity = identity
        self.folder = folder
        self.released = False
        self.cancelled_after: list[float] = []
        self.obeys = True
        self.age_s: float | None = None
        self._ended = asyncio.Event()

    async def release(self) -> None:
        """Begin: the log is the first thing a run makes."""
        self.released = True
        (self.folder / "log.jsonl").touch()

    async def wait(self) -> ExitRecord | None:
        await self._ended.wait()
        return self.record

    async def cancel(self, grace_s: float) -> None:
        self.cancelled_after.append(grace_s)
        if self.obeys and not self._ended.is_set():
            self.end(143 if self.released else None)
        await self._ended.wait()

    @property
    def record(self) -> ExitRecord | None:
        """What the run wrote about its end."""
        path = self.folder / "exit.json"
        return ExitRecord(**json.loads(path.read_text())) if path.exists() else None

    @property
    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def say(self, *events: str, **fields: Any) -> None:
        """Lines of the log."""
        with (self.folder / "log.jsonl").open("a") as log:
            log.writelines(json.dumps({"event": event, "level": "info", **fields}) + "\n" for event in events)

    def meter(self, number: int, role: str, plugin: str, *lines: dict[str, Any]) -> None:
        """Lines of one plugin's meter file, behind its start."""
        path = self.folder / "meter" / f"{number:03}-{role}-{plugin}.jsonl"
        start = {"kind": "start", "role": role, "plugin": plugin, "ts_us": 10, "pid": 1, "purpose": "sync"}
        with path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in ((start, *lines) if file.tell() == 0 else lines))

    def end(self, code: int | None, ended_us: int = 2_000_000_000_000_000) -> None:
        """The end, with an exit record unless there is no code."""
        if code is not None:
            record = {"code": code, "started_us": 1, "ended_us": ended_us, "cpu_s": 1.5, "max_rss_kib": 1000}
            (self.folder / "exit.json").write_text(json.dumps(record))
        self._ended.set()


class FakeExecutor:
    """Runs without processes. Lives as long as the stage: what it holds is what the operating system would."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.settled: list[tuple[str, bool]] = []
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._runs_dir = runs_dir

    async def start(self) -> None:
        """Nothing to make ready."""

    async def spawn(self, spec: RunSpec) -> FakeRun:
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        folder = self._runs_dir / spec.attempt_id
        if (folder / "process.json").exists():
            pytest.fail("an attempt was started twice")
        (folder / "meter").mkdir(parents=True)
        (folder / "sys").mkdir()
        (folder / "process.json").touch()
        run = FakeRun(spec, ProcessIdentity(1000 + len(self.runs), len(self.runs)), folder)
        self.runs[spec.attempt_id] = run
        return run

    async def attach(self, attempt_id: str, identity: ProcessIdentity) -> FakeRun | None:
        run = self.runs.get(attempt_id)
        return run if run is not None and run.identity == identity and run.is_alive else None

    async def settle(self, attempt_id: str, *, run_started: bool) -> ExitRecord | None:
        self.settled.append((attempt_id, run_started))
        system = self._runs_dir / attempt_id / "sys"
        if system.exists():
            system.rmdir()
        run = self.runs.get(attempt_id)
        if run is None:
            return None
        if run.is_alive:
            run.end(None)  # killed
        return run.record

    def close_gates(self) -> None:
        """Their daemon is gone: what waits at its gate leaves without a trace."""
        for run in self.runs.values():
            if run.is_alive and not run.released:
                run.end(None)

    async def close(self) -> None:
        """Nothing to stop."""

    async def run_of(self, execution: Execution, number: int = 1) -> FakeRun:
        """The run of an execution's attempt, released."""

        def mine() -> FakeRun | None:
            runs = [run for run in self.runs.values() if run.spec.execution_id == execution.id]
            return runs[number - 1] if len(runs) >= number else None

        found: FakeRun = await until(mine, "a run")
        await until(lambda: found.released, "the gate")
        return found


class Stage:
    """A project, a data folder, an executor; daemons come and go."""

    def __init__(
        self,
        folder: Path,
        *,
        slots: int = 2,
        retention: Retention | None = None,
        topics: tuple[TopicRule, ...] = (),
    ) -> None:
        project = folder / "project"
        project.mkdir()
        (project / "meltano.yml").write_text(MELTANO_YML)
        self.settings = Settings(
            project=str(project),
            data_dir=str(folder / "data"),
            max_runs=slots,
            retention=retention or Retention(),
            topics=topics,
        )
        self.settings.data_path.mkdir()
        self.runs_dir = self.settings.data_path / "runs"
        self.clock = Clock()
        self.projects = ProjectCache(project, {})
        self.executor = FakeExecutor(self.runs_dir)
        self.journal: Journal

    @asynccontextmanager
    async def daemon(self, *, cancel_runs: bool = False, **options: Any) -> AsyncIterator[Executions]:
        """A daemon's life; at its end runs are left alone, as by a crash, unless they are cancelled."""
        self.journal = await Journal.open(self.settings.database, "scripted", self.clock)
        executions = Executions(self.journal, self.projects, self.executor, self.settings, clock=self.clock, **options)
        await executions.start()
        try:
            yield executions
        finally:
            await executions.close(cancel_runs=cancel_runs)
            await self.journal.close()
            self.executor.close_gates()

    def events(self, topic: str) -> list[dict[str, Any]]:
        """The data of a topic's events."""
        return [json.loads(row.data) for row in self.journal.events_after(0, 10_000) if row.topic == topic]

    def statuses(self, execution: Execution) -> list[str]:
        """The statuses an execution went through, as its own topic tells them."""
        return [event["status"] for event in self.events(f"execution.{execution.id}.status")]


async def submit(executions: Executions, pipeline: str, principal: Principal = ALICE, **args: Any) -> Execution:
    """A run of a pipeline, accepted."""
    return (await executions.submit(PipelineRunArgs(pipeline, **args), principal)).execution


async def over(executions: Executions, execution: Execution) -> Execution:
    """The execution, over."""
    found = await executions.wait(execution.id, 30_000, DEFAULT_TENANT)
    assert found.finished_us is not None, found
    return found


def doubted(stage: Stage, name: str, go: asyncio.Event) -> list[str]:
    """Let one write, whose function's name has this in it, be told as failed although it was committed, at `go`.

    Returns its name, once it is asked for.
    """
    write, told = stage.journal.write, list[str]()

    async def lost(change: Any) -> None:
        await write(change)
        await go.wait()
        raise Unavailable(code="storage_unavailable")

    def sometimes(change: Any) -> Any:
        if not told and name in getattr(change, "__qualname__", ""):
            told.append(change.__qualname__)
            return asyncio.ensure_future(lost(change))
        return write(change)

    stage.journal.write = sometimes  # type: ignore[method-assign]
    return told


class StorageFault(Unavailable):
    """A disk that is full."""

    default_code = "insufficient_storage"
