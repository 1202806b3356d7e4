"""HTTP/2 under our gRPC: h2's connection with a short way for the one frame that makes up a command's journey.

Strategy: a command and its reply are one DATA frame each, on a stream that stays open. h2 sends each of them through
frame objects, two state machines and log messages that nobody reads: two thirds of all that Python does between gateway
and daemon (docs/decisions/0008). `Connection` is h2's connection; a frame that is whole, unpadded, not the last of its
stream and within all windows changes nothing but the windows (RFC 9113, sections 5.2 and 6.1), so that is all it does
here. Whatever else there is goes h2's way.

A GOAWAY without an error is no end but a farewell (RFC 9113, section 6.8): no new streams, and those that are open go
on. For h2 it is the end. So whoever wants to part in peace says so with `part`, and hears it by `on_parting`.

Rules:
- Without `on_parting`, a GOAWAY is what h2 makes of it.
- What is not certain to be such a frame is h2's, from its first byte; h2 is the judge in the tests, frame by frame.
- It uses names that h2 keeps for itself, so it is installed for the versions it was written against, and only there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpclib.protocol
import h2
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived
from h2.stream import StreamState
from hyperframe.frame import GoAwayFrame

from flx_api.proto.buffer import Buffer

if TYPE_CHECKING:
    from collections.abc import Callable

    from h2.events import Event
    from h2.stream import H2Stream
    from h2.windows import WindowManager
    from hyperframe.frame import Frame

KNOWN_VERSIONS: Final = ("4.4.",)
_HEAD: Final = 9
_DATA: Final = b"\0\0"
"""The type DATA, and no flags."""
_OPEN: Final = frozenset({ConnectionState.CLIENT_OPEN, ConnectionState.SERVER_OPEN})
_RECEIVING: Final = frozenset({StreamState.OPEN, StreamState.HALF_CLOSED_LOCAL})
_SENDING: Final = frozenset({StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE})


# Every stream that is on its way is still taken; RFC 9113 has this number for a farewell.
_ALL_STREAMS: Final = 2**31 - 1


class Connection(H2Connection):
    """h2's connection."""

    on_parting: Callable[[int], None] | None = None
    """Told that the peer wants no new streams, with the number of the last one that it takes."""

    def part(self) -> None:
        """Tell the peer to open no new streams here; those that are open go on."""
        if self.state_machine.state not in _OPEN:
            return
        frame = GoAwayFrame(0)
        frame.last_stream_id = _ALL_STREAMS
        frame.error_code = ErrorCodes.NO_ERROR
        self._prepare_for_sending([frame])

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        if self.on_parting is None or frame.error_code != ErrorCodes.NO_ERROR or self.state_machine.state not in _OPEN:
            return super()._receive_goaway_frame(frame)
        self.on_parting(frame.last_stream_id)
        return [], []

    def receive_data(self, data: Any) -> list[Event]:  # noqa: ANN401 - bytes, or what h2 takes for bytes
        """What the peer sent, as events; in h2's words."""
        events: list[Event] = []
        buffer = self.incoming_buffer
        if not (buffer._data or buffer._headers_buffer or buffer._preamble_len) and self.state_machine.state in _OPEN:  # noqa: SLF001 - see the rules
            size, start = len(data), 0
            while size >= start + _HEAD and data[start + 3 : start + 5] == _DATA:
                end = start + _HEAD + int.from_bytes(data[start : start + 3], "big")
                if end > size:
                    break
                event = self._plain_data(int.from_bytes(data[start + 5 : start + 9], "big"), data[start + _HEAD : end])
                if event is None:
                    break
                events.append(event)
                start = end
            if start == size:
                return events
            data = data[start:]
        events += super().receive_data(data)
        return events

    def _plain_data(self, stream_id: int, data: bytes) -> DataReceived | None:
        """Receive a frame that changes nothing but windows; None, and nothing done, when it may do more."""
        stream: H2Stream | None = self.streams.get(stream_id)
        if stream is None:
            return None
        machine, size = stream.state_machine, len(data)
        ours, its = self._inbound_flow_control_window_manager, stream._inbound_window_manager  # noqa: SLF001
        if (
            machine.state not in _RECEIVING
            or not machine.headers_received
            or stream._expected_content_length is not None  # noqa: SLF001
            or size > self.max_inbound_frame_size
            or size > ours.current_window_size
            or size > its.current_window_size
        ):
            return None
        ours.current_window_size -= size
        its.current_window_size -= size
        return DataReceived(stream_id=stream_id, data=data, flow_controlled_length=size)

    def send_data(
        self,
        stream_id: int,
        data: bytes | memoryview,
        end_stream: bool = False,  # noqa: FBT001, FBT002 - h2's signature
        pad_length: Any = None,  # noqa: ANN401 - and this
    ) -> None:
        """Send a frame of data; in h2's words."""
        stream: H2Stream | None = self.streams.get(stream_id)
        size = len(data)
        if (
            end_stream
            or pad_length is not None
            or type(data) is not bytes
            or stream is None
            or stream.state_machine.state not in _SENDING
            or self.state_machine.state not in _OPEN
            or not 0 < size <= self.max_outbound_frame_size
            or size > self.outbound_flow_control_window
            or size > stream.outbound_flow_control_window
        ):
            super().send_data(stream_id, data, end_stream, pad_length)
            return
        self.outbound_flow_control_window -= size
        stream.outbound_flow_control_window -= size
        self._data_to_send += size.to_bytes(3, "big") + _DATA + stream_id.to_bytes(4, "big") + data

    def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
        """Hand room back to the peer; in h2's words."""
        stream: H2Stream | None = self.streams.get(stream_id)
        if stream is None or not stream.open or acknowledged_size < 0:
            super().acknowledge_received_data(acknowledged_size, stream_id)
            return
        ours, its = self._inbound_flow_control_window_manager, stream._inbound_window_manager  # noqa: SLF001
        if _tells(ours, acknowledged_size) or _tells(its, acknowledged_size):
            super().acknowledge_received_data(acknowledged_size, stream_id)
            return
        ours._bytes_processed += acknowledged_size  # noqa: SLF001
        its._bytes_processed += acknowledged_size  # noqa: SLF001


def _tells(window: WindowManager, size: int) -> bool:
    """Whether it may be time for a WINDOW_UPDATE."""
    return window.current_window_size == 0 or window._bytes_processed + size >= window.max_window_size // 2  # noqa: SLF001


def install() -> bool:
    """Let grpclib use this connection and our buffer from now on; whether it does."""
    if grpclib.protocol.H2Connection is Connection:  # type: ignore[attr-defined]
        return True
    if not h2.__version__.startswith(KNOWN_VERSIONS):
        return False
    grpclib.protocol.H2Connection = Connection  # type: ignore[attr-defined]
    grpclib.protocol.Buffer = Buffer  # type: ignore[misc, assignment]
    return True
