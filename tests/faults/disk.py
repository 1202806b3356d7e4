"""A disk that can lose power and fail, for the database of a real process: `disk.c` preloaded, and this end of it.

Strategy: the process works with its files as ever, while the shim keeps apart what is on the disk: what an fsync took
there. `cut_power`, after the process was killed, leaves of each file what was on the disk and, by chance, some sectors
of what was on its way: a disk writes in any order, and tears what is longer than a sector.

Rules:
- What is watched is the database and the files beside it whose names begin like it.
- The process must be dead when the power is cut, and the next one begins with what the cut left.
"""

from __future__ import annotations

import contextlib
import mmap
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, Final

import pytest
from tests.service import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from random import Random

_SOURCE = ROOT / "tests" / "faults" / "disk.c"
_SECTOR = 512
_ALL: Final = 2**64 - 1
_SWITCHES: Final = ("fsyncs", "fsync_us", "fsync_error", "fsyncs_fail", "write_error", "writes_fail", "dies_after")


def shim(folder: Path) -> Path:
    """The shim, compiled; the test is skipped where there is no C compiler."""
    built = folder / "disk.so"
    if shutil.which("cc") is None:
        pytest.skip("the disk that fails is a C library, and there is no compiler (cc)")
    command = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(built), str(_SOURCE), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return built


class Disk:
    """The disk under one database.

    Args:
        database: its file; it need not exist yet, its folder must.
        folder: where the shim and what the disk holds are kept.
    """

    def __init__(self, database: Path, folder: Path) -> None:
        self.database = database
        self._images = folder / "images"
        self._images.mkdir(parents=True)
        switches = folder / "switches"
        switches.write_bytes(bytes(8 * len(_SWITCHES)))
        with switches.open("r+b") as opened:
            self._switches = mmap.mmap(opened.fileno(), 0)
        self.environ = {
            "LD_PRELOAD": str(shim(folder)),
            "DISK_FILE": str(database),
            "DISK_IMAGES": str(self._images),
            "DISK_SWITCHES": str(switches),
        }
        """What a process needs to be on this disk."""
        self._settle()

    @property
    def fsyncs(self) -> int:
        """How many there were, of the database and the files beside it."""
        return int(struct.unpack_from("<Q", self._switches, 0)[0])

    def slow(self, fsync_us: int) -> None:
        """Let each fsync last so much longer."""
        self._set("fsync_us", fsync_us)

    def die_after(self, steps: int) -> None:
        """Kill the process in the place of its nth write or fsync from now; 0: never."""
        self._set("dies_after", steps)

    def fail_fsync(self, error: int, times: int) -> None:
        """Let the next fsyncs fail."""
        self._set("fsync_error", error)
        self._set("fsyncs_fail", times)

    @contextlib.contextmanager
    def failing_fsyncs(self, error: int) -> Iterator[None]:
        """Every fsync fails."""
        self.fail_fsync(error, _ALL)
        try:
            yield
        finally:
            self._set("fsyncs_fail", 0)

    @contextlib.contextmanager
    def failing_writes(self, error: int) -> Iterator[None]:
        """Every write fails."""
        self._set("write_error", error)
        self._set("writes_fail", _ALL)
        try:
            yield
        finally:
            self._set("writes_fail", 0)

    def cut_power(self, dice: Random) -> None:
        """Leave of the files what a loss of power would."""
        for name in ("dies_after", "fsyncs_fail", "writes_fail"):
            self._set(name, 0)
        # The worst case is that nothing of what was on its way has come; all of it is what kill -9 tests.
        chance = dice.choice((0.0, dice.random()))
        left = {}
        for image in self._images.iterdir():
            if image.name.startswith(self.database.name):
                live = self.database.with_name(image.name)
                same = live.exists() and (self._images / f"ino.{live.stat().st_ino}").exists()
                same = same and (self._images / f"ino.{live.stat().st_ino}").samefile(image)
                durable = image.read_bytes()
                left[image.name] = _torn(durable, live.read_bytes(), chance, dice) if same else durable
        for file in self._files():
            file.unlink()
        for name, content in left.items():
            self.database.with_name(name).write_bytes(content)
        self._settle()

    def _files(self) -> list[Path]:
        return [file for file in self.database.parent.iterdir() if file.name.startswith(self.database.name)]

    def _settle(self) -> None:
        """All there is, is on the disk."""
        for image in self._images.iterdir():
            image.unlink()
        for file in self._files():
            image = self._images / f"ino.{file.stat().st_ino}"
            shutil.copyfile(file, image)
            (self._images / file.name).hardlink_to(image)

    def _set(self, name: str, value: int) -> None:
        struct.pack_into("<Q", self._switches, 8 * _SWITCHES.index(name), value)


def _torn(durable: bytes, live: bytes, chance: float, dice: Random) -> bytes:
    """What is on the disk when each sector that is on its way comes there with this chance."""
    found = bytearray(durable)
    for at in range(0, len(live), _SECTOR):
        sector = live[at : at + _SECTOR]
        if sector != durable[at : at + _SECTOR] and dice.random() < chance:
            # A file that grew by a later sector holds zeros before it.
            found.extend(bytes(max(0, at - len(found))))
            found[at : at + len(sector)] = sector
    return bytes(found)
