"""Batches that are plain as a whole, against the general way: the same frames, the same answer, or not taken at all."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.gateway_app import Wire, built, exchange, scope
from tests.gateway_process import bearer
from tests.properties.test_plain_commands import OBJECTS, ROLES, TEXTS, VALUES, parts

from flx_api._core import Express, Hall, joined
from flx_api.commands import COMMANDS
from flx_api.errors import FlxError
from flx_api.gateway import batch
from flx_api.gateway.dispatch import frame_of
from flx_api.gateway.plain import plain_commands
from flx_api.models.envelope import MADE_KEY, BatchReply, BatchResult, BatchTotals, ReplyMeta
from flx_api.models.rate_limit import RateLimit
from flx_api.proto.flx.v1.daemon_pb2 import CommandBatch, CommandFrame, ReplyBatch, ReplyFrame
from flx_api.upstream.channel import GROUPED

if TYPE_CHECKING:
    from flx_api._core import PlainBatch, Ride, Settled
    from flx_api.dependencies import Parts
    from flx_api.gateway.exchange import Exchange

OPERATIONS = st.fixed_dictionaries(
    {"command": st.one_of(st.sampled_from(["system.echo", "pipeline.create", "plugin.list", "pipeline.run"]), TEXTS)},
    optional={
        "args": st.one_of(OBJECTS, OBJECTS, VALUES),
        "idempotency_key": st.sampled_from([None, "k", "a b"]),
        "environment": st.sampled_from([None, "pröd", "e" * 65]),
        "deadline_ms": st.sampled_from([None, 5, 0]),
        "wait_ms": st.sampled_from([0, None, 0, 5]),
        "dry_run": st.sampled_from([False, False, True]),
    },
)
PLAIN = st.fixed_dictionaries(
    {"command": st.sampled_from(["system.echo", "pipeline.create", "plugin.list"])},
    optional={"args": OBJECTS, "idempotency_key": st.just("k"), "deadline_ms": st.integers(1, 9)},
)
WHOLE = st.fixed_dictionaries(
    {"operations": st.one_of(st.lists(PLAIN, min_size=1, max_size=5), st.lists(OPERATIONS, max_size=4))},
    optional={
        "mode": st.sampled_from(["parallel", "parallel", "ordered"]),
        "fail_fast": st.sampled_from([False, False, True]),
        "dry_run": st.sampled_from([False, False, True]),
        "other": st.just(1),
    },
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bodies of `/v1/batch`: right, wrong, and nearly right."""
    text = json.dumps(draw(WHOLE), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 1])))
    body = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(body)))
        body = body[:cut] + draw(st.sampled_from([b"", b"}", b"]", b"x", b"\xff", b'"', b","])) + body[cut:]
    return body


