"""A wall clock that a test sets, for services whose next event would be up to a minute away: `clock.c` preloaded.

Rule: it is only ever put forward, and never past a moment that the service waits for.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Final

import pytest
from tests.service import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_SOURCE: Final = ROOT / "tests" / "e2e" / "clock.c"
MINUTE_S: Final = 60


class WallClock:
    """The clock of one service.

    Args:
        folder: where its library and what it shows are kept.

    Attributes:
        environ: what a process needs to go by it.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("cc") is None:
            pytest.skip("the clock that can be set is a C library, and there is no compiler (cc)")
        library = folder / "clock.so"
        command = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        self._shift = folder / "clock-shift"
        self._shift_us = 0
        self._shift.write_bytes(struct.pack("<q", 0))
        self.environ = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(self._shift)}

    def now_s(self) -> float:
        """What it shows."""
        return time.time() + self._shift_us / 1e6

    def approach_minute(self, left_s: float) -> int:
        """Put it forward so that a minute begins in so many seconds, or later by itself; when that will be."""
        now_s = self.now_s()
        boundary_s = (int(now_s) // MINUTE_S + 1) * MINUTE_S
        if boundary_s - now_s < left_s:
            boundary_s += MINUTE_S
            return self._wait_for(boundary_s, left_s)
        self._put_forward(boundary_s - left_s - now_s)
        return boundary_s

    def leave_minute(self) -> None:
        """Put it forward to the beginning of the next one, before anybody looks at it."""
        self._put_forward(MINUTE_S - self.now_s() % MINUTE_S + 1)

    def _wait_for(self, boundary_s: int, left_s: float) -> int:
        """The minute that is about to begin is not to be passed over."""
        while self.now_s() < boundary_s - MINUTE_S + 1:
            time.sleep(0.05)
        self._put_forward(boundary_s - left_s - self.now_s())
        return boundary_s

    def _put_forward(self, by_s: float) -> None:
        self._shift_us += int(by_s * 1e6)
        with self._shift.open("r+b") as file:
            file.write(struct.pack("<q", self._shift_us))
