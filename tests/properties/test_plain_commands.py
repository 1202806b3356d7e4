"""The short way of plain commands, against the general way: the same frame, the same answer, or not taken at all."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.gateway_app import Wire, built, exchange, scope
from tests.gateway_process import bearer

from flx_api._core import batch_results, joined
from flx_api.commands import COMMANDS
from flx_api.errors import FlxError
from flx_api.gateway.dispatch import frame_of
from flx_api.gateway.options import decoded, with_key
from flx_api.gateway.plain import plain_commands
from flx_api.gateway.routes_fast import Whole, envelope
from flx_api.models import strict_json
from flx_api.models.envelope import MADE_KEY, BatchResult, ExecuteRequest, ReplyMeta
from flx_api.models.rate_limit import RateLimit
from flx_api.proto.flx.v1.daemon_pb2 import CommandBatch, CommandFrame, ReplyFrame

if TYPE_CHECKING:
    from flx_api.dependencies import Parts
    from flx_api.gateway.exchange import Exchange

_PARTS: list[Parts] = []
_execute = msgspec.json.Decoder(ExecuteRequest)
_MS = 1000

TEXTS = st.one_of(
    st.sampled_from(["system.echo", "pipeline.list", "pipeline.run", "pipeline.delete", "auth.login", "event.publish"]),
    st.sampled_from(["execution.wait", "connection.list", "no.such", "", "a\nb", "ä", "k" * 64, "k" * 65, "k" * 256]),
    st.text('aä\\"/\n\u2028\U0001f600', max_size=4),
)
NUMBERS = st.one_of(st.sampled_from([0, 1, 5, 3_600_000, 3_600_001, 2**70, -1, 1.0, 1e400]), st.integers(-2, 10))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), TEXTS, NUMBERS),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(TEXTS, inner, max_size=2)),
    max_leaves=4,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=3)


def members(plain: bool) -> st.SearchStrategy[list[tuple[str, Any]]]:
    """Members of a body, nearly all of them or hardly any of a kind that belongs there."""
    known = {
        "command": st.sampled_from(sorted(COMMANDS)),
        "args": OBJECTS,
        "idempotency_key": st.one_of(st.none(), st.text("!~k-", min_size=1, max_size=8)),
        "environment": st.one_of(st.none(), st.text("pröd", max_size=8)),
        "deadline_ms": st.one_of(st.none(), st.integers(1, 3_600_000)),
        "wait_ms": st.sampled_from([0, None, 0, 5]),
        "dry_run": st.sampled_from([False, False, True]),
    }
    names = st.lists(st.sampled_from([*known, *([] if plain else ["other"])]), max_size=7, unique=plain)
    return names.flatmap(
        lambda names: st.tuples(
            *(st.tuples(st.just(name), known[name] if plain and name in known else VALUES) for name in names)
        ).map(list)
    )


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bodies of `/v1/execute`: right, wrong, and nearly right."""
    plain = draw(st.booleans())
    pairs = draw(members(plain))
    if plain and not any(name == "command" for name, _ in pairs):
        pairs.append(("command", draw(st.sampled_from(["system.echo", "pipeline.create", "plugin.list"]))))
    blank = draw(st.sampled_from(["", " ", "\n"]))
    escapes = draw(st.booleans())
    text = ("," + blank).join(
        f"{json.dumps(name)}{blank}:{blank}{json.dumps(value, ensure_ascii=escapes)}" for name, value in pairs
    )
    body = (blank + "{" + text + blank + "}" + blank).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(body)))
        body = body[:cut] + draw(st.sampled_from([b"", b"}", b"x", b"\xff", b'"'])) + body[cut:]
    return body


HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "idempotency-key": st.sampled_from(["k", "k-2", "", "a b", "k" * 256]),
        "traceparent": st.sampled_from(["00-abc-1", ""]),
        "x-request-id": st.sampled_from(["mine", "no way"]),
    },
)
ROLES = st.sampled_from([("viewer",), ("operator", "viewer"), ("admin",), ("unknown",), ()])


def parts() -> Parts:
    """One gateway for all examples: it is not changed by any."""
    if not _PARTS:
        _PARTS.append(built(rate_limits=(), deadline_ms=7_000))
    return _PARTS[0]


def asked(body: bytes, headers: dict[str, str], roles: tuple[str, ...]) -> Exchange:
    """A request that was admitted, with its body."""
    own = {**bearer(roles=roles), "content-type": "application/json", "content-length": str(len(body)), **headers}
    found = exchange(Wire(), scope("POST", "/v1/execute", own), parts())
    found.body = body
    return found


def generally(asked: Exchange) -> CommandFrame | None:
    """The frame that the general way makes of a request; None where it refuses it, or where it is no plain command."""
    dispatcher = parts().dispatcher
    plain = {name: roles for name, _, _, _, roles in plain_commands(dispatcher.special)}
    try:
        request = decoded(asked, _execute)
        options = with_key(request, asked.headers.get(b"idempotency-key"))
    except FlxError:
        return None
    principal = asked.principal
    assert principal is not None
    if request.command not in plain or not set(principal.roles) & set(plain[request.command]):
        return None
    if options.wait_ms or options.dry_run or not strict_json.is_object(bytes(request.args)):
        return None
    frame, _ = dispatcher.frame(frame_of(asked), COMMANDS[request.command], bytes(request.args), options)
    return frame


