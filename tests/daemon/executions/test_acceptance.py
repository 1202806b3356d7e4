"""What a request to run is, worked out against the project."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.daemon.executions.fake_runs import Stage, over, submit

from flx_api.daemon.project import ProjectCache

if TYPE_CHECKING:
    from collections.abc import Callable


def test_the_suffix_of_the_daemons_environment_is_that_of_the_run(play: Callable[..., None]) -> None:
    """The variable itself reaches no run: whatever is shown and locked, the run must be told to use."""

    async def story(stage: Stage) -> None:
        stage.projects = ProjectCache(stage.projects.root, {"MELTANO_RUN_STATE_ID_SUFFIX": "canary"})
        async with stage.daemon() as executions:
            accepted = await submit(executions, "a")
            assert accepted.state_ids == ("dev:tap-a-to-target-x:canary",)
            run = await stage.executor.run_of(accepted)
            assert run.spec.state_id_suffix == "canary"
            run.end(0)
            assert (await over(executions, accepted)).status == "succeeded"

    play(story)
