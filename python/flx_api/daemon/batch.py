"""Many commands of one gRPC call: in parallel or each after the one before, and the replies as they come.

Strategy: operations begin in their order, at most `WIDTH` at once (one, where they are ordered), each carried out as if
it had come alone. A reply is given as soon as there is one.

Rules:
- A reply carries its operation's number: the one that the client gave, or its place, from 1.
- With `fail_fast` nothing is begun after the first failure; what was not begun is answered with `not_attempted`.
- When nobody takes the replies any more, nothing more is begun and reads are cut short; what changes something goes on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from flx_api.daemon.dispatch import failure
from flx_api.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from flx_api.proto.flx.v1.daemon_pb2 import BatchFrame, CommandFrame, ReplyFrame

MOST: Final = 1000
WIDTH: Final = 64
_FAILED: Final = "An operation before this one failed"


def fault(batch: BatchFrame) -> str:
    """What is wrong with a batch as a whole; empty when nothing is."""
    if not 0 < len(batch.frames) <= MOST:
        return f"A batch has 1 to {MOST} operations"
    if any(frame.cancel for frame in batch.frames):
        return "In a batch there is nothing to cancel"
    return ""


async def replies(
    batch: BatchFrame, carry_out: Callable[[CommandFrame], Awaitable[ReplyFrame]]
) -> AsyncGenerator[ReplyFrame, None]:
    """Carry a batch out.

    Args:
        batch: one without a `fault`.
        carry_out: answers a command, whatever happens.
    """
    frames = list(batch.frames)
    for place, frame in enumerate(frames, 1):
        frame.seq = frame.seq or place
    width = 1 if batch.ordered else WIDTH
    begun, has_failed = 0, False
    under_way: set[asyncio.Future[ReplyFrame]] = set()
    try:
        while under_way or (begun < len(frames) and not has_failed):
            while len(under_way) < width and begun < len(frames) and not has_failed:
                under_way.add(asyncio.ensure_future(carry_out(frames[begun])))
                begun += 1
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for reply in [task.result() for task in done]:
                has_failed = has_failed or (batch.fail_fast and reply.code != "")
                yield reply
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
    for frame in frames[begun:]:
        yield failure(frame, Conflict(_FAILED, code="not_attempted"))
