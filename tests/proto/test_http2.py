"""The short way of DATA frames beside h2 itself: the same calls and bytes give the same events and bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpclib.protocol
import h2.connection
from h2.config import H2Configuration
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from flx_api.proto import http2

if TYPE_CHECKING:
    import pytest

REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":authority", "b")]
ANSWER = [(":status", "200")]
STREAMS = (1, 3)

Step = tuple[Any, ...]

sides = st.sampled_from(["client", "server"])
steps = st.one_of(
    st.tuples(st.just("data"), sides, st.sampled_from(STREAMS), st.integers(0, 300), st.booleans(), st.none()),
    st.tuples(st.just("data"), sides, st.sampled_from(STREAMS), st.integers(0, 300), st.just(False), st.just(3)),
    st.tuples(st.just("data"), sides, st.sampled_from(STREAMS), st.integers(0, 20_000), st.just(False), st.none()),
    st.tuples(st.just("ack"), sides, st.sampled_from(STREAMS), st.integers(1, 400)),
    st.tuples(st.just("window"), sides, st.sampled_from((*STREAMS, None)), st.integers(1, 400)),
    st.tuples(st.just("initial"), sides, st.integers(0, 70_000)),
    st.tuples(st.just("reset"), sides, st.sampled_from(STREAMS)),
    st.tuples(st.just("answer"), st.just("server"), st.sampled_from(STREAMS)),
    st.tuples(st.just("trailers"), sides, st.sampled_from(STREAMS)),
    st.tuples(st.just("ping"), sides),
    st.tuples(st.just("goaway"), sides),
    st.tuples(st.just("deliver"), sides, st.lists(st.integers(1, 40), max_size=6)),
    st.tuples(st.just("raw"), sides, st.sampled_from((*STREAMS, 5, 0)), st.integers(0, 50), st.sampled_from([0, 1, 8])),
)


class Pair:
    """A client and a server that speak with each other, and everything they said."""

    def __init__(self, kind: type[h2.connection.H2Connection]) -> None:
        self.client = kind(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.server = kind(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.told: list[Any] = []
        # What a side has sent and the other has not read yet.
        self.wire = {"client": b"", "server": b""}
        self.client.initiate_connection()
        self.server.initiate_connection()
        for stream in STREAMS:
            self.client.send_headers(stream, REQUEST)
        for _ in range(2):
            self.do(("deliver", "client", []))
            self.do(("deliver", "server", []))
        # One stream is answered, the other is not yet.
        self.do(("answer", "server", STREAMS[0]))
        self.do(("deliver", "server", []))

    def do(self, step: Step) -> None:
        """One call, or the arrival of bytes; what came of it is noted."""
        what, side, *args = step
        try:
            getattr(self, what)(side, *args)
        except (ProtocolError, AssertionError) as error:
            self.told.append((what, type(error).__name__))
        for name in ("client", "server"):
            sent = getattr(self, name).data_to_send()
            self.wire[name] += sent
            self.told.append(sent)

    def data(self, side: str, stream: int, size: int, end: bool, pad: int | None) -> None:
        getattr(self, side).send_data(stream, bytes(range(256)) * (size // 256) + bytes(size % 256), end, pad)

    def answer(self, side: str, stream: int) -> None:
        getattr(self, side).send_headers(stream, ANSWER)

    def ack(self, side: str, stream: int, size: int) -> None:
        getattr(self, side).acknowledge_received_data(size, stream)

    def window(self, side: str, stream: int | None, size: int) -> None:
        getattr(self, side).increment_flow_control_window(size, stream)

    def initial(self, side: str, size: int) -> None:
        getattr(self, side).update_settings({SettingCodes.INITIAL_WINDOW_SIZE: size})

    def reset(self, side: str, stream: int) -> None:
        getattr(self, side).reset_stream(stream)

    def trailers(self, side: str, stream: int) -> None:
        getattr(self, side).send_headers(stream, [("grpc-status", "0")], end_stream=True)

    def ping(self, side: str) -> None:
        getattr(self, side).ping(b"12345678")

    def goaway(self, side: str) -> None:
        getattr(self, side).close_connection()

    def raw(self, side: str, stream: int, size: int, flags: int) -> None:
        """A frame that no well-behaved side would send."""
        self.wire[side] += size.to_bytes(3, "big") + bytes([0, flags]) + stream.to_bytes(4, "big") + bytes(size)

    def deliver(self, side: str, cuts: list[int]) -> None:
        """All that a side has sent arrives, in pieces."""
        data, self.wire[side] = self.wire[side], b""
        reader = self.server if side == "client" else self.client
        pieces = []
        for cut in cuts:
            pieces.append(data[:cut])
            data = data[cut:]
        for piece in (*pieces, data):
            self.told.append([_plain(event) for event in reader.receive_data(piece)])

    def windows(self) -> list[Any]:
        """All windows of both sides."""
        found: list[Any] = []
        for side in (self.client, self.server):
            found += [side.outbound_flow_control_window, side.inbound_flow_control_window]
            for number, stream in sorted(side.streams.items()):
                inbound = stream._inbound_window_manager.current_window_size
                found.append((number, stream.outbound_flow_control_window, inbound))
        return found


def _plain(event: Any) -> tuple[str, dict[str, str]]:
    return type(event).__name__, {name: repr(value) for name, value in vars(event).items()}


@settings(max_examples=400)
@given(st.lists(steps, max_size=40))
def test_it_says_and_understands_what_h2_does(story: list[Step]) -> None:
    ours, judge = Pair(http2.Connection), Pair(h2.connection.H2Connection)
    for step in story:
        ours.do(step)
        judge.do(step)
        assert judge.told == ours.told
        assert judge.windows() == ours.windows()


def test_a_plain_frame_does_not_go_through_h2(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(http2.Connection)
    made: list[DataFrame] = []
    init = DataFrame.__init__

    def noted(frame: DataFrame, *args: Any, **more: Any) -> None:
        made.append(frame)
        init(frame, *args, **more)

    monkeypatch.setattr(DataFrame, "__init__", noted)
    for side in ("client", "server"):
        pair.do(("data", side, STREAMS[0], 50, False, None))
        pair.do(("data", side, STREAMS[0], 60, False, None))
        pair.do(("deliver", side, []))
    assert [] == made
    pair.do(("data", "client", STREAMS[0], 50, True, None))
    assert 1 == len(made)


def _arrived(pair: Pair, side: str) -> list[str]:
    """All that a side has to send arrives: the names of the events."""
    pair.wire[side] += getattr(pair, side).data_to_send()
    before = len(pair.told)
    pair.do(("deliver", side, []))
    return [name for name, _ in pair.told[before]]


def test_a_farewell_ends_nothing_that_is_open() -> None:
    pair = Pair(http2.Connection)
    told: list[int] = []
    pair.client.on_parting = told.append  # type: ignore[attr-defined]
    pair.server.part()  # type: ignore[attr-defined]
    assert [] == _arrived(pair, "server")
    assert [2**31 - 1] == told
    for side in ("client", "server"):
        pair.do(("data", side, STREAMS[0], 50, False, None))
        assert ["DataReceived"] == _arrived(pair, side)
    pair.do(("trailers", "server", STREAMS[0]))
    assert ["TrailersReceived", "StreamEnded"] == _arrived(pair, "server")


def test_for_whoever_does_not_listen_a_farewell_is_the_end_as_h2_has_it() -> None:
    pair = Pair(http2.Connection)
    pair.server.part()  # type: ignore[attr-defined]
    assert ["ConnectionTerminated"] == _arrived(pair, "server")


def test_an_end_with_an_error_is_no_farewell() -> None:
    pair = Pair(http2.Connection)
    told: list[int] = []
    pair.client.on_parting = told.append  # type: ignore[attr-defined]
    pair.server.close_connection(error_code=2)
    assert ["ConnectionTerminated"] == _arrived(pair, "server")
    assert [] == told
    # And there is nobody to part from any more.
    pair.client.part()  # type: ignore[attr-defined]
    assert b"" == pair.client.data_to_send()


def _in_use() -> Any:
    return vars(grpclib.protocol)["H2Connection"]


def test_it_is_installed_for_versions_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert http2.install()
    assert _in_use() is http2.Connection
    monkeypatch.setattr(grpclib.protocol, "H2Connection", h2.connection.H2Connection)
    monkeypatch.setattr(h2, "__version__", "4.5.0")
    assert not http2.install()
    assert _in_use() is h2.connection.H2Connection
