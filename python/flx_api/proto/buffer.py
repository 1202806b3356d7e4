"""What a stream has received and nobody has read yet: grpclib's `Buffer`, without a queue of chunks.

Strategy: bytes wait in one array; whoever reads takes as many as he asked for, in the usual case without waiting. Room
is handed back to the peer (`ack`) for what was taken and for what a reader waits to have the rest of, never for more: a
reader that stops reading stops the peer. What is owed is handed back at the latest before the next wait.

Rules:
- Nobody may ask for more than `MAX_MESSAGE_BYTES` at once: the peer would only have to name a number for it.
- One reader at a time, as grpclib has it.
- Padding counts against the windows like data (RFC 9113, section 6.1) and is handed back with the data it came with.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from grpclib.exceptions import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

# Of one message, either way. A daemon says so to whoever sends more (`flx_api.daemon.limits`).
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
_OWED_AT_MOST = 16_384


class Buffer:
    """Received bytes of one stream.

    Args:
        ack: hands room back to the peer: so many bytes.
    """

    __slots__ = ("_ack", "_acked", "_bytes", "_eof", "_owed", "_reader")

    def __init__(self, ack: Callable[[int], None]) -> None:
        self._ack = ack
        self._bytes = bytearray()
        # How many of the first bytes are paid for already, and what is to be handed back for those that are gone.
        self._acked = 0
        self._owed = 0
        self._eof = False
        self._reader: asyncio.Future[None] | None = None

    def add(self, data: bytes, ack_size: int) -> None:
        """Received: `ack_size` is its length and that of its padding."""
        self._bytes += data
        self._owed += ack_size - len(data)
        self._wake()

    def eof(self) -> None:
        """Nothing more comes."""
        self._eof = True
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def read(self, size: int) -> bytes:
        """So many bytes; none when the stream has ended.

        Raises:
            AssertionError: it ended with fewer (as grpclib says it).
            ProtocolError: it is more than a message may have.
        """
        if size > MAX_MESSAGE_BYTES:
            msg = f"a message of more than {MAX_MESSAGE_BYTES} bytes"
            raise ProtocolError(msg)
        received = self._bytes
        while len(received) < size and not self._eof:
            # Whoever waits for the rest of something has claimed its beginning.
            self._owed += len(received) - self._acked
            self._acked = len(received)
            self._hand_back()
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if len(received) < size:
            if received:
                msg = "Received less data than expected"
                raise AssertionError(msg)
            return b""
        data = bytes(received[:size])
        del received[:size]
        if self._acked >= size:
            self._acked -= size
        else:
            self._owed += size - self._acked
            self._acked = 0
        if self._owed > _OWED_AT_MOST:
            self._hand_back()
        return data

    def _hand_back(self) -> None:
        if self._owed:
            owed, self._owed = self._owed, 0
            self._ack(owed)

    def unacked_size(self) -> int:
        """What was not handed back yet; from now on it counts as handed back."""
        size = self._owed + len(self._bytes) - self._acked
        self._owed, self._acked = 0, len(self._bytes)
        return size