@given(bodies(), HEADERS, ROLES)
@example(b'{"command":"system.echo"}', {}, ("viewer",))
@example(b'{"command":"system.echo","args":{}}', {"idempotency-key": "k"}, ("viewer",))
@example(b'{"command":"pipeline.create","args":{"a":1},"idempotency_key":"k"}', {"idempotency-key": "k-2"}, ("admin",))
def test_frames_are_the_same(body: bytes, headers: dict[str, str], roles: tuple[str, ...]) -> None:
    if not body:
        return
    one = asked(body, headers, roles)
    command = parts().commands.plain.read(one.admitted, body, one.mark_ns)
    expected = generally(one)
    if command is None:
        # Escapes in what has to be looked at are not worth reading twice.
        assert expected is None or b"\\" in body
        return
    assert expected is not None
    command.seq = 300
    (found,) = CommandBatch.FromString(joined([command])).frames
    assert CommandFrame.FromString(command.SerializeToString()) == found
    assert (expected.command, expected.args, 0) == (command.command, command.args, command.wait_ms)
    assert (found.idempotency_key, expected.environment) == (command.idempotency_key, command.environment or "")
    assert COMMANDS[command.command].idempotency == "read" or not command.reads
    assert abs(found.deadline_unix_ms - time.time() * _MS - command.deadline_s * _MS) < 30 * _MS
    assert abs(found.deadline_unix_ms - expected.deadline_unix_ms) < 30 * _MS
    if expected.idempotency_key.startswith(MADE_KEY):
        assert len(expected.idempotency_key) == len(found.idempotency_key)
        assert found.idempotency_key.startswith(MADE_KEY)
        expected.idempotency_key = found.idempotency_key
    expected.seq, expected.deadline_unix_ms = 300, found.deadline_unix_ms
    assert expected == found


@given(
    st.one_of(VALUES.map(msgspec.json.encode), st.just(b"")),
    st.booleans(),
    st.sampled_from(["mine", "a.b-c_d", ""]),
    st.booleans(),
)
def test_answers_are_the_same(result: bytes, replayed: bool, request_id: str, escaped: bool) -> None:
    headers = {"x-request-id": request_id} if request_id else {}
    one = asked(b'{"command":"system.echo"}', headers, ("viewer",))
    command = parts().commands.plain.read(one.admitted, one.body, one.mark_ns)
    assert command is not None
    reply = ReplyFrame(result=(b" " + result) if escaped and result else result, replayed=replayed)
    whole = parts().commands.answer(one, command, reply)
    assert isinstance(whole, Whole)
    expected = envelope(one, COMMANDS["system.echo"], reply)
    start, end = whole.parts
    wanted, found = msgspec.json.decode(expected.body), msgspec.json.decode(end["body"])
    took_us = found["meta"]["duration_us"]
    assert 0 < took_us <= wanted["meta"]["duration_us"]
    # Byte for byte, but for the time.
    later = b'"duration_us":%d' % wanted["meta"]["duration_us"]
    assert expected.body.replace(later, b'"duration_us":%d' % took_us) == end["body"]
    assert (start["status"], start["headers"]) == (200, parts().edge.headers(one, expected.headers, len(end["body"])))


@given(
    st.lists(st.tuples(st.sampled_from(sorted(COMMANDS)), st.sampled_from([b"", b"{}", b"[1, 2]"]), st.booleans())),
    st.text('ab"\\\x7f\x01', max_size=6),
)
def test_results_of_many_are_the_same(given: list[tuple[str, bytes, bool]], request_id: str) -> None:
    operations = [ExecuteRequest(command=command) for command, _, _ in given]
    results = [(index, result, replayed) for index, (_, result, replayed) in enumerate(given)]
    metas = [ReplyMeta(request_id, 7, replayed) for replayed in (False, True)]
    encode = msgspec.json.encode
    encoded, counted = batch_results(results, operations, request_id, *map(encode, metas))
    assert encoded == [
        (
            index,
            encode(
                BatchResult(
                    index=index,
                    id=f"{request_id}.{index}",
                    command=operations[index].command,
                    status="ok",
                    result=msgspec.Raw(result or b"null"),
                    meta=metas[replayed],
                )
            ),
        )
        for index, result, replayed in results
    ]
    assert Counter(command for command, _, _ in given) == dict(counted)


@pytest.mark.parametrize(("count", "most"), [(1, 1), (3, 3)])
def test_what_is_refused_is_charged_once(count: int, most: int) -> None:
    few = RateLimit("few", "subject", count, "60s", commands=("system.echo",))
    limited = built(rate_limits=(few,))

    def read() -> object:
        own = {**bearer(), "content-type": "application/json", "content-length": "9"}
        found = exchange(Wire(), scope("POST", "/v1/execute", own), limited)
        return limited.commands.plain.read(found.admitted, b'{"command":"system.echo"}', found.mark_ns)

    passed = [read() is not None for _ in range(most + 2)]
    assert [True] * most + [False] * 2 == passed
