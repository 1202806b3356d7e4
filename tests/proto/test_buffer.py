"""Our buffer beside grpclib's own: the same bytes come out, and no room is handed back that was not used."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from grpclib.exceptions import ProtocolError
from grpclib.protocol import Buffer as Judge
from hypothesis import given, settings
from hypothesis import strategies as st

from flx_api.proto.buffer import MAX_MESSAGE_BYTES, Buffer

chunks = st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 5))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), chunks),
        st.tuples(st.just("read"), st.integers(0, 90)),
        st.tuples(st.just("turn"), st.none()),
    ),
    max_size=30,
)


class Reader:
    """A buffer, whoever reads from it, and what came of both."""

    def __init__(self, kind: Any) -> None:
        self.acked = self.added = self.padded = 0
        self.buffer = kind(self._ack)
        self.wanted: list[int] = []
        self.read: list[bytes] = []
        self._task: asyncio.Task[bytes] | None = None

    def _ack(self, size: int) -> None:
        self.acked += size

    def add(self, data: bytes, padding: int) -> None:
        self.added += len(data)
        self.padded += padding
        self.buffer.add(data, len(data) + padding)

    async def turn(self) -> None:
        """Let whoever waits go on."""
        for _ in range(4):
            if self._task is None and self.wanted:
                self._task = asyncio.create_task(self.buffer.read(self.wanted[0]))
            await asyncio.sleep(0)
            if self._task is not None and self._task.done():
                self.read.append(self._task.result())
                self.wanted.pop(0)
                self._task = None

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


@settings(max_examples=300)
@given(steps)
def test_it_gives_what_grpclibs_buffer_gives(story: list[tuple[str, Any]]) -> None:
    async def told() -> None:
        ours, judge = Reader(Buffer), Reader(Judge)
        for what, value in story:
            for reader in (ours, judge):
                if what == "add":
                    reader.add(*value)
                elif what == "read":
                    reader.wanted.append(value)
                await reader.turn()
            taken = sum(map(len, ours.read))
            claimed = min(ours.added, taken + (ours.wanted[0] if ours.wanted else 0))
            assert judge.read == ours.read
            assert ours.acked <= claimed + ours.padded
            if ours.wanted:
                assert ours.acked >= ours.added, "whoever waits has handed everything back"
        await ours.stop()
        await judge.stop()
        assert ours.added + ours.padded == ours.acked + ours.buffer.unacked_size()
        assert 0 == ours.buffer.unacked_size()

    asyncio.run(told())


def test_the_end_is_empty_and_a_torn_end_is_an_error() -> None:
    async def told() -> None:
        for kind in (Buffer, Judge):
            reader = Reader(kind)
            reader.add(b"abc", 0)
            reader.buffer.eof()
            assert await reader.buffer.read(3) == b"abc"
            assert await reader.buffer.read(5) == b""
            torn = Reader(kind)
            torn.add(b"abc", 0)
            torn.buffer.eof()
            with pytest.raises(AssertionError):
                await torn.buffer.read(5)

    asyncio.run(told())


def test_a_reader_that_is_cancelled_leaves_all_to_the_next() -> None:
    async def told() -> None:
        reader = Reader(Buffer)
        reader.add(b"abc", 0)
        task = asyncio.create_task(reader.buffer.read(5))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        reader.add(b"de", 0)
        assert await reader.buffer.read(5) == b"abcde"

    asyncio.run(told())


def test_a_reader_that_stops_hands_nothing_back() -> None:
    async def told() -> None:
        reader = Reader(Buffer)
        for _ in range(100):
            reader.add(b"x" * 1000, 0)
        assert await reader.buffer.read(1000) == b"x" * 1000
        assert reader.acked <= 1000

    asyncio.run(told())


def test_nobody_may_ask_for_more_than_a_message() -> None:
    """The number comes from the peer, and what was asked for is claimed from it."""

    async def story() -> None:
        handed_back: list[int] = []
        buffer = Buffer(handed_back.append)
        buffer.add(b"x" * 10, 10)
        with pytest.raises(ProtocolError):
            await buffer.read(MAX_MESSAGE_BYTES + 1)
        assert [] == handed_back
        assert b"x" * 10 == await buffer.read(10)

    asyncio.run(story())


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=40), max_size=12), st.data())
def test_messages_are_those_that_reads_give(messages: list[bytes], data: st.DataObject) -> None:
    """However the bytes are cut: each within the call that brings its end, and all room is handed back."""
    wire = b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=12)) | {0, len(wire)})
    pieces = [wire[start:end] for start, end in pairwise(cuts)]
    early = data.draw(st.integers(0, len(pieces)))

    async def told() -> None:
        handed_back: list[int] = []
        taken: list[bytes] = []
        buffer = Buffer(handed_back.append)
        for piece in pieces[:early]:
            buffer.add(piece, len(piece))
        task = asyncio.create_task(buffer.messages(taken.append))
        await asyncio.sleep(0)
        for count, piece in enumerate(pieces[early:], early + 1):
            buffer.add(piece, len(piece) + 3)
            received, expected = cuts[count], []
            for message in messages:
                received -= 5 + len(message)
                if received < 0:
                    break
                expected.append(message)
            assert expected == taken
        buffer.eof()
        await task
        assert messages == taken
        assert len(wire) + 3 * (len(pieces) - early) == sum(handed_back)
        assert 0 == buffer.unacked_size()

    asyncio.run(told())


def test_what_goes_wrong_with_a_message_is_told_to_who_waits() -> None:
    def refuse(_message: bytes) -> None:
        msg = "no"
        raise ValueError(msg)

    async def told(received: bytes, *, ends: bool = False) -> None:
        for early in (False, True):
            buffer = Buffer(lambda _size: None)
            if early:
                buffer.add(received, len(received))
            task = asyncio.create_task(buffer.messages(refuse))
            await asyncio.sleep(0)
            if not early:
                buffer.add(received, len(received))
            if ends:
                buffer.eof()
            await task

    with pytest.raises(ValueError, match="no"):
        asyncio.run(told(b"\0\0\0\0\1x"))
    with pytest.raises(ProtocolError):
        asyncio.run(told(b"\1\0\0\0\1x"))
    with pytest.raises(ProtocolError):
        asyncio.run(told(b"\0" + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")))
    with pytest.raises(AssertionError):
        asyncio.run(told(b"\0\0\0\0\2x", ends=True))


@given(st.lists(st.binary(max_size=30), max_size=8), st.lists(st.integers(1, 25), max_size=30))
def test_a_message_that_is_whole_is_taken_without_waiting(messages: list[bytes], sizes: list[int]) -> None:
    sent = b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)
    acked = 0

    def ack(size: int) -> None:
        nonlocal acked
        acked += size

    buffer, found, at = Buffer(ack), [], 0
    for size in [*sizes, len(sent)]:
        piece = sent[at : at + size]
        at += len(piece)
        buffer.add(piece, len(piece))
        while (message := buffer.whole_message()) is not None:
            found.append(message)
        assert acked + buffer._owed + len(buffer._bytes) == at
    assert found == messages


@pytest.mark.parametrize("head", [b"\1\0\0\0\1x", b"\0" + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big") + b"x", b"\0\0\0"])
def test_what_is_no_whole_message_is_left_to_who_reads(head: bytes) -> None:
    buffer = Buffer(lambda _size: None)
    buffer.add(head, len(head))
    assert buffer.whole_message() is None
    assert asyncio.run(buffer.read(3)) == head[:3]
