"""What every kind of window promises, on each of the memories it can live in: the heap, shared memory, Redis.

A backend makes workers' windows over one memory. Heap windows cannot be shared: one worker there. On Redis the workers
are nodes of a fleet with strict leases, at a time that the test says (`tests/leased_windows.py`).

The upper bound, what costs, what a refusal tells and when quota is back is one contract. What is promised of a window
that sees every hit itself, and cannot be of leases, has tests of its own with the reason.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from itertools import count, cycle
from typing import TYPE_CHECKING, NamedTuple, Protocol

import pytest
from tests import leased_windows

from flx_api._core import SlidingWindow
from flx_api.limits import shared_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from redis import Redis

MS = 1_000_000


class Window(Protocol):
    def hit(self, key: bytes, now_ns: int, cost: int = 1) -> tuple[bool, int, int]: ...


class Backend(NamedTuple):
    """`workers`: of a limit and a window. `back_ms`: when units are back for certain, from when they were spent."""

    workers: Callable[[int, int], Sequence[Window]]
    back_ms: Callable[[int], float]


def in_memory(limit: int, window_ms: int) -> Sequence[Window]:
    return [SlidingWindow(limit, window_ms, max_bytes=1_000_000)]


def in_shared_memory(limit: int, window_ms: int) -> Sequence[Window]:
    descriptor = shared_memory.create(1_000_000)
    try:
        maps = [shared_memory.of_environment(str(descriptor)) for _ in range(4)]
        return [SlidingWindow(limit, window_ms, memory=memory) for memory in maps]
    finally:
        os.close(descriptor)


LOCAL = {
    "memory": Backend(in_memory, lambda window_ms: window_ms * 65 / 64),
    "shared": Backend(in_shared_memory, lambda window_ms: window_ms * 65 / 64),
}


@pytest.fixture(params=[*LOCAL, "redis"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param in LOCAL:
        yield LOCAL[request.param]
        return
    client: Redis = request.getfixturevalue("redis")
    made: list[leased_windows.LeasedWindow] = []

    def leased(limit: int, window_ms: int) -> Sequence[Window]:
        made.extend(leased_windows.fleet(client, limit, window_ms, nodes=4))
        return made[-4:]

    # A lease counts until its end and one window longer, whether or not it was spent.
    yield Backend(leased, lambda window_ms: window_ms * 66 / 64 + leased_windows.lease_ms(window_ms))
    for window in made:
        window.close(client)


@pytest.fixture(params=LOCAL)
def local(request: pytest.FixtureRequest) -> Backend:
    return LOCAL[request.param]


@pytest.mark.parametrize("limit", [1, 7, 64, 65, 500])
def test_overload_admits_exactly_the_limit(backend: Backend, limit: int) -> None:
    workers = cycle(backend.workers(limit, 1000))
    assert limit == sum(next(workers).hit(b"key", now)[0] for now in range(3 * limit))


def timeline(seed: int, steps: int) -> Iterator[tuple[int, int]]:
    """Times and costs: bursts, and pauses that end at the edges of slots and windows of 64 ms."""
    dice, now = random.Random(seed), 10**12
    for _ in range(steps):
        now += dice.choice([0, 0, 1, MS - 1, MS, 10 * MS, 63 * MS, 64 * MS]) if dice.random() < 0.3 else 0
        yield now, dice.randint(1, 3)


@pytest.mark.parametrize("limit", [7, 130])
def test_no_true_window_holds_more_than_the_limit(backend: Backend, limit: int) -> None:
    workers, log = cycle(backend.workers(limit, 64)), list[tuple[int, int]]()
    for now, cost in timeline(4, 4000):
        used = sum(units for at, units in log[-limit:] if now - at < 64 * MS)
        if next(workers).hit(b"key", now, cost)[0]:
            assert used + cost <= limit
            log.append((now, cost))
    assert sum(units for _, units in log) > 5 * limit


@pytest.mark.parametrize("limit", [1, 7, 130])
def test_the_whole_limit_is_back_when_it_is_promised(backend: Backend, limit: int) -> None:
    """Nothing leaks, and refused requests are not counted: time after time exactly the limit is admitted."""
    workers, now = cycle(backend.workers(limit, 64)), 10**12
    for _ in range(5):
        assert limit == sum(next(workers).hit(b"key", now)[0] for _ in range(3 * limit + 4))
        now += round(backend.back_ms(64) * MS)


def test_costs_add_up(backend: Backend) -> None:
    """What does not fit is refused whole, and what fits beside it is admitted."""
    workers = cycle(backend.workers(10, 1000))
    assert [True, True, False, False] == [next(workers).hit(b"key", 5, 4)[0] for _ in range(4)]
    assert 2 == sum(next(workers).hit(b"key", 6)[0] for _ in range(8))
    assert not any(next(workers).hit(b"other", 7, 11)[0] for _ in range(4)), "more than the limit never fits"


def test_who_comes_back_at_the_reset_gets_in(backend: Backend) -> None:
    """Before it a request is refused again; whoever keeps to it is admitted by the time units are back for certain."""
    workers = backend.workers(100, 64)
    spent, turn = 5 * MS + 400, cycle(workers)
    assert 100 == sum(next(turn).hit(b"key", 5 * MS + unit)[0] for unit in range(400))
    for worker in workers:
        now = 30 * MS
        admitted, remaining, reset_ns = worker.hit(b"key", now)
        while not admitted:
            assert 0 == remaining
            assert not worker.hit(b"key", now + reset_ns - 1)[0]
            now += reset_ns
            assert now <= spent + backend.back_ms(64) * MS
            admitted, remaining, reset_ns = worker.hit(b"key", now)


def test_keys_do_not_meet(backend: Backend) -> None:
    workers = cycle(backend.workers(1, 1000))
    assert all(next(workers).hit(str(key).encode(), 5)[0] for key in range(100))
    assert not any(next(workers).hit(str(key).encode(), 6)[0] for key in range(100))


@pytest.mark.parametrize("limit", [7, 130])
def test_a_refusal_means_that_the_limit_was_used(local: Backend, limit: int) -> None:
    """Of leases it may also mean that other nodes hold what is left, until these end."""
    workers, log = cycle(local.workers(limit, 64)), list[tuple[int, int]]()
    for now, cost in timeline(4, 4000):
        recently = sum(units for at, units in log[-2 * limit :] if now - at <= 65 * MS)
        if next(workers).hit(b"key", now, cost)[0]:
            log.append((now, cost))
        else:
            assert recently + cost > limit


def test_reset_is_when_it_fits(local: Backend) -> None:
    """Of leases it is when asking again may help: other nodes may have returned some, or have been faster."""
    workers = cycle(local.workers(100, 64))
    assert all(next(workers).hit(b"key", 5 * MS + unit)[0] for unit in range(100))
    admitted, remaining, reset_ns = next(workers).hit(b"key", 30 * MS)
    assert (False, 0) == (admitted, remaining)
    assert not next(workers).hit(b"key", 30 * MS + reset_ns - 1)[0]
    assert next(workers).hit(b"key", 30 * MS + reset_ns)[0]


_WORKER = """
import os, sys, time
from flx_api._core import SlidingWindow
from flx_api.limits import shared_memory
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
limit, window_ms, keys = map(int, sys.argv[2:5])
window = SlidingWindow(limit, window_ms, memory=shared_memory.of_environment(os.environ[shared_memory.SHARED_MEMORY]))
turn = os.getpid()
while True:
    turn += 1
    key = turn * 7919 % keys
    before = time.monotonic_ns()
    if window.hit(b"%d" % key, before)[0]:
        os.write(log, b"%d %d %d\\n" % (key, before, time.monotonic_ns()))
