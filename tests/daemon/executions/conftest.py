"""A story on a stage: a daemon's executions with runs that are played by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.executions.fake_runs import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Run a story on a new stage."""

    def run(story: Callable[[Stage], Coroutine[Any, Any, None]], **options: Any) -> None:
        async def staged() -> None:
            await story(Stage(tmp_path, **options))

        asyncio.run(staged())

    return run
