"""The socket of one connection, found among those of this process by its two addresses.

Strategy: RSGI gives a streamed response neither a way to break it off nor a word on how fast it is taken. Both can be
had from the socket below: shut down, it cuts the response; writable again, it says that the peer has read.

Rules:
- A duplicate is held, never the server's own descriptor: that one may be closed and given out anew at any moment.
- Linux only, and only for TCP. Where nothing is found, a stream goes on without both, and the log says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Final

_DESCRIPTORS: Final = "/proc/self/fd"
Address = tuple[str, int]


def address_of(text: str) -> Address:
    """Host and port of `1.2.3.4:5` or `[::1]:5`; port 0 when there is none."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        return text, 0
    return host.removeprefix("[").removesuffix("]"), int(port)


class PeerSocket:
    """A duplicate of the socket of one connection."""

    def __init__(self, duplicate: socket.socket) -> None:
        self._socket = duplicate

    @classmethod
    def find(cls, local: Address, peer: Address) -> PeerSocket | None:
        """The connection between these two, or None when this process has no such socket."""
        try:
            names = os.listdir(_DESCRIPTORS)  # noqa: PTH208 - names are numbers here, and there may be thousands
        except OSError:
            return None
        for name in names:
            candidate = _duplicate(int(name))
            if candidate is None:
                continue
            with contextlib.suppress(OSError):
                if candidate.getpeername()[:2] == peer and candidate.getsockname()[:2] == local:
                    return cls(candidate)
            candidate.close()
        return None

    async def room(self) -> None:
        """Wait until the peer has taken enough for more to be written, or is gone."""
        loop = asyncio.get_running_loop()
        writable = loop.create_future()
        descriptor = self._socket.fileno()
        loop.add_writer(descriptor, _arrived, writable)
        try:
            await writable
        finally:
            loop.remove_writer(descriptor)

    def cut(self) -> None:
        """End the connection in both directions, whoever uses it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the duplicate back; the connection lives on."""
        self._socket.close()


def _duplicate(descriptor: int) -> socket.socket | None:
    """A socket object of its own for a descriptor; None when that is no TCP socket."""
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    try:
        found = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
    if found.family in {socket.AF_INET, socket.AF_INET6} and found.type == socket.SOCK_STREAM:
        return found
    found.close()
    return None


def _arrived(writable: asyncio.Future[None]) -> None:
    if not writable.done():
        writable.set_result(None)
