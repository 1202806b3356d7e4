"""How long the turns are for which a process asked the kernel."""

from __future__ import annotations

import ctypes
import os
import struct

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275, "riscv64": 275}


def turn_ns_of(pid: int) -> int | None:
    """Nanoseconds; None where the kernel (before Linux 6.12) does not know any."""
    number = SCHED_GETATTR.get(os.uname().machine)
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if number is None or release < (6, 12):
        return None
    found = ctypes.create_string_buffer(48)
    if ctypes.CDLL(None).syscall(ctypes.c_long(number), pid, found, len(found), 0):
        return None
    turn_ns: int = struct.unpack("=IIQiIQQQ", found.raw)[5]
    return turn_ns
