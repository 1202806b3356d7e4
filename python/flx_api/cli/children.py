"""The two processes under `flx serve`: how each is started, and what is known about it while it lives.

Strategy: a child is spawned with exactly the descriptors it is given, in a process group of its own, so that Ctrl-C in
a terminal reaches the supervisor alone and the order of stopping stays ours. Settings travel as FLX_ variables.

Rules:
- Nothing here waits; the supervisor's loop does.
- A child ends itself when its parent vanishes (`expect_parent`), so nothing lives on after `kill -9` of the supervisor.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flx_api import _core

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flx_api.config import Settings

# The socket between gateway and daemon: no setting, since only the supervisor knows it.
DAEMON_SOCKET = "FLX_INTERNAL_DAEMON_SOCKET"

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_STEADY_S = 10.0
# More objects than requests in flight ever hold at once, some hundred each: only what is left behind reaches this.
_COLLECT_AFTER = (50_000, 20, 50)


def leave_out_optional_parts() -> None:
    """Let our libraries believe that rich and pydantic are not installed; to be called before they are imported.

    structlog imports rich for coloured tracebacks, BlackSheep pydantic for models: we use neither in a service, and
    they cost a fifth of its start. None in `sys.modules` makes an import fail as if there were no such module.
    """
    for name in ("rich", "pydantic"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def spare_the_collector() -> None:
    """Take all that exists now out of the garbage collector's sight; to be called when a process has started.

    Modules, routes and parts live as long as the process does, some hundred thousand objects. Under load the collector
    was due every few requests, since those in flight come and go, and went through all of them: a quarter of the
    loop's time, and pauses of many milliseconds. It still finds what is made in circles later, only in larger heaps.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


class Child:
    """One process that is to be running.

    Args:
        name: what messages call it.
        module: what `python -m` runs.
    """

    def __init__(self, name: str, module: str) -> None:
        self.name = name
        self.module = module
        self.pid: int | None = None
        self.restart_at: float | None = None
        self.kill_at: float | None = None
        self._started = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def start(self, now: float, args: Sequence[str], environ: dict[str, str], descriptors: Iterable[int] = ()) -> None:
        """Spawn it, with these descriptors open under the same numbers."""
        argv = [sys.executable, "-m", self.module, str(os.getpid()), *args]
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        try:
            self.pid = os.posix_spawn(
                sys.executable,
                argv,
                environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, 2, 1),  # stdout is the supervisor's, for the person who started it
                ],
                setpgroup=0,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE],
            )
        finally:
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
        self._started, self.restart_at, self.kill_at = now, None, None

    def ended(self, now: float) -> float:
        """It is gone: plan the next start, and return the pause before it (longer each time, unless it ran well)."""
        if now - self._started > _STEADY_S:
            self._pause_s = _FIRST_PAUSE_S
        pause, self._pause_s = self._pause_s, min(self._pause_s * 2, _LONGEST_PAUSE_S)
        self.pid, self.kill_at = None, None
        self.restart_at = now + pause
        return pause

    def stop(self, kill_at: float) -> None:
        """Ask it to end; after `kill_at` it is made to."""
        self.restart_at = None
        if self.pid is not None:
            self.kill_at = kill_at
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End its whole group now."""
        if self.pid is not None:
            self.kill_at = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def environ_of(settings: Settings, overrides: dict[str, object], *, meltano: Path | None) -> dict[str, str]:
    """The environment of both children: ours, with what the command line said and with paths made absolute."""
    environ = dict(os.environ)
    for name, value in overrides.items():
        if value is not None:
            environ[f"FLX_{name.upper()}"] = str(value)
    environ["FLX_PROJECT"] = str(settings.project_dir)
    environ["FLX_DATA_DIR"] = str(settings.data_path)
    if meltano is not None:
        environ["FLX_MELTANO"] = str(meltano)
    return environ


def expect_parent(parent: int) -> None:
    """End when the parent ends, however it ends; at once when it is gone already."""
    if not _core.die_with_parent(parent):
        raise SystemExit(1)


def orphans() -> list[int]:
    """Processes that are ours by now: children, and what a dead child left to us as the subreaper."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii").split()]
    except OSError:
        return []


def describe(status: int) -> str:
    """How a process ended, from its wait status."""
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
