"""Where runs happen: the interface between the daemon and whatever starts Meltano.

Strategy: an executor starts a run in two steps. `spawn` makes a process that does nothing yet; the daemon commits its
(pid, start time) and then calls `release`. A crash between the two leaves a process whose gate closes and which ends by
itself, so a run that is not in the database never does anything. The run's own folder (`RunFolder`) holds what outlives
a crash of the daemon: the log, the meter records and the exit record, which the run writes itself.

Rules:
- An executor keeps no state that matters: `attach` finds a run again from what the database knows.
- Nothing here decides what an outcome means; `flx_api.daemon.ledger` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from pathlib import Path


class Elt(msgspec.Struct, frozen=True):
    """The old form of a run, `meltano elt EXTRACTOR LOADER`: its own state id, and what is done about transforms."""

    state_id: str
    transform: str


class RunSpec(msgspec.Struct, frozen=True):
    """What one attempt runs.

    `blocks` are the words after `meltano run` (job names, plugins, `plugin:command`); `overrides` are extra environment
    variables for this run, already checked by the caller; `extractors` and `loaders` are the plugin names of the plan.
    With `elt` the blocks are an extractor and a loader, and the run is of that form.
    """

    attempt_id: str
    execution_id: str
    blocks: tuple[str, ...]
    environment: str | None = None
    full_refresh: bool = False
    timeout_s: int | None = None
    state_id_suffix: str | None = None
    overrides: dict[str, str] = {}
    extractors: tuple[str, ...] = ()
    loaders: tuple[str, ...] = ()
    elt: Elt | None = None


class ProcessIdentity(msgspec.Struct, frozen=True):
    """A process that cannot be confused with a later one of the same pid: start time in kernel clock ticks."""

    pid: int
    start_time: int


class ExitRecord(msgspec.Struct, frozen=True):
    """What the run itself wrote about its end, atomically, as its last act.

    `code` is the exit code (143 after SIGTERM as Meltano says it; negative: the signal that killed the inner process).
    Times are microseconds since the epoch, `cpu_s` is user and system time of the run with its plugins, `max_rss_kib`
    the largest single process.
    """

    code: int
    started_us: int
    ended_us: int
    cpu_s: float = 0.0
    max_rss_kib: int = 0


class Run(Protocol):
    """A run that has a process, started here or found again."""

    identity: ProcessIdentity
    folder: Path

    @property
    def age_s(self) -> float | None:
        """How long ago its process was made, whatever became of the wall clock since; None when nobody knows."""
        ...

    async def release(self) -> None:
        """Open the gate: the identity is committed, the run may begin."""
        ...

    async def wait(self) -> ExitRecord | None:
        """The exit record once the process has ended; None when it vanished without one (killed, power loss)."""
        ...

    async def cancel(self, grace_s: float) -> None:
        """SIGTERM to the whole group, SIGKILL after the grace, return when its session is empty."""
        ...


class Executor(Protocol):
    """Starts runs, finds them again, clears up after them."""

    async def start(self) -> None:
        """Make ready in the background; returns at once."""
        ...

    async def spawn(self, spec: RunSpec) -> Run:
        """A process for the attempt that waits at its gate. Raises Unavailable when none can be made."""
        ...

    async def attach(self, attempt_id: str, identity: ProcessIdentity) -> Run | None:
        """The run of an earlier daemon if it is still alive, else None."""
        ...

    async def settle(self, attempt_id: str, *, run_started: bool) -> ExitRecord | None:
        """After the end, whatever it was: kill what is left of the group, repair Meltano's own row, keep a good
        catalogue, remove the private folder with its secrets. Safe to repeat. Returns the exit record if there is one.
        """
        ...

    async def close(self) -> None:
        """Stop the executor's own processes; runs are not touched."""
        ...
