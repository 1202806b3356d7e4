"""One process at a time in a data folder: a lock that ends with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Self

from flx_api.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class DataLock:
    """Held while a daemon, or a command in its place, uses the data folder.

    Args:
        folder: the data folder.

    Raises:
        StartupError: on entering, when another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Take the lock."""
        # Inherited by nobody: a run that outlives the daemon must not keep its lock.
        descriptor = os.open(self._folder / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            msg = "FLX_DATA_DIR: another daemon uses this folder"
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
