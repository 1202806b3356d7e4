"""One connection's queue."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from flx_api._core import Principal
from flx_api.websocket.close_codes import CloseCode
from flx_api.websocket.connection import BACKLOG_BYTES, Connection

if TYPE_CHECKING:
    from flx_api.gateway.exchange import Message

ANNA = Principal(subject="anna", roles=("viewer",), expires_at=10)


class Peer:
    """Takes frames while its gate is open."""

    def __init__(self) -> None:
        self.frames: list[str] = []
        self.gate = asyncio.Event()

    async def send(self, message: Message) -> None:
        await self.gate.wait()
        self.frames.append(message["text"])


def test_frames_leave_in_order_and_a_full_queue_ends_the_connection() -> None:
    async def story() -> None:
        peer = Peer()
        connection = Connection("c", ANNA, peer.send, 0.0)
        writer = asyncio.create_task(connection.write(lambda: 1.0))
        chunk = "x" * (BACKLOG_BYTES // 8)
        for number in range(4):
            connection.send(f"{number}{chunk}")
        assert not connection._room.is_set()
        peer.gate.set()
        await connection.room()
        while len(peer.frames) < 4:  # noqa: ASYNC110 - a list is no event
            await asyncio.sleep(0)
        assert [frame[0] for frame in peer.frames] == ["0", "1", "2", "3"]
        assert connection.last_sent_s == 1.0
        peer.gate.clear()
        for _ in range(10):
            connection.send(chunk)
        assert connection.closing.result() is CloseCode.TOO_SLOW
        connection.send("after the end")
        connection.end(CloseCode.GONE)
        assert connection.closing.result() is CloseCode.TOO_SLOW
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)

    asyncio.run(story())


def test_one_long_frame_is_not_a_slow_reader() -> None:
    async def story() -> None:
        peer = Peer()
        connection = Connection("c", ANNA, peer.send, 0.0)
        connection.send("x" * (BACKLOG_BYTES * 2))
        assert not connection.closing.done()
        connection.send("y")
        assert connection.closing.result() is CloseCode.TOO_SLOW

    asyncio.run(story())


def test_a_turn_leaves_in_its_place_and_is_said_to_be_written() -> None:
    async def story() -> None:
        peer, done = Peer(), asyncio.Event()
        connection = Connection("c", ANNA, peer.send, 0.0)
        connection.written = lambda _connection: done.set()
        connection.send("before")
        connection.give(("1", "2" * (BACKLOG_BYTES * 2)))
        connection.send("after")
        writer = asyncio.create_task(connection.write(lambda: 1.0))
        assert not connection.closing.done()
        assert not done.is_set()
        peer.gate.set()
        await done.wait()
        while len(peer.frames) < 4:  # noqa: ASYNC110 - a list is no event
            await asyncio.sleep(0)
        assert [frame[:6] for frame in peer.frames] == ["before", "1", "222222", "after"]
        connection.end(CloseCode.GONE)
        connection.give(("late",))
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        assert len(peer.frames) == 4

    asyncio.run(story())
