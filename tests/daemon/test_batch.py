"""Many commands of one gRPC call: their order, their bounds, and what one of them means for the others."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flx_api.daemon.batch import MOST, WIDTH, fault, replies
from flx_api.proto.flx.v1.daemon_pb2 import BatchFrame, CommandFrame, ReplyFrame

if TYPE_CHECKING:
    from collections.abc import Sequence


class Worker:
    """Answers each command after as many turns as its argument says; a command called `bad` fails."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.most = self.now = 0

    async def carry_out(self, frame: CommandFrame) -> ReplyFrame:
        self.log.append(("begun", frame.seq))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            for _ in range(int(frame.args)):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.log.append(("cut", frame.seq))
            raise
        finally:
            self.now -= 1
        self.log.append(("ended", frame.seq))
        return ReplyFrame(seq=frame.seq, code="not_found" if frame.command == "bad" else "")


def made(commands: Sequence[tuple[str, int]], *, ordered: bool = False, fail_fast: bool = False) -> BatchFrame:
    frames = [CommandFrame(command=name, args=b"%d" % turns) for name, turns in commands]
    return BatchFrame(frames=frames, ordered=ordered, fail_fast=fail_fast)


def carried_out(batch: BatchFrame, worker: Worker) -> list[ReplyFrame]:
    async def story() -> list[ReplyFrame]:
        return [reply async for reply in replies(batch, worker.carry_out)]

    return asyncio.run(story())


@given(
    commands=st.lists(st.tuples(st.sampled_from(["good", "good", "bad"]), st.integers(0, 5)), min_size=1, max_size=100),
    ordered=st.booleans(),
    fail_fast=st.booleans(),
)
def test_each_has_one_reply_and_nothing_begins_after_a_failure(
    commands: list[tuple[str, int]], *, ordered: bool, fail_fast: bool
) -> None:
    worker = Worker()
    found = carried_out(made(commands, ordered=ordered, fail_fast=fail_fast), worker)
    count = len(commands)
    assert list(range(1, count + 1)) == sorted(reply.seq for reply in found)
    begun = [seq for what, seq in worker.log if what == "begun"]
    assert list(range(1, len(begun) + 1)) == begun
    expected = {number: "not_found" if name == "bad" else "" for number, (name, _) in enumerate(commands, 1)}
    expected |= dict.fromkeys(range(len(begun) + 1, count + 1), "not_attempted")
    assert expected == {reply.seq: reply.code for reply in found}
    assert worker.most <= (1 if ordered else WIDTH)
    if ordered and fail_fast:
        first = next((number for number, (name, _) in enumerate(commands, 1) if name == "bad"), count)
        assert first == len(begun)
    if not fail_fast:
        assert count == len(begun)


def test_replies_come_when_they_are_ready_with_the_numbers_that_were_given() -> None:
    batch = made([("good", 9), ("good", 1), ("good", 5)])
    for frame, seq in zip(batch.frames, (70, 0, 7), strict=True):
        frame.seq = seq
    assert [2, 7, 70] == [reply.seq for reply in carried_out(batch, Worker())]


def test_what_was_not_begun_says_why() -> None:
    found = carried_out(made([("bad", 0), ("good", 0)], ordered=True, fail_fast=True), Worker())
    problem = json.loads(found[1].problem)
    assert ("not_attempted", "An operation before this one failed") == (problem["code"], problem["detail"])


def test_who_leaves_ends_it() -> None:
    async def story() -> None:
        worker = Worker()
        batch = made([("good", 0)] + [("good", 1000)] * 100)
        async with aclosing(replies(batch, worker.carry_out)) as found:
            assert 1 == (await anext(found)).seq
        assert (WIDTH, 0) == (sum(what == "begun" for what, _ in worker.log), worker.now)
        assert WIDTH - 1 == sum(what == "cut" for what, _ in worker.log)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (made([]), "1 to 1000"),
        (made([("good", 0)] * (MOST + 1)), "1 to 1000"),
        (BatchFrame(frames=[CommandFrame(command="x"), CommandFrame(cancel=True)]), "cancel"),
        (made([("good", 0)] * MOST), ""),
    ],
)
def test_a_batch_as_a_whole_may_be_at_fault(batch: BatchFrame, expected: str) -> None:
    said = fault(batch)
    assert expected in said
    assert bool(expected) == bool(said)
