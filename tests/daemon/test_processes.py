"""Processes by identity: stat lines, ends, sessions."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon import processes
from flx_api.daemon.executors import ProcessIdentity
from flx_api.daemon.processes import (
    ProcessWatch,
    age_s,
    boot_id,
    empty_session,
    identify,
    is_alive,
    parse_stat,
    session_empty,
    session_members,
    signal_group,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# A session leader with a child in a group of its own; says when both are there, goes on until it is killed.
TREE = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], process_group=0)
print(child.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def tree() -> Iterator[tuple[subprocess.Popen[bytes], ProcessIdentity, int]]:
    """The leader, its identity, its child's pid."""
    process = subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    identity = identify(process.pid)
    assert identity is not None
    yield process, identity, child
    for member in session_members(identity):
        os.kill(member.pid, signal.SIGKILL)
    process.kill()
    process.communicate()


@given(name=st.text(min_size=1, max_size=15).filter(lambda name: "\n" not in name))
def test_a_process_may_be_called_anything(name: str) -> None:
    status = parse_stat(f"42 ({name}) S 1 40 7 0 -1 4194560 " + "0 " * 12 + "987654 0 0")
    assert (status.pid, status.state, status.session, status.start_time) == (42, "S", 7, 987654)


def test_identity_is_of_one_process() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert is_alive(me)
    assert not is_alive(ProcessIdentity(me.pid, me.start_time + 1))
    assert session_members(ProcessIdentity(me.pid, me.start_time + 1)) == []
    assert not signal_group(ProcessIdentity(me.pid, me.start_time + 1), signal.SIGKILL)
    assert identify(2**22 + 1) is None
    assert boot_id()


def test_the_age_of_a_process_is_counted_by_no_clock_that_can_be_set(
    tree: tuple[subprocess.Popen[bytes], ProcessIdentity, int],
) -> None:
    me = identify(os.getpid())
    assert me is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: 0.0)
        young, old = age_s(tree[1]), age_s(me)
        patch.setattr(processes, "_HAS_PROC", False)
        assert age_s(me) is None
    assert young is not None
    assert old is not None
    assert 0 <= young <= old
    # Its own start, in ticks, is what is between the two.
    assert old - young == pytest.approx((tree[1].start_time - me.start_time) / os.sysconf("SC_CLK_TCK"), abs=1)


def test_a_session_is_emptied_whatever_its_groups(tree: tuple[subprocess.Popen[bytes], ProcessIdentity, int]) -> None:
    process, identity, child = tree
    assert sorted(member.pid for member in session_members(identity)) == sorted([process.pid, child])

    async def story() -> None:
        assert not await session_empty(identity, 0.0)
        assert await empty_session(identity)
        assert await session_empty(identity, 0.0)
        assert await empty_session(identity)

    uvloop.run(story())
    assert identify(child) is None


def test_a_session_whose_leader_is_dead_is_still_ours(
    tree: tuple[subprocess.Popen[bytes], ProcessIdentity, int],
) -> None:
    process, identity, child = tree
    process.kill()
    process.wait()
    assert [member.pid for member in session_members(identity)] == [child]


@pytest.mark.parametrize("polled", [False, True])
def test_the_end_of_a_process_is_seen(monkeypatch: pytest.MonkeyPatch, polled: bool) -> None:
    if polled:
        monkeypatch.delattr(os, "pidfd_open")
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = identify(process.pid)
    assert identity is not None

    async def story() -> None:
        watch = ProcessWatch(identity)
        assert not watch.ended
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(10):
            await watch.wait()
        late = ProcessWatch(identity)
        async with asyncio.timeout(10):
            await late.wait()
        closed = ProcessWatch(identify(os.getpid()) or identity)
        closed.close()
        assert not closed.ended

    uvloop.run(story())
    process.wait()


def test_without_proc_ps_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/bin/ps").exists():
        pytest.skip("needs ps")
    monkeypatch.setattr(processes, "_HAS_PROC", False)
    me = identify(os.getpid())
    assert me is not None
    assert is_alive(me)
    assert os.getpid() in processes._all_pids()
