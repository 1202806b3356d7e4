"""One process at a time in a data folder: a lock that ends with the process, however that ends.

Strategy: a lock of the open file description (fcntl(2), F_OFD_SETLK). Whether somebody holds it can be asked without
taking it, so that who only looks never stands in the way of who begins.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING, Self

from flx_api.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

# struct flock: type, whence, start, length, pid, and what the compiler puts around them.
_FLOCK = struct.Struct("@hhqqi4x")
_WHOLE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class DataLock:
    """Held while a daemon, or a command in its place, uses the data folder; a service holds one of its own.

    Args:
        folder: the data folder.
        what: whose lock it is.

    Raises:
        StartupError: on entering, when another process holds it.
    """

    def __init__(self, folder: Path, what: str = "daemon") -> None:
        self._file = folder / f"{what}.lock"
        self._what = what
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Take the lock."""
        # Inherited by nobody: a run that outlives the daemon must not keep its lock.
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            msg = f"FLX_DATA_DIR: another {self._what} uses this folder"
            raise StartupError(msg) from None
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back; the end of the process does so too."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def is_held(self) -> bool:
        """Whether a process holds it; nothing is taken or made."""
        try:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE)
        finally:
            os.close(descriptor)
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
