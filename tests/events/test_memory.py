"""The memory: what was heard lately, judged by a list that keeps everything."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from flx_api.events.memory import Heard, Memory
from flx_api.events.position import Position, decode
from flx_api.proto.flx.v1.daemon_pb2 import Event


def journal(seq: int, topic: str = "pipeline_events", data: object = None) -> Event:
    return Event(seq=seq, prev=seq - 1, ts_us=seq, topic=topic, tenant="default", data=msgspec.json.encode(data))


def line(execution: str, number: int) -> Event:
    return Event(seq=number, prev=number - 1, topic=f"execution.{execution}.log", tenant="default", data=b'"x"')


def memory(*events: Event, journal_bytes: int = 1 << 20, log_bytes: int = 1 << 20) -> Memory:
    made = Memory(journal_bytes, log_bytes)
    made.restart("e", 0)
    for event in events:
        made.add(event)
    return made


def anything(_topic: str) -> bool:
    return True


def since(made: Memory, position: Position) -> list[tuple[str, int]]:
    return [(heard.topic, heard.seq) for heard in made.since(position, anything, position.seq)]


def position_of(heard: Heard) -> Position:
    return decode(msgspec.json.decode(heard.frame)["pos"])


def test_a_frame_is_built_once_with_its_position() -> None:
    heard = memory().add(journal(1, data={"a": 1}))
    assert heard is not None
    frame = msgspec.json.decode(heard.frame)
    assert frame["data"] == {"a": 1}
    assert (frame["type"], frame["event"], frame["seq"], frame["prev"]) == ("event", "pipeline_events", 1, 0)
    assert position_of(heard) == Position("e", 1, {})


def test_what_was_heard_is_not_heard_again() -> None:
    made = memory(journal(1), line("x", 1))
    assert made.add(journal(1)) is None
    assert made.add(line("x", 1)) is None
    assert made.order == 2


def test_a_log_that_began_after_a_position_is_new_and_one_that_had_ended_is_not() -> None:
    made = memory(line("old", 1))
    for number in range(40):
        execution = f"x{number}"
        made.add(line(execution, 1))
        made.add(journal(number + 1, f"execution.{execution}.status", {"execution": execution, "status": "failed"}))
    assert len(made.logs) == 33
    assert "old" in made.logs
    later = Position("e", 38, {"x37": 1, "old": 1})
    assert since(made, later) == [
        ("execution.x38.log", 1),
        ("execution.x38.status", 39),
        ("execution.x39.log", 1),
        ("execution.x39.status", 40),
    ]


def test_what_was_cut_is_missing_and_never_served_with_a_hole() -> None:
    made = memory(*(journal(seq, data="x" * 100) for seq in range(1, 101)), journal_bytes=10_000)
    assert made.missing(Position("e", 1, {}), anything, 1)
    assert not made.missing(Position("e", made.floor, {}), anything, made.floor)
    assert made.heard_after(0) is None
    assert [heard.seq for heard in made.heard_after(99) or []] == [100]
    logs = memory(*(line("x", number) for number in range(1, 101)), log_bytes=10_000)
    assert logs.missing(Position("e", 0, {"x": 1}), anything, 0)
    assert not logs.missing(Position("e", 0, {"x": 99}), anything, 0)


def test_skipped_lines_make_a_new_beginning() -> None:
    made = memory(line("x", 1), line("x", 5))
    assert made.missing(Position("e", 0, {"x": 1}), anything, 0)
    assert since(made, Position("e", 0, {"x": 4})) == [("execution.x.log", 5)]


@given(st.lists(st.sampled_from(["journal", "log a", "log b"]), max_size=40), st.data())
def test_a_resume_gives_exactly_what_came_after(kinds: list[str], data: st.DataObject) -> None:
    made, heard, counts = memory(), [], {"journal": 0, "log a": 0, "log b": 0}
    for kind in kinds:
        counts[kind] += 1
        event = journal(counts[kind]) if kind == "journal" else line(kind[-1], counts[kind])
        added = made.add(event)
        assert added is not None
        heard.append(added)
    if heard:
        index = data.draw(st.integers(0, len(heard) - 1))
        position = position_of(heard[index])
        assert not made.missing(position, anything, position.seq)
        assert made.since(position, anything, position.seq) == heard[index + 1 :]
        assert made.heard_after(index + 1) == heard[index + 1 :]
