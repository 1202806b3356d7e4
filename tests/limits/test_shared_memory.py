"""The workers' shared memory: who makes it, who finds it, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from flx_api import _core
from flx_api.errors import StartupError
from flx_api.limits import shared_memory

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def made(size: int = 1_000_000) -> Iterator[int]:
    descriptor = shared_memory.create(size)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_a_window_is_one_over_two_mappings() -> None:
    with made() as descriptor:
        maps = [shared_memory.of_environment(str(descriptor)) for _ in range(2)]
    one, other = (_core.SlidingWindow(3, 1000, memory=memory) for memory in maps)
    assert [True, True, True, False] == [window.hit(b"key", 5)[0] for window in (one, other, one, other)]


def test_it_goes_by_its_number_to_another_program() -> None:
    program = (
        "import os, sys; from flx_api import _core; from flx_api.limits import shared_memory as it\n"
        "window = _core.SlidingWindow(3, 1000, memory=it.of_environment(os.environ[it.SHARED_MEMORY]))\n"
        "sys.exit(window.hit(b'key', 5)[1])"
    )
    with made() as descriptor:
        window = _core.SlidingWindow(3, 1000, memory=shared_memory.of_environment(str(descriptor)))
        environ = os.environ | {shared_memory.SHARED_MEMORY: str(descriptor)}
        child = subprocess.run([sys.executable, "-c", program], env=environ, pass_fds=[descriptor], check=False)
    assert 2 == child.returncode
    assert (True, 1, 1_000_000_000) == window.hit(b"key", 5)


def test_each_memory_has_a_seed_of_its_own() -> None:
    with made() as one, made() as other:
        assert os.pread(one, 16, 16) != os.pread(other, 16, 16)


def test_no_supervisor_no_memory() -> None:
    assert shared_memory.of_environment(None) is None
    assert shared_memory.of_environment("") is None


def test_the_memory_cannot_be_cut_short() -> None:
    with made() as descriptor, pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)


def test_what_is_not_the_memory_is_refused() -> None:
    unmarked = os.memfd_create("unmarked")
    try:
        os.ftruncate(unmarked, 1_000_000)
        for value in ("x", "-1", "99999", "9" * 30, str(unmarked)):
            with pytest.raises(StartupError, match=shared_memory.SHARED_MEMORY):
                shared_memory.of_environment(value)
        with pytest.raises(ValueError, match="too small"):
            shared_memory.create(64)
    finally:
        os.close(unmarked)


def test_marked_memory_is_not_marked_again() -> None:
    with made() as descriptor:
        with pytest.raises(ValueError, match="in use"):
            _core.SharedMemory(descriptor, create=True)
        with pytest.raises(ValueError, match="laid out"):
            _core.SharedMemory(descriptor, layout=99)


def test_one_memory_holds_one_window() -> None:
    with made() as descriptor:
        memory = shared_memory.of_environment(str(descriptor))
    _core.SlidingWindow(3, 1000, memory=memory)
    with pytest.raises(ValueError, match="another rate"):
        _core.SlidingWindow(4, 1000, memory=memory)
