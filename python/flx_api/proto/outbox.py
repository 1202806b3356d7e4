"""What is to leave on one long-lived gRPC stream: all that comes within one tick of the loop leaves as one message.

Strategy: the first frame of a tick asks the loop for a flush at the tick's end, without any linger. A flush hands its
message to the transport there and then, as long as nothing has to be waited for; that needs no task and is nearly
always so. Else `write`, the stream's own task, waits and sends, and until it is done nothing overtakes it.

Rules:
- `sent` is called when frames have been handed to the transport, with their number: backpressure counts by it.
- A stream that fails does so in `write`, whoever met it first.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from h2.exceptions import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Frame = TypeVar("Frame")


class Message(Protocol):
    """A protobuf message."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """As bytes."""
        ...


class Outbox(Generic[Frame]):
    """The outgoing side of one stream.

    Args:
        stream: a grpclib stream whose initial metadata have left.
        pack: frames as messages of a bearable size, each with its number of frames; in the usual case one.
        sent: told how many frames have left.
        join: frames as the bytes of one message, or None when they need several; by default what `pack` makes of them.
    """

    def __init__(
        self,
        stream: Any,  # noqa: ANN401 - grpclib.client.Stream or grpclib.server.Stream, which have no common type
        pack: Callable[[list[Frame]], Sequence[tuple[Message, int]]],
        sent: Callable[[int], None] = lambda _count: None,
        join: Callable[[list[Frame]], bytes | None] | None = None,
    ) -> None:
        self._stream = stream
        self._pack = pack
        self._join = join or self._packed
        self._sent = sent
        self._loop = asyncio.get_running_loop()
        self._frames: list[Frame] = []
        self._is_due = False
        self._is_waiting = False
        self._is_last = False
        self._wake = asyncio.Event()

    def end(self) -> None:
        """Send what is here, and then that nothing more comes; nothing may be put after this."""
        self._is_last = True
        self._wake.set()

    def put(self, frame: Frame) -> None:
        """Let a frame leave with this tick."""
        self._frames.append(frame)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def put_many(self, frames: Sequence[Frame]) -> None:
        """Let frames leave with this tick."""
        self._frames += frames
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = False
        if self._is_waiting or not self._frames:
            return
        frames, self._frames = self._frames, []
        message = self._join(frames)
        if message is not None and send_now(self._stream, message):
            self._sent(len(frames))
            return
        self._frames = frames
        self._is_waiting = True
        self._wake.set()

    def _packed(self, frames: list[Frame]) -> bytes | None:
        messages = self._pack(frames)
        return messages[0][0].SerializeToString() if len(messages) == 1 else None

    async def write(self) -> None:
        """Send what cannot leave at once, until `end`; raises what grpclib raises when the stream ends before that."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._frames:
                frames, self._frames = self._frames, []
                for message, count in self._pack(frames):
                    await self._stream.send_message(message)
                    self._sent(count)
            self._is_waiting = False
            if self._is_last:
                await self._stream.end()
                return


def send_now(stream: Any, message: bytes) -> bool:  # noqa: ANN401 - see above
    """Hand a message to the transport; False, and nothing done, when that needs waiting or the stream is at its end."""
    wire = stream._stream  # noqa: SLF001 - grpclib offers this only as a coroutine
    connection, http2 = wire.connection, wire._h2_connection  # noqa: SLF001
    # gRPC over HTTP/2: not compressed, the length, the message.
    data = b"\0" + len(message).to_bytes(4, "big") + message
    most: int = http2.max_outbound_frame_size
    try:
        if not connection.write_ready.is_set() or wire._transport.is_closing():  # noqa: SLF001
            return False
        if len(data) > http2.local_flow_control_window(wire.id):
            return False
        for start in range(0, len(data), most):
            http2.send_data(wire.id, data[start : start + most])
    except ProtocolError:
        return False
    wire._transport.write(http2.data_to_send())  # noqa: SLF001
    connection.data_send_process()
    return True
