"""One Channel stream: many commands in, replies out in any order, batched by loop tick.

Strategy: the reader begins each command of a batch as it comes; finished replies gather in an outbox
(`flx_api.proto.outbox`), so what was finished in one tick leaves as one message. A command is outstanding until its
reply has been handed to the transport: a client that does not read its replies stops being read.

Rules:
- At most `MAX_OUTSTANDING` commands. What is read beyond them is put aside and begun in its order, as there is room.
- A frame that cancels is read even when the channel is full, and is no command: the one it names is answered, at once,
  also one that is aside, which is then never begun.
- When as much is aside, nothing more is read, and HTTP/2 flow control holds the client back.
- A result that no message could hold is an error of that one command.
- When the stream ends, reads that are under way are cancelled; what changes something goes on (see `dispatch`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from flx_api.daemon.dispatch import Change
from flx_api.errors import GIVEN_UP, Internal
from flx_api.proto.buffer import MAX_MESSAGE_BYTES, Buffer
from flx_api.proto.flx.v1.daemon_pb2 import CommandBatch, ReplyBatch, ReplyFrame
from flx_api.proto.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from grpclib.server import Stream

    from flx_api.daemon.dispatch import Dispatcher
    from flx_api.daemon.trust import Caller
    from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame

MAX_OUTSTANDING: Final = 256
# Beside it there are a few short fields.
_MAX_RESULT: Final = MAX_MESSAGE_BYTES - 65_536
# A message of replies stays well below what a client accepts, unless one reply alone is larger.
_BATCH_BYTES: Final = 1024 * 1024
# After so many commands that were answered without waiting, others get their turn.
_INLINE_TURN: Final = 32

# How much is aside when nothing more is read: commands, and bytes of their arguments.
_ASIDE_COMMANDS: Final = MAX_OUTSTANDING
_ASIDE_BYTES: Final = 1024 * 1024

log = structlog.stdlib.get_logger("flx.daemon")


class Aside:
    """Commands that were read and have no room yet, in their order."""

    def __init__(self) -> None:
        self._frames: OrderedDict[int, CommandFrame] = OrderedDict()
        # Where the latest one of a number is.
        self._places: dict[int, int] = {}
        self._count = 0
        self._size = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._frames)

    @property
    def is_full(self) -> bool:
        """Whether no more should come."""
        return len(self._frames) >= _ASIDE_COMMANDS or self._size >= _ASIDE_BYTES

    def put(self, frame: CommandFrame) -> None:
        """Behind all others."""
        self._count += 1
        self._frames[self._count] = frame
        self._places[frame.seq] = self._count
        self._size += len(frame.args)

    def first(self) -> CommandFrame:
        """Take the first one."""
        place, frame = self._frames.popitem(last=False)
        if self._places.get(frame.seq) == place:
            del self._places[frame.seq]
        self._size -= len(frame.args)
        return frame

    def drop(self, seq: int) -> bool:
        """Drop the latest one of a number; whether there was one."""
        place = self._places.pop(seq, None)
        if place is None:
            return False
        self._size -= len(self._frames.pop(place).args)
        return True


class CommandChannel:
    """The daemon's end of one Channel stream.

    Args:
        stream: the gRPC stream.
        dispatcher: carries the commands out.
        caller: who is at the other end.
    """

    def __init__(self, stream: Stream[CommandBatch, ReplyBatch], dispatcher: Dispatcher, caller: Caller) -> None:
        self._stream = stream
        self._dispatcher = dispatcher
        self._caller = caller
        self._tasks: set[asyncio.Future[ReplyFrame]] = set()
        self._by_seq: dict[int, asyncio.Future[ReplyFrame] | Change] = {}
        self._outstanding = 0
        self._aside = Aside()
        # The next message, where it is waited for together with something else.
        self._coming: asyncio.Task[CommandBatch | None] | None = None
        self._outbox: Outbox[ReplyFrame] = Outbox(stream, _batches, self._left)
        self._room = asyncio.Event()
        self._is_over = False

    async def run(self) -> None:
        """Serve the stream until the client has ended it and has its replies, or is gone."""
        await self._stream.send_initial_metadata()
        writer = asyncio.create_task(self._outbox.write())
        reader = asyncio.create_task(self._read())
        try:
            # Whichever fails ends the other. The reader comes to its end when all replies are on their way.
            done, _ = await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
        finally:
            self._is_over = True
            reader.cancel()
            writer.cancel()
            for task in self._tasks:
                task.cancel()
            coming = () if self._coming is None else (self._coming,)
            for message in coming:
                message.cancel()
            await asyncio.gather(reader, writer, *coming, return_exceptions=True)

    async def _read(self) -> None:
        inline = 0
        while (batch := self._received() or await self._message()) is not None:
            for frame in batch.frames:
                if frame.cancel:
                    self._give_up(frame.seq)
                elif self._outstanding >= MAX_OUTSTANDING or self._aside:
                    self._aside.put(frame)
                else:
                    inline += self._begin(frame)
                    if inline >= _INLINE_TURN:
                        inline = 0
                        await asyncio.sleep(0)
            if self._aside:
                await self._begin_aside()
        while self._outstanding:
            self._room.clear()
            await self._room.wait()

    async def _begin_aside(self) -> None:
        """Begin what is aside, as there is room; as long as there is none, hear what is given up."""
        inline = 0
        while self._aside:
            if self._outstanding < MAX_OUTSTANDING:
                inline += self._begin(self._aside.first())
                if inline >= _INLINE_TURN:
                    inline = 0
                    await asyncio.sleep(0)
                continue
            if self._coming is None and not self._aside.is_full:
                self._coming = asyncio.create_task(self._stream.recv_message())
                self._coming.add_done_callback(lambda _: self._room.set())
            if self._coming is not None and self._coming.done() and (batch := self._coming.result()) is not None:
                self._coming = None
                for frame in batch.frames:
                    if frame.cancel:
                        self._give_up(frame.seq)
                    else:
                        self._aside.put(frame)
                continue
            self._room.clear()
            await self._room.wait()

    async def _message(self) -> CommandBatch | None:
        """The next message; None when the client has ended the stream."""
        if self._coming is None:
            return await self._stream.recv_message()
        batch = await self._coming
        self._coming = None
        return batch

    def _received(self) -> CommandBatch | None:
        """The next message, if it is here already: then it costs no coroutine."""
        if self._coming is not None:
            return None
        buffer: Any = self._stream._stream.buffer  # noqa: SLF001 - as in `flx_api.daemon.limits`
        message = buffer.whole_message() if isinstance(buffer, Buffer) else None
        return None if message is None else CommandBatch.FromString(message)

    def _begin(self, frame: CommandFrame) -> bool:
        """Begin one command; whether it was answered at once."""
        self._outstanding += 1
        found = self._dispatcher.prepare(frame, self._caller)
        if isinstance(found, ReplyFrame):
            self._answer(found)
            return True
        seq = frame.seq
        if isinstance(found, Change):
            self._by_seq[seq] = found
            found.tell = partial(self._changed, seq, found)
        else:
            self._wait_for(seq, found)
        return False

    def _changed(self, seq: int, change: Change, reply: ReplyFrame | None) -> None:
        if self._by_seq.get(seq) is change:
            del self._by_seq[seq]
        if not self._is_over:
            self._answer(ReplyFrame(seq=seq, code=GIVEN_UP) if reply is None else reply)

    def _wait_for(self, seq: int, reply: Coroutine[Any, Any, ReplyFrame]) -> None:
        task = asyncio.ensure_future(reply)
        self._tasks.add(task)
        # A client that gives one number twice gets two answers; the later one can be given up.
        self._by_seq[seq] = task
        task.add_done_callback(partial(self._done, seq))

    def _done(self, seq: int, task: asyncio.Future[ReplyFrame]) -> None:
        self._tasks.discard(task)
        if self._by_seq.get(seq) is task:
            del self._by_seq[seq]
        if not self._is_over:
            self._answer(ReplyFrame(seq=seq, code=GIVEN_UP) if task.cancelled() else task.result())
        elif not task.cancelled():
            task.result()

    def _give_up(self, seq: int) -> None:
        if self._aside and self._aside.drop(seq):
            self._outstanding += 1
            self._answer(ReplyFrame(seq=seq, code=GIVEN_UP))
            return
        found = self._by_seq.get(seq)
        if isinstance(found, Change):
            tell = found.tell
            if found.leave() and tell is not None:
                tell(None)
        elif found is not None:
            # Behind its first step: a task that is cancelled before it has begun would not even know of its handler.
            asyncio.get_running_loop().call_soon(found.cancel)

    def _answer(self, reply: ReplyFrame) -> None:
        self._outbox.put(bearable(reply) if len(reply.result) > _MAX_RESULT else reply)

    def _left(self, count: int) -> None:
        self._outstanding -= count
        self._room.set()


def bearable(reply: ReplyFrame) -> ReplyFrame:
    """The reply, or in its place an error when no message could hold it: the client would end its stream over it."""
    if len(reply.result) <= _MAX_RESULT:
        return reply
    log.error("a result is too large for a message", size=len(reply.result))
    error = Internal("The result is too large to be sent")
    return ReplyFrame(seq=reply.seq, code=error.code, problem=msgspec.json.encode(error.body))


def _batches(replies: list[ReplyFrame]) -> list[tuple[ReplyBatch, int]]:
    """The replies in messages of bounded size; usually one."""
    batches: list[list[ReplyFrame]] = []
    held = 0
    for reply in replies:
        size = len(reply.result) + len(reply.problem)
        if not batches or held + size > _BATCH_BYTES:
            batches.append([])
            held = 0
        batches[-1].append(reply)
        held += size
    return [(ReplyBatch(frames=batch), len(batch)) for batch in batches]
