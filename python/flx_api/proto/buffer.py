"""What a stream has received and nobody has read yet: grpclib's `Buffer`, without a queue of chunks.

Strategy: bytes wait in one array; whoever reads takes as many as he asked for, in the usual case without waiting. Room
is handed back to the peer (`ack`) for what was taken and for what a reader waits to have the rest of, never for more: a
reader that stops reading stops the peer. What is owed is handed back at the latest before the next wait.

Whoever takes every message as it comes has it with `messages`, within the call that brings its last byte: no task is
woken for it.

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
# gRPC over HTTP/2: whether it is compressed, and the length.
_HEAD: Final = 5


class Buffer:
    """Received bytes of one stream.

    Args:
        ack: hands room back to the peer: so many bytes.
    """

    __slots__ = ("_ack", "_acked", "_bytes", "_eof", "_owed", "_reader", "_take")

    def __init__(self, ack: Callable[[int], None]) -> None:
        self._ack = ack
        self._bytes = bytearray()
        # How many of the first bytes are paid for already, and what is to be handed back for those that are gone.
        self._acked = 0
        self._owed = 0
        self._eof = False
        self._reader: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], None] | None = None

    def add(self, data: bytes, ack_size: int) -> None:
        """Received: `ack_size` is its length and that of its padding."""
        self._bytes += data
        self._owed += ack_size - len(data)
        if self._take is None:
            self._wake()
        else:
            self._deliver()

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
            self._claim()
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if len(received) < size:
            self._end()
            return b""
        data = bytes(received[:size])
        self._drop(size)
        if self._owed > _OWED_AT_MOST:
            self._hand_back()
        return data

    def whole_message(self) -> bytes | None:
        """The next gRPC message, if it is here and nobody need wait; None also for one that must not be, for `read`."""
        received = self._bytes
        if len(received) < _HEAD or received[0]:
            return None
        end = _HEAD + int.from_bytes(received[1:_HEAD], "big")
        if end > min(len(received), _HEAD + MAX_MESSAGE_BYTES):
            return None
        message = bytes(received[_HEAD:end])
        self._drop(end)
        if self._owed > _OWED_AT_MOST:
            self._hand_back()
        return message

    async def messages(self, take: Callable[[bytes], None]) -> None:
        """Give every gRPC message to `take` as soon as it is whole, until the stream ends.

        Raises:
            AssertionError: it ended within a message.
            ProtocolError: a message is compressed, or larger than one may be.
            Exception: whatever `take` raises.
        """
        self._reader = asyncio.get_running_loop().create_future()
        self._take = take
        try:
            self._deliver()
            if not self._eof:
                await self._reader
        finally:
            reader, self._reader, self._take = self._reader, None, None
        if reader.done():
            reader.result()
        self._end()

    def _deliver(self) -> None:
        """Give away what is whole. What goes wrong is told to whoever waits, and not to the connection."""
        received, take = self._bytes, self._take
        try:
            while take is not None and len(received) >= _HEAD:
                end = _HEAD + int.from_bytes(received[1:_HEAD], "big")
                if received[0] or end > _HEAD + MAX_MESSAGE_BYTES:
                    msg = f"a message that is compressed, or of more than {MAX_MESSAGE_BYTES} bytes"
                    raise ProtocolError(msg)  # noqa: TRY301 - told in one place
                if len(received) < end:
                    break
                message = bytes(received[_HEAD:end])
                self._drop(end)
                take(message)
        except Exception as error:  # noqa: BLE001 - see above
            self._take = None
            if self._reader is not None and not self._reader.done():
                self._reader.set_exception(error)
        else:
            self._claim()

    def _end(self) -> None:
        """The stream has ended: there must be nothing left."""
        if self._bytes:
            msg = "Received less data than expected"
            raise AssertionError(msg)

    def _drop(self, size: int) -> None:
        """So many bytes are read."""
        del self._bytes[:size]
        if self._acked >= size:
            self._acked -= size
        else:
            self._owed += size - self._acked
            self._acked = 0

    def _claim(self) -> None:
        """Whoever waits for the rest of something has claimed its beginning."""
        self._owed += len(self._bytes) - self._acked
        self._acked = len(self._bytes)
        self._hand_back()

    def _hand_back(self) -> None:
        if self._owed:
            owed, self._owed = self._owed, 0
            self._ack(owed)

    def unacked_size(self) -> int:
        """What was not handed back yet; from now on it counts as handed back."""
        size = self._owed + len(self._bytes) - self._acked
        self._owed, self._acked = 0, len(self._bytes)
        return size
