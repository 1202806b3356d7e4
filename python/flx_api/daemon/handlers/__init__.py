"""Each command of the registry and the function that does it. A test holds that both name the same commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flx_api.daemon.handlers import auth, connections, events, pipeline, project, runs, schedules, system
from flx_api.daemon.handlers.context import Accepted, Context, Handler, Outcome, Replay, Services

if TYPE_CHECKING:
    from collections.abc import Mapping

HANDLERS: Mapping[str, Handler] = {
    **system.HANDLERS,
    **project.HANDLERS,
    **pipeline.HANDLERS,
    **runs.HANDLERS,
    **schedules.HANDLERS,
    **auth.HANDLERS,
    **events.HANDLERS,
    **connections.HANDLERS,
}

__all__ = ["HANDLERS", "Accepted", "Context", "Handler", "Outcome", "Replay", "Services"]