def asked(
    body: bytes, roles: tuple[str, ...] = ("admin",), headers: dict[str, str] | None = None, of: Parts | None = None
) -> Exchange:
    """A batch that was admitted, with its body."""
    own = {
        **bearer(roles=roles),
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    found = exchange(Wire(), scope("POST", "/v1/batch", own), of or parts())
    found.body = body
    return found


def read(one: Exchange, of: Parts | None = None) -> PlainBatch | None:
    return (of or parts()).commands.plain.read_batch(one.admitted, one.body, one.mark_ns)


def generally(one: Exchange) -> list[CommandFrame] | None:
    """The frames that the general way makes of a batch; None where it is refused, or anything of it is not plain."""
    dispatcher = parts().dispatcher
    plain = {name: roles for name, _, _, _, roles in plain_commands(dispatcher.special)}
    try:
        request = batch._request(one)
    except FlxError:
        return None
    assert one.principal is not None
    if request.mode != "parallel" or request.fail_fast or request.dry_run:
        return None
    frames = []
    for operation in request.operations:
        name = operation.command
        if name not in plain or not set(one.principal.roles) & set(plain[name]):
            return None
        if operation.wait_ms or operation.dry_run:
            return None
        args = bytes(operation.args)
        frames.append(dispatcher.frame(frame_of(one), COMMANDS[name], args, operation)[0])
    return frames


@given(bodies(), ROLES, st.sampled_from([{}, {"traceparent": "00-abc-1"}, {"idempotency-key": "k"}]))
@example(b'{"operations":[{"command":"system.echo"}]}', ("viewer",), {})
def test_frames_are_the_same(body: bytes, roles: tuple[str, ...], headers: dict[str, str]) -> None:
    if not body:
        return
    one = asked(body, roles, headers)
    found = read(one)
    expected = generally(one)
    if found is None:
        # Escapes in what has to be looked at are not worth reading twice.
        assert expected is None or b"\\" in body
        return
    assert expected is not None
    assert (len(expected), body) == (len(found), found.body)
    commands = found.commands()
    frames = list(CommandBatch.FromString(joined([found])).frames)
    for frame in frames:
        frame.seq = 0
    assert frames == [CommandFrame.FromString(command.SerializeToString()) for _, command in commands]
    assert frames == list(CommandBatch.FromString(joined([command for _, command in commands])).frames)
    for place, (frame, wanted, (known, command)) in enumerate(zip(frames, expected, commands, strict=True)):
        assert place == known
        assert (wanted.command, wanted.args) == (command.command, command.args)
        assert (frame.idempotency_key, wanted.environment) == (command.idempotency_key, command.environment or "")
        assert abs(frame.deadline_unix_ms - wanted.deadline_unix_ms) < 30_000
        if wanted.idempotency_key.startswith(MADE_KEY):
            assert frame.idempotency_key.startswith(MADE_KEY)
            wanted.idempotency_key = frame.idempotency_key
        wanted.deadline_unix_ms, wanted.seq = frame.deadline_unix_ms, frame.seq
        assert wanted == frame


@pytest.mark.parametrize("count", [0, 2, 5, 9])
def test_what_a_limit_refuses_is_not_paid_for(count: int) -> None:
    few = RateLimit("few", "subject", 5, "60s", commands=("system.echo",))
    limited = built(rate_limits=(few,))
    operations = [{"command": "plugin.list"}] + [{"command": "system.echo"}] * count
    one = asked(msgspec.json.encode({"operations": operations}), of=limited)
    found = read(one, limited)
    assert found is not None
    assert (None, count <= 5, 1 + min(count, 5)) == (found.paid, found.pay(), found.paid)
    # The general way, which begins anew, is told so.
    again = limited.commands.plain.operations(one.admitted, batch._request(one).operations, 0, 99, found.paid or 0)
    assert found.paid == len(again)
    left = read(asked(msgspec.json.encode({"operations": [{"command": "system.echo"}] * 9}), of=limited), limited)
    assert left is not None
    assert (False, 5 - min(count, 5)) == (left.pay(), left.paid)


def test_what_is_too_large_to_leave_at_once_is_not_read() -> None:
    for count, is_read in ((GROUPED, True), (GROUPED + 1, False)):
        one = asked(msgspec.json.encode({"operations": [{"command": "system.echo"}] * count}))
        assert is_read is (read(one) is not None)


class _Body:
    """The body of a request, which is there."""

    def __init__(self, message: object) -> None:
        self._message = message

    def add_done_callback(self, callback: Any, **_: object) -> None:
        self.callback = callback

    def result(self) -> object:
        return self._message


class Boarded:
    """A batch that has boarded: its caller and its protocol. What is raised is not expected."""

    def __init__(self, body: bytes) -> None:
        self.sent: list[Any] = []
        self.body = _Body({"type": "http.request", "body": body})
        one = asked(body)
        self.scope = one.scope
        hall = Hall(parts().commands.plain, lambda: None, None, 1.0, one.admitted.route)
        hall.board(self, self, one.admitted)
        self.body.callback(self.body)
        plain, marked, batches, others = hall.boarded(watch=False)
        assert ([], [], []) == (plain, marked, others)
        (self.ride,) = batches

    def receive(self) -> _Body:
        return self.body

    def send(self, message: Any) -> None:
        self.sent.append(message)

    @staticmethod
    def err(error: Exception) -> None:
        raise error


REPLIES = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, 7),
            st.sampled_from(["", "", "", "", "", "not_found"]),
            st.sampled_from(["", "", "", "", "", "", "x1"]),
            st.sampled_from([b"", b"{}", b'{"n":1}']),
            st.booleans(),
        ),
        max_size=6,
    ),
    max_size=5,
)
_KEYWORDS: Any = {"stream": 1, "life": 1, "now_s": 100.0, "grace_s": 0.25}


