"""The memory that all gateway workers of one host share.

Strategy: `flx serve` makes one anonymous memory file and keeps it open; the gateway inherits the descriptor, whose
number travels in the environment, and its workers inherit it in turn. So the memory outlives a worker and the gateway,
and ends with the last process that has it open, however that ends. A full restart starts with fresh windows.

Rules:
- The file has no name: there is nothing to clean up, and nothing that another user could open or cut short.
- Its pages are given by the system as they are first touched; the size is a bound, not a cost.
- A gateway under another server has no such memory: its workers count apart.
"""

from __future__ import annotations

import fcntl
import os
import tempfile

from flx_api import _core
from flx_api.errors import StartupError

SHARED_MEMORY = "FLX_INTERNAL_SHARED_MEMORY"
"""What the supervisor tells the gateway: the descriptor of the memory, an inherited one."""

WINDOW_BYTES = 64 * 1024 * 1024
"""The bound of all windows together."""

COUNTER_BYTES = 1024 * 1024
"""Room for counters, before the windows."""

_HEADER_BYTES = 64
_LAYOUT = 1


def create(size: int = _HEADER_BYTES + COUNTER_BYTES + WINDOW_BYTES) -> int:
    """Make the memory, marked and with a fresh seed; the caller keeps the returned descriptor open.

    Raises:
        OSError: the system has no room for it.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("flx-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
        if hasattr(fcntl, "F_ADD_SEALS"):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        _core.SharedMemory(descriptor, layout=_LAYOUT, create=True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def of_environment(value: str | None) -> _core.SharedMemory | None:
    """The memory that the supervisor named, or None when there is no supervisor.

    Raises:
        StartupError: what is named is not that memory.
    """
    if not value:
        return None
    try:
        return _core.SharedMemory(int(value), layout=_LAYOUT)
    except (ValueError, OverflowError, OSError) as error:
        msg = f"{SHARED_MEMORY}: not the supervisor's memory: {error}"
        raise StartupError(msg) from None
