"""At most one attempt of a state id at any time, whatever happens in whatever order: a daemon's executions against
an executor that looks at every start whether another run of the same state id is alive.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.daemon.executions.fake_runs import ALICE, FakeExecutor, Stage, until

from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.errors import Conflict
from flx_api.models.execution import ExecutionListArgs
from flx_api.models.pipeline import PipelineRunArgs

if TYPE_CHECKING:
    from tests.daemon.executions.fake_runs import FakeRun

    from flx_api.daemon.executions import Executions
    from flx_api.daemon.executors import RunSpec

# Three pipelines of one state id, one of another, one of both.
PIPELINES = ("a", "at-once", "later", "b", "a-and-b")
OPS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(PIPELINES)),
    st.tuples(st.just("end"), st.integers(0, 5), st.sampled_from([0, 1, None])),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
    st.tuples(st.just("retry"), st.integers(0, 5)),
    st.tuples(st.just("time")),
)


class Watchful(FakeExecutor):
    """Looks at each start whether it is the only one."""

    def __init__(self, runs_dir: Path) -> None:
        super().__init__(runs_dir)
        self.overlaps: list[tuple[str, str]] = []

    async def spawn(self, spec: RunSpec) -> FakeRun:
        # Extractors stand for state ids here: there is one loader and one environment.
        wanted = set(spec.extractors)
        alive = (run for run in self.runs.values() if run.is_alive and wanted & set(run.spec.extractors))
        self.overlaps += [(run.spec.attempt_id, spec.attempt_id) for run in alive]
        return await super().spawn(spec)


async def happen(stage: Stage, executions: Executions, op: tuple[Any, ...]) -> None:
    """Let one thing happen, and what follows from it a little way."""
    known = executions.page(ExecutionListArgs(), ALICE).items
    match op:
        case ("submit", pipeline):
            with contextlib.suppress(Conflict):
                await executions.submit(PipelineRunArgs(pipeline), ALICE)
        case ("end", index, code):
            alive = [run for run in stage.executor.runs.values() if run.is_alive and run.released]
            if alive:
                alive[index % len(alive)].end(code)
        case ("cancel", index) if known:
            await executions.cancel(known[index % len(known)].id, "", ALICE)
        case ("retry", index) if known:
            with contextlib.suppress(Conflict):
                await executions.retry(known[index % len(known)].id, ALICE)
        case _:
            stage.clock.now_us += 3_600_000_000
    for _ in range(8):
        await stage.journal.write(lambda _tx: None)


def resting(executions: Executions, known: list[str]) -> list[str]:
    return [key for key in known if executions.get(key, DEFAULT_TENANT).status == "retrying"]


async def cancel_resting(executions: Executions, known: list[str]) -> None:
    for key in resting(executions, known):
        await executions.cancel(key, "", ALICE)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(OPS, min_size=1, max_size=12), min_size=1, max_size=3), st.integers(1, 3))
def test_at_most_one_attempt_of_a_state_id_at_any_time(lives: list[list[tuple[Any, ...]]], slots: int) -> None:
    """Each list is what happens in one daemon's life; runs go on between two of them."""

    async def story(folder: Path) -> None:
        stage = Stage(folder, slots=slots)
        stage.executor = executor = Watchful(stage.runs_dir)
        for life in lives:
            async with stage.daemon() as executions:
                for op in life:
                    await happen(stage, executions, op)
        async with stage.daemon() as executions:
            known = [one.id for one in executions.page(ExecutionListArgs(limit=200), ALICE).items]

            def quiet() -> bool:
                """Let all that is alive end, and all that rests be cancelled: everything comes to its end."""
                for run in list(executor.runs.values()):
                    if run.is_alive and run.released:
                        run.end(0)
                return all(executions.get(key, DEFAULT_TENANT).finished_us is not None for key in known)

            while not quiet():
                # A run whose end is only noticed now may come to rest after all others.
                await cancel_resting(executions, known)
                await until(lambda: quiet() or resting(executions, known), "all ends")
            assert executor.overlaps == []
            for key in known:
                attempts = executions.attempts(key, DEFAULT_TENANT).items
                assert attempts[0].id == key
                assert [one.number for one in attempts] == list(range(1, len(attempts) + 1))
                begun = {one.id for one in attempts if one.started_us is not None}
                assert begun <= set(executor.runs)

    with TemporaryDirectory() as folder:
        asyncio.run(story(Path(folder)))
