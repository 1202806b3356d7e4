"""Processes by identity: is it the same one, when does it end, and is everything it started gone.

Strategy: a pid is only a number that the kernel hands out again; a pid with its start time is a process. The end of a
process that is not our child is seen through a pidfd, which the event loop watches like any other descriptor, so that
following a run costs nothing and works the same for a run started here and one found again after a restart. A run is a
session of its own; whatever a plugin does with process groups, it stays in the session, and the session is what is
emptied.

Rules:
- Nothing here blocks the event loop: reading all of /proc is done in a thread.
- A zombie is dead. Whether somebody reaps it is not our business, but if it is our child we do.
- No signal is sent to a pid without having checked that it still is who we mean.
- Off Linux there is no /proc and no pidfd: `ps` gives the start time and the end is polled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from flx_api.daemon.executors import ProcessIdentity

_PROC = Path("/proc")
_HAS_PROC = sys.platform == "linux"
_DEAD_STATES = "ZXx"
_POLL_S = 0.05
_SWEEP_S = 0.01
_SWEEPS_S = 10.0


class ProcessStatus(NamedTuple):
    """What the kernel says about one process; `start_time` is in clock ticks since boot (seconds off Linux)."""

    pid: int
    state: str
    session: int
    start_time: int

    @property
    def alive(self) -> bool:
        """Whether it can still do something: a zombie cannot."""
        return self.state not in _DEAD_STATES


def parse_stat(text: str) -> ProcessStatus:
    """One line of /proc/<pid>/stat. The name, in parentheses, may itself hold spaces and parentheses."""
    pid, _, rest = text.partition(" (")
    fields = rest[rest.rindex(")") + 2 :].split()
    return ProcessStatus(pid=int(pid), state=fields[0], session=int(fields[3]), start_time=int(fields[19]))


def process_status(pid: int) -> ProcessStatus | None:
    """The process that has this pid now, or None."""
    if not _HAS_PROC:
        return _status_from_ps(pid)
    try:
        return parse_stat((_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of the living process that has this pid now."""
    status = process_status(pid)
    return ProcessIdentity(pid, status.start_time) if status and status.alive else None


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether this very process still lives."""
    return identify(identity.pid) == identity


def age_s(identity: ProcessIdentity) -> float | None:
    """How long ago the process was made, by a clock that nobody sets; None off Linux, where there is none."""
    if not _HAS_PROC:
        return None
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - identity.start_time / os.sysconf("SC_CLK_TCK"))


def boot_id() -> str:
    """Names this boot of the machine: pids and start times of another boot mean nothing. Empty when unknown."""
    with contextlib.suppress(OSError):
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def session_members(leader: ProcessIdentity) -> list[ProcessStatus]:
    """The living processes of the session that `leader` made, the leader included.

    While a session has members the kernel does not hand out its number again; so a living process of that pid with
    another start time says that our session is over and the number belongs to somebody else.
    """
    holder = process_status(leader.pid)
    if holder is not None and holder.start_time != leader.start_time:
        return []
    found = (process_status(pid) for pid in _all_pids())
    return [each for each in found if each and each.alive and each.session == leader.pid]


def signal_group(leader: ProcessIdentity, number: signal.Signals) -> bool:
    """Send a signal to the process group of `leader`; False when it is gone."""
    if not is_alive(leader):
        return False
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_session(leader: ProcessIdentity, *, spare_leader: bool = False) -> int:
    """SIGKILL every member of the session; how many there were. Zero means that it is empty."""
    members = [each for each in session_members(leader) if not (spare_leader and each.pid == leader.pid)]
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)
    return len(members)


def reap(pid: int) -> None:
    """Collect the process if it has ended and is our child (an orphan may have been given to us)."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def session_empty(leader: ProcessIdentity, within_s: float) -> bool:
    """Wait until the session has no members, at most `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while await asyncio.to_thread(session_members, leader):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_SWEEP_S)
    return True


async def empty_session(leader: ProcessIdentity) -> bool:
    """Kill until the session is empty. False when something in it cannot be killed (stuck in the kernel)."""
    deadline = time.monotonic() + _SWEEPS_S
    while await asyncio.to_thread(kill_session, leader):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_SWEEP_S)
    reap(leader.pid)
    return True


class ProcessWatch:
    """Knows when one process has ended, whoever its parent is. Made in a running event loop."""

    def __init__(self, identity: ProcessIdentity) -> None:
        self.identity = identity
        self._ended = asyncio.Event()
        self._fd = -1
        self._poller: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        if not hasattr(os, "pidfd_open"):
            self._poller = self._loop.create_task(self._poll())
            return
        try:
            self._fd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            self._ended.set()
            return
        # The descriptor may be of a later process of the same pid; checked after opening it, it is not.
        if not is_alive(identity):
            self._finish()
            return
        self._loop.add_reader(self._fd, self._finish)

    @property
    def ended(self) -> bool:
        """Whether the end was seen."""
        return self._ended.is_set()

    async def wait(self) -> None:
        """Return when the process has ended."""
        await self._ended.wait()

    def close(self) -> None:
        """Stop watching. The process is not touched."""
        if self._poller is not None:
            self._poller.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _finish(self) -> None:
        self.close()
        reap(self.identity.pid)
        self._ended.set()

    async def _poll(self) -> None:
        while await asyncio.to_thread(is_alive, self.identity):  # noqa: ASYNC110 (nobody would set an event)
            await asyncio.sleep(_POLL_S)
        reap(self.identity.pid)
        self._ended.set()


def _all_pids() -> list[int]:
    if _HAS_PROC:
        return [int(name) for name in os.listdir(_PROC) if name.isdigit()]  # noqa: PTH208 (names, not paths: 3x faster)
    return [int(word) for word in _ps("-A", "-o", "pid=").split()]


def _status_from_ps(pid: int) -> ProcessStatus | None:
    """What `ps` can tell; its start time has seconds only, which the session number makes up for."""
    state, _, started = _ps("-p", str(pid), "-o", "stat=,lstart=").strip().partition(" ")
    if not state:
        return None
    try:
        session = os.getsid(pid)
        start_time = int(time.mktime(time.strptime(started.strip(), "%a %b %d %H:%M:%S %Y")))
    except (OSError, ValueError):
        return None
    return ProcessStatus(pid=pid, state=state[0], session=session, start_time=start_time)


def _ps(*arguments: str) -> str:
    completed = subprocess.run(  # noqa: S603
        ["/bin/ps", *arguments], capture_output=True, check=False, text=True, env={"LC_ALL": "C"}
    )
    return completed.stdout
