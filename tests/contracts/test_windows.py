"""What every kind of window promises, on each of the memories it can live in.

A backend is a function that makes workers' windows over one memory. Heap windows cannot be shared: one worker there.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count, cycle
from typing import TYPE_CHECKING, Protocol

import pytest

from flx_api._core import SlidingWindow
from flx_api.limits import shared_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MS = 1_000_000


class Window(Protocol):
    def hit(self, key: bytes, now_ns: int, cost: int = 1) -> tuple[bool, int, int]: ...


Backend = Callable[[int, int], "Sequence[Window]"]


def in_memory(limit: int, window_ms: int) -> Sequence[Window]:
    return [SlidingWindow(limit, window_ms, max_bytes=1_000_000)]


def in_shared_memory(limit: int, window_ms: int) -> Sequence[Window]:
    descriptor = shared_memory.create(1_000_000)
    try:
        maps = [shared_memory.of_environment(str(descriptor)) for _ in range(4)]
        return [SlidingWindow(limit, window_ms, memory=memory) for memory in maps]
    finally:
        os.close(descriptor)


@pytest.fixture(params=[in_memory, in_shared_memory])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.mark.parametrize("limit", [1, 7, 64, 65, 500])
def test_overload_admits_exactly_the_limit(backend: Backend, limit: int) -> None:
    workers = cycle(backend(limit, 1000))
    assert limit == sum(next(workers).hit(b"key", now)[0] for now in range(3 * limit))


@pytest.mark.parametrize("limit", [7, 130])
def test_no_true_window_holds_more_than_the_limit(backend: Backend, limit: int) -> None:
    dice = random.Random(4)
    workers, now, log = cycle(backend(limit, 64)), 10**12, list[tuple[int, int]]()
    for _ in range(4000):
        now += dice.choice([0, 0, 1, MS - 1, MS, 10 * MS, 63 * MS, 64 * MS]) if dice.random() < 0.3 else 0
        cost = dice.randint(1, 3)
        used = sum(units for at, units in log if now - at < 64 * MS)
        recently = sum(units for at, units in log if now - at <= 65 * MS)
        if next(workers).hit(b"key", now, cost)[0]:
            assert used + cost <= limit
            log.append((now, cost))
        else:
            assert recently + cost > limit


def test_reset_is_when_it_fits(backend: Backend) -> None:
    workers = cycle(backend(100, 64))
    assert all(next(workers).hit(b"key", 5 * MS + unit)[0] for unit in range(100))
    admitted, remaining, reset_ns = next(workers).hit(b"key", 30 * MS)
    assert (False, 0) == (admitted, remaining)
    assert not next(workers).hit(b"key", 30 * MS + reset_ns - 1)[0]
    assert next(workers).hit(b"key", 30 * MS + reset_ns)[0]


def test_keys_do_not_meet(backend: Backend) -> None:
    workers = cycle(backend(1, 1000))
    assert all(next(workers).hit(str(key).encode(), 5)[0] for key in range(100))
    assert not any(next(workers).hit(str(key).encode(), 6)[0] for key in range(100))


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
    """Four workers under 20 kills and 40 stops: the bound holds, nobody is wedged, and nothing stays leaked."""
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