"""


@pytest.mark.parametrize(("limit", "keys"), [(20, 2), (300, 2), (2, 3000)])
def test_processes_stopped_and_killed_at_random(tmp_path: Path, limit: int, keys: int) -> None:
    """Four workers under 20 kills and 40 stops: the bound holds, nobody is wedged, and nothing stays leaked.

    Of shared memory alone: heap windows have one process, and what nodes on Redis do is in `tests/faults`.
    """
    window_ms, dice = 200, random.Random(limit)
    descriptor = shared_memory.create(300_000)
    environ = os.environ | {shared_memory.SHARED_MEMORY: str(descriptor)}
    names = count()

    def start() -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", _WORKER, str(tmp_path / str(next(names))), str(limit), str(window_ms), str(keys)]
        return subprocess.Popen(argv, env=environ, pass_fds=[descriptor])

    workers = [start() for _ in range(4)]
    try:
        _wait_for_lines(tmp_path)
        for turn in range(60):
            chosen = dice.randrange(4)
            if turn % 3 == 2:
                workers[chosen].kill()
                workers[chosen].wait()
                workers[chosen] = start()
            else:
                workers[chosen].send_signal(signal.SIGSTOP)
                _pass(dice.uniform(0, 0.05))
                workers[chosen].send_signal(signal.SIGCONT)
            _pass(dice.uniform(0, 0.02))
        _pass(2 * window_ms / 1000)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    admitted = sorted(_admitted(tmp_path))
    _judge(admitted, limit, window_ms)
    # Whatever the dead took is free again: after a window and a bit each key has its whole limit.
    memory = shared_memory.of_environment(str(descriptor))
    os.close(descriptor)
    window, later = SlidingWindow(limit, window_ms, memory=memory), time.monotonic_ns() + 2 * window_ms * MS
    assert all(window.hit(b"%d" % key, later, limit)[0] for key in range(min(keys, 2)))


def _judge(admitted: list[tuple[int, int, int]], limit: int, window_ms: int) -> None:
    """An admission took place between two readings of the clock: it is in a window for sure when both are."""
    logs: dict[int, list[tuple[int, int]]] = {}
    for key, before, after in admitted:
        logs.setdefault(key, []).append((before, after))
    for log in logs.values():
        for start, (begin, _) in enumerate(log):
            # The next ones in order of time; those that a stop drew out are the only ones that end late.
            inside = [1 for before, after in log[start : start + 2 * limit + 8] if after < begin + window_ms * MS]
            assert len(inside) <= limit
    assert len(admitted) > limit


def _admitted(folder: Path) -> Iterator[tuple[int, int, int]]:
    for file in folder.iterdir():
        for line in file.read_text("ascii").splitlines():
            key, before, after = map(int, line.split())
            yield key, before, after


def _wait_for_lines(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not any(file.stat().st_size for file in folder.iterdir()):
        assert time.monotonic() < deadline, "no worker started"
        time.sleep(0.01)


def _pass(seconds: float) -> None:
    """Let the workers run: their time is real, so the test's is too."""
    time.sleep(seconds)
