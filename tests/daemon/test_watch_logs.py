"""Watchers of logs: history that is not told yet, and lines of any length."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.daemon.daemon_parts import growing_log, parts
from tests.daemon.test_watch import emit, emit_status, new_log, shown, watch

from flx_api.daemon.watch import BATCH_EVENTS, log_batches
from flx_api.proto.buffer import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from pathlib import Path


def test_a_log_that_began_behind_the_position_is_given_from_its_first_line_once(tmp_path: Path) -> None:
    """Its first event lies behind more events than a batch has; what it writes meanwhile does not come before that."""

    async def story() -> None:
        async with parts(tmp_path) as daemon:
            for _ in range(2 * BATCH_EVENTS):
                await emit(daemon)
            await emit_status(daemon, "x")
            log = new_log(daemon, tmp_path, "x")
            with growing_log(tmp_path / "x", log) as write:
                write(b"1", b"2")
                batches = watch(daemon, "execution.*", after_seq=0, epoch=daemon.journal.epoch)
                seen: list[tuple[str, int, int]] = []
                for number in range(3, 6):
                    seen += shown(await anext(batches))
                    write(b"%d" % number)
                    await emit(daemon)
                assert seen[0][0] == "execution.x.status"
                assert [number for topic, number, _ in seen if topic.endswith(".log")] == [1, 2, 3, 4]

    asyncio.run(story())


def test_a_line_of_any_length_fits_into_a_batch(tmp_path: Path) -> None:
    async def story() -> None:
        async with parts(tmp_path) as daemon:
            log = new_log(daemon, tmp_path, "x")
            batches = watch(daemon)
            await anext(batches)
            with growing_log(tmp_path / "x", log) as write:
                write(b"first", b"\0" * (MAX_MESSAGE_BYTES + 1), b"last")
            log.take_rest()
            numbers: list[int] = []
            while len(numbers) < 3:
                batch = await anext(batches)
                assert batch.ByteSize() < MAX_MESSAGE_BYTES
                numbers += [event.seq for event in batch.events]
            assert numbers == [1, 2, 3]
            log.finish()
            given = [batch async for batch in log_batches(log, 1, 0, follow=False)]
            assert all(batch.ByteSize() < MAX_MESSAGE_BYTES for batch in given)
            cut = next(line for batch in given for line in batch.lines if b"cut" in line)
            assert cut.endswith(b" [cut: the line has 4194305 bytes]")

    asyncio.run(story())