def numbers_of(settled: Settled) -> tuple[Any, ...]:
    """What is told of a message, but for who is told it."""
    took = [(name, count) for name, count, _ in settled.took]
    told = settled.answered, settled.of_life, settled.of_many, settled.forgotten, settled.foreign
    return told, took, settled.rest, [frame for _, frame in settled.others]


@given(st.lists(PLAIN, min_size=1, max_size=6), REPLIES, st.booleans())
def test_it_ends_as_a_group_does(operations: list[dict[str, Any]], story: list[list[Any]], abandons: bool) -> None:
    boarded = Boarded(msgspec.json.encode({"operations": operations}))
    ride: Ride = boarded.ride
    twin = Boarded(msgspec.json.encode({"operations": operations})).ride.batch
    assert twin is not None
    many, single = Express(), Express()
    (sent,) = many.depart_batch(ride, 1, **_KEYWORDS)
    assert sent is ride.batch
    single.depart_many(boarded, twin.commands(), 1, **_KEYWORDS)
    if abandons:
        assert many.abandon(2) == single.abandon(2)
    results: dict[int, tuple[bytes, bool]] = {}
    handed: list[tuple[int, bytes, bool]] = []
    counted: Counter[str] = Counter()
    for replies in story:
        frames = [
            ReplyFrame(seq=seq, code=code, accepted_id=accepted, result=result, replayed=replayed)
            for seq, code, accepted, result, replayed in replies
        ]
        message = ReplyBatch(frames=frames).SerializeToString()
        how: Any = {"stream": 1, "life": 1, "now_s": 101.0, "since_s": 0.0}
        found, expected = many.settle(message, **how), single.settle(message, **how)
        assert numbers_of(expected) == numbers_of(found)
        assert (len(single), single.waited_for) == (len(many), many.waited_for)
        results |= {place: (result, again) for _, some in expected.results for place, result, again in some}
        counted.update(dict(found.counted))
        for group, some in found.results:
            assert group is boarded
            handed += some
        for (one, _), (other, _) in zip(found.others, expected.others, strict=True):
            assert one.of is ride
            assert one.command is not None
            assert other.command is not None
            assert (other.place, other.until_s) == (one.place, one.until_s)
            assert (other.command.seq, other.command.command) == (one.command.seq, one.command.command)
            if sent.group is None:
                before, missing = sent.hand_over(boarded)
                assert len(operations) - len(before) == missing
                handed += before
    if sent.group is not None:
        assert (results, []) == ({place: (result, again) for place, result, again in handed}, boarded.sent)
    elif len(results) == len(operations):
        assert dict(Counter(operation["command"] for operation in operations)) == dict(counted)
        _is_the_answer(boarded, operations, results)
    else:
        assert ([], {}) == (boarded.sent, counted)


def _is_the_answer(boarded: Boarded, operations: list[dict[str, Any]], results: dict[int, tuple[bytes, bool]]) -> None:
    """Byte for byte what the general way would have said, but for the times."""
    start, end = boarded.sent
    told = msgspec.json.decode(end["body"])
    request_id, took_us = told["meta"]["request_id"], told["meta"]["duration_us"]
    items: list[Any] = [
        BatchResult(
            index=place,
            id=f"{request_id}.{place}",
            command=operation["command"],
            status="ok",
            result=msgspec.Raw(results[place][0] or b"null"),
            meta=ReplyMeta(request_id, told["results"][place]["meta"]["duration_us"], results[place][1]),
        )
        for place, operation in enumerate(operations)
    ]
    assert all(0 < item.meta.duration_us <= took_us for item in items)
    count = len(operations)
    expected = BatchReply(items, BatchTotals(count, count), ReplyMeta(request_id, took_us))
    assert msgspec.json.encode(expected) == end["body"]
    own = [(b"content-type", b"application/json"), (b"vary", b"Accept")]
    one = asked(msgspec.json.encode({"operations": operations}))
    wanted = dict(parts().edge.headers(one, own, len(end["body"])))
    found = dict(start["headers"])
    assert (200, request_id.encode()) == (start["status"], found.pop(b"x-request-id"))
    del wanted[b"x-request-id"]
    assert wanted == found
