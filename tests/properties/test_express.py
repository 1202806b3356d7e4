"""What is outstanding of the rides, against a dictionary: the same commands are answered, forgotten, late and lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st
from tests.gateway_app import Wire, built, exchange, scope
from tests.gateway_process import bearer

from flx_api._core import Express, Hall, PlainCommand
from flx_api.proto.flx.v1.daemon_pb2 import ReplyBatch, ReplyFrame

if TYPE_CHECKING:
    from flx_api._core import Admitted, Ride
    from flx_api.dependencies import Parts

_PARTS: list[Parts] = []
NAMES = ("system.echo", "pipeline.list")
GRACE_S = 0.25
LONG_S = 0.5

Reply = tuple[int, str, str, bytes, bool]
STORIES = st.lists(
    st.one_of(
        # How many leave, on which stream, in which life, whether together.
        st.tuples(st.just("depart"), st.integers(1, 4), st.integers(1, 2), st.integers(0, 1), st.booleans()),
        # On which stream what comes: number, code, accepted id, result, replayed.
        st.tuples(
            st.just("settle"),
            st.integers(1, 2),
            st.lists(
                st.tuples(
                    st.integers(0, 12),
                    st.sampled_from(["", "", "", "not_found"]),
                    st.sampled_from(["", "", "", "x1"]),
                    st.sampled_from([b"", b"{}", b'{"n":1}']),
                    st.booleans(),
                ),
                max_size=5,
            ),
        ),
        st.tuples(st.just("abandon"), st.integers(0, 12)),
        st.tuples(st.just("sweep")),
        st.tuples(st.just("lost"), st.integers(1, 2)),
        st.tuples(st.just("wait"), st.sampled_from([0.01, 0.3, 1.0])),
    ),
    max_size=30,
)


class Done:
    """A future, as far as it is asked."""

    def __init__(self) -> None:
        self.ending: object = None

    def done(self) -> bool:
        return self.ending is not None

    def set_result(self, ending: object) -> None:
        assert self.ending is None
        self.ending = ending


@dataclass
class Entry:
    """One command, as the dictionary has it."""

    place: int
    stream: int
    life: int
    began_s: float
    until_s: float
    name: str
    is_member: bool
    is_abandoned: bool = False
    is_long: bool = False


class World:
    """The table and the dictionary, side by side."""

    def __init__(self) -> None:
        if not _PARTS:
            _PARTS.append(built(rate_limits=(), deadline_ms=1_000))
        self.plain = _PARTS[0].commands.plain
        self.hall = Hall(self.plain, lambda: None, None, 1.0)
        self.express = Express()
        self.entries: dict[int, Entry] = {}
        self.dones: dict[int, Done] = {}
        self.now = 100.0
        self.next = 0

    def command(self, name: str) -> tuple[PlainCommand, Admitted]:
        body = b'{"command":"%s"}' % name.encode()
        own = {**bearer(roles=("admin",)), "content-type": "application/json", "content-length": str(len(body))}
        asked = exchange(Wire(), scope("POST", "/v1/execute", own), _PARTS[0])
        command = self.plain.read(asked.admitted, body, 0)
        assert command is not None
        return command, asked.admitted

    def depart(self, count: int, stream: int, life: int, *, together: bool) -> None:
        first, made = self.next, [self.command(NAMES[(self.next + at) % 2]) for at in range(count)]
        self.next += count
        keywords: Any = {"stream": stream, "life": life, "now_s": self.now, "grace_s": GRACE_S}
        if together:
            members = [(first + at, command) for at, (command, _) in enumerate(made)]
            commands = self.express.depart_many(self, members, first, **keywords)
        else:
            rides: list[Ride] = []
            for at, (command, admitted) in enumerate(made):
                self.dones[first + at] = Done()
                rides.append(self.hall.join(command, admitted, self.dones[first + at])[0])
            commands = self.express.depart(rides, first, **keywords)
        assert list(range(first, first + count)) == [command.seq for command in commands]
        for seq, command in enumerate(commands, first):
            until_s = self.now + command.deadline_s + GRACE_S
            self.entries[seq] = Entry(seq, stream, life, self.now, until_s, command.command, together)

    def settle(self, stream: int, replies: list[Reply]) -> None:
        frames = [
            ReplyFrame(seq=seq, code=code, accepted_id=accepted, result=result, replayed=replayed)
            for seq, code, accepted, result, replayed in replies
        ]
        since_s = self.now - LONG_S
        settled = self.express.settle(
            ReplyBatch(frames=frames).SerializeToString(), stream=stream, life=1, now_s=self.now, since_s=since_s
        )
        rest: list[ReplyFrame] = []
        over: list[tuple[int, Entry, ReplyFrame]] = []
        foreign = 0
        for frame in frames:
            entry = self.entries.get(frame.seq)
            if entry is None:
                rest.append(frame)
            elif entry.stream != stream:
                foreign += 1
            else:
                over.append((frame.seq, self.entries.pop(frame.seq), frame))
        waited = [(seq, entry, frame) for seq, entry, frame in over if not entry.is_abandoned]
        forgotten = [entry for _, entry, _ in over if entry.is_abandoned]
        plain = [(seq, entry, frame) for seq, entry, frame in waited if not frame.code and not frame.accepted_id]
        took: dict[str, tuple[int, float]] = {}
        for _, entry, _ in waited:
            if entry.began_s >= since_s:
                count, total_s = took.get(entry.name, (0, 0.0))
                took[entry.name] = count + 1, total_s + self.now - entry.began_s
        members = [(entry.place, frame.result, frame.replayed) for _, entry, frame in plain if entry.is_member]

        assert foreign == settled.foreign
        assert len(waited) == settled.answered
        assert sum(entry.life == 1 for _, entry, _ in waited) == settled.of_life
        assert sum(entry.is_member for _, entry, _ in waited) == settled.of_many
        assert (len(forgotten), sum(entry.is_member for entry in forgotten)) == settled.forgotten
        assert took.keys() == {name for name, _, _ in settled.took}
        for name, count, total_s in settled.took:
            assert count == took[name][0]
            assert abs(total_s - took[name][1]) < 1e-9
        assert ([(self, members)] if members else []) == settled.results
        others = [frame.SerializeToString() for _, _, frame in waited if frame.code or frame.accepted_id]
        assert others == [frame for _, frame in settled.others]
        marked = sum((entry.name == NAMES[1] or entry.is_long) for _, entry, _ in waited if not entry.is_member)
        assert marked == len(settled.marked)
        assert rest == list(ReplyBatch.FromString(settled.rest or b"").frames)
        for seq, entry, frame in plain:
            if not entry.is_member:
                assert (frame.result, frame.replayed) == self.dones.pop(seq).ending

    def abandon(self, seq: int) -> None:
        entry = self.entries.get(seq)
        expected = None if entry is None or entry.is_abandoned else entry.stream
        assert expected == self.express.abandon(seq)
        if entry is not None:
            entry.is_abandoned = True

    def sweep(self) -> None:
        late, long = self.express.sweep(self.now, self.now - LONG_S)
        due = {seq: entry for seq, entry in self.entries.items() if entry.until_s <= self.now}
        told = {
            (ride.command.seq, stream, began_s, life, is_waited_for, is_member)
            for ride, stream, began_s, life, is_waited_for, is_member in late
            if ride.command is not None
        }
        assert len(late) == len(due)
        assert told == {
            (seq, entry.stream, entry.began_s, entry.life, not entry.is_abandoned, entry.is_member)
            for seq, entry in due.items()
        }
        for seq in due:
            del self.entries[seq]
        expected = {
            seq
            for seq, entry in self.entries.items()
            if not (entry.is_member or entry.is_abandoned or entry.is_long) and entry.began_s <= self.now - LONG_S
        }
        assert expected == {ride.command.seq for ride in long if ride.command is not None}
        for seq in expected:
            self.entries[seq].is_long = True

    def lost(self, stream: int) -> None:
        gone = {seq: entry for seq, entry in self.entries.items() if entry.stream == stream}
        rides, alone, of_many = self.express.lost(stream)
        waited = {seq for seq, entry in gone.items() if not entry.is_abandoned}
        assert waited == {ride.command.seq for ride in rides if ride.command is not None}
        members = sum(entry.is_member for entry in gone.values())
        assert (len(gone) - members, members) == (alone, of_many)
        for seq in gone:
            del self.entries[seq]


@given(STORIES)
def test_it_is_as_a_dictionary_would_have_it(story: list[tuple[Any, ...]]) -> None:
    world = World()
    for step, *what in story:
        match step:
            case "depart":
                count, stream, life, together = what
                world.depart(count, stream, life, together=together)
            case "settle":
                world.settle(*what)
            case "abandon":
                world.abandon(*what)
            case "sweep":
                world.sweep()
            case "lost":
                world.lost(*what)
            case _:
                world.now += what[0]
        assert len(world.entries) == len(world.express)
        assert sum(not entry.is_abandoned for entry in world.entries.values()) == world.express.waited_for
    # Nobody was answered who was not asked about.
    assert not any(done.done() for seq, done in world.dones.items() if seq in world.entries)


@given(
    st.lists(
        st.sampled_from([b"\x0a", b"\x02", b"\x08", b"\x12", b"\x01", b"a", b"\xff", b"\x0b", b"\x00"]), max_size=14
    )
)
def test_what_is_taken_is_a_message_and_nothing_of_it_is_left_out(pieces: list[bytes]) -> None:
    message = b"".join(pieces)
    try:
        settled = Express().settle(message, stream=1, life=0, now_s=0.0, since_s=0.0)
    except ValueError:
        return  # protobuf, which is asked next, has the words for it
    assert list(ReplyBatch.FromString(message).frames) == list(ReplyBatch.FromString(settled.rest or b"").frames)
