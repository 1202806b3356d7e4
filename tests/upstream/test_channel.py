"""The multiplexed stream against a daemon on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from tests.small_daemon import SmallDaemon, serving, stop

from flx_api.errors import Conflict, DeadlineExceeded, Unavailable
from flx_api.observability.metrics import Metrics
from flx_api.proto.flx.v1.daemon_pb2 import CommandFrame, Principal, ReplyFrame
from flx_api.upstream.channel import Upstream
from flx_api.upstream.connection import Connection, why_lost
from flx_api.upstream.endpoints import TOKEN_METADATA, Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from grpclib.server import Server

    from flx_api.errors import FlxError


@contextlib.asynccontextmanager
async def connection(daemon: SmallDaemon, socket: Path) -> AsyncIterator[tuple[Upstream, Server]]:
    # How load is shed has tests of its own (test_shedding).
    upstream = Upstream(Endpoint(path=str(socket), token="shared"), Metrics(), jitter=lambda: 0.0, sheds=False)
    async with serving(daemon, socket) as server:
        upstream.start()
        try:
            await upstream.connected.wait()
            yield upstream, server
        finally:
            await upstream.close()


def run(story: Callable[[SmallDaemon, Upstream, Server, Path], Awaitable[None]]) -> None:
    async def told(socket: Path) -> None:
        daemon = SmallDaemon()
        async with asyncio.timeout(30), connection(daemon, socket) as (upstream, server):
            await story(daemon, upstream, server, socket)

    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        asyncio.run(told(Path(folder) / "d.sock"))


def frame(command: str = "system.echo", args: bytes = b"{}") -> CommandFrame:
    return CommandFrame(command=command, args=args, principal=Principal(subject="anna"))


def test_calls_of_one_tick_leave_as_one_message_and_replies_find_their_callers() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.batch_sizes.clear()
        calls = [upstream.call(frame(args=b'{"n":%d}' % number), 5, read=True) for number in range(50)]
        replies = await asyncio.gather(*calls)
        assert [reply.result for reply in replies] == [b'{"n":%d}' % number for number in range(50)]
        assert 50 in daemon.batch_sizes
        assert upstream.in_flight == 0
        assert daemon.metadata[0][TOKEN_METADATA] == "shared"

    run(story)


def test_large_batches_are_split() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.batch_sizes.clear()
        big = b'"' + b"x" * 200_000 + b'"'
        await asyncio.gather(*(upstream.call(frame(args=big), 5, read=True) for _ in range(3)))
        await asyncio.gather(*(upstream.call(frame(), 5, read=True) for _ in range(200)))
        assert max(daemon.batch_sizes) <= 128

    run(story)


def test_a_call_ends_at_its_deadline_and_a_late_reply_harms_nobody() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["slow"] = lambda _: None
        with pytest.raises(DeadlineExceeded):
            await upstream.call(frame("slow"), 0.01, read=True)
        assert (await upstream.call(frame(), 5, read=True)).result == b"{}"

    run(story)


def test_a_caller_that_leaves_takes_its_entry_along() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["slow"] = lambda _: None
        call = asyncio.create_task(upstream.call(frame("slow"), 5, read=True))
        while not daemon.commands():  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        assert upstream.in_flight >= 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await upstream.call(frame(), 5, read=True)
        assert not any(entry.deadline > 1e9 for entry in upstream._pending.values())

    run(story)


def test_a_broken_stream_fails_writes_and_repeats_reads() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, server: Server, socket: Path) -> None:
        daemon.answers["hang"] = lambda _: None
        write = asyncio.create_task(upstream.call(frame("hang"), 5, read=False))
        read = asyncio.create_task(upstream.call(frame("hang"), 5, read=True))
        while len(daemon.commands()) < 2:  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        daemon.answers["hang"] = lambda _: ReplyFrame(result=b"1")
        await stop(server)
        async with serving(daemon, socket):
            with pytest.raises(Unavailable) as caught:
                await write
            assert caught.value.code == "upstream_unavailable"
            assert caught.value.spec.retryable
            assert (await read).result == b"1"
            await upstream.connected.wait()
            assert upstream.reason == ""

    run(story)


def test_who_waits_while_the_service_stops_is_told_so() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["hang"] = lambda _: None
        calls = [asyncio.create_task(upstream.call(frame("hang"), 5, read=read)) for read in (False, True)]
        while len(daemon.commands()) < 2:  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        await upstream.close()
        calls.append(asyncio.create_task(upstream.call(frame(), 5, read=True)))
        for call in calls:
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.code == "shutting_down"

    run(story)


def test_without_a_daemon_the_answer_comes_within_a_second() -> None:
    async def story(folder: Path) -> None:
        upstream = Upstream(Endpoint(path=str(folder / "nobody.sock")), Metrics())
        upstream.start()
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(Unavailable):
            await upstream.call(frame(), 30, read=True)
        assert loop.time() - began < 1
        assert upstream.reason
        await upstream.close()

    with tempfile.TemporaryDirectory(prefix="flx") as folder:
        asyncio.run(story(Path(folder)))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(-2, "Name or service not known"), "cannot be reached: its host name cannot be resolved"),
        (
            ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 50051)"),
            "cannot be reached: nothing listens there",
        ),
        (OSError("Multiple exceptions: [Errno 111] …"), "cannot be reached: OSError"),
        (OSError(errno.EHOSTUNREACH, "('10.0.0.1', 50051)"), "cannot be reached: No route to host"),
        (FileNotFoundError(2, "No such file", "/run/secret/d.sock"), "cannot be reached: No such file or directory"),
        (TimeoutError(), "cannot be reached: it does not answer in time"),
        (GRPCError(Status.UNAUTHENTICATED, "A token is needed"), "refuses the connection: UNAUTHENTICATED"),
        (StreamTerminatedError("Connection lost"), "cannot be reached: StreamTerminatedError"),
    ],
)
def test_a_reason_is_in_words_and_names_no_place(error: Exception, reason: str) -> None:
    """Everybody may read /ready."""
    assert reason == why_lost(error)


def test_what_was_abandoned_stays_outstanding_until_the_daemon_is_done_with_it() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["slow"] = lambda _: None
        free = upstream._credits._value
        call = asyncio.create_task(upstream.call(frame("slow"), 0.2, read=True))
        while not daemon.commands():  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (upstream._credits._value, len(upstream._abandoned)) == (free - 1, 1)
        # The daemon is told; this one does not care.
        await upstream.call(frame(), 5, read=True)
        assert daemon.given_up == [daemon.commands()[0].seq]
        while upstream._abandoned:  # noqa: ASYNC110 - it ends with its deadline
            await asyncio.sleep(0.01)
        assert upstream._credits._value == free

    run(story)


def test_those_who_wait_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flx_api.upstream.waits.WAITS", 4)

    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["execution.wait"] = lambda _: None
        waits = [asyncio.create_task(upstream.call(frame("execution.wait"), 0.1, read=True)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await upstream.call(frame("execution.wait"), 5, read=True)
        assert (await upstream.call(frame(), 5, read=True)).result == b"{}"
        await asyncio.gather(*waits, return_exceptions=True)
        assert upstream._waits.held == 0

    run(story)


def test_a_fault_of_any_kind_does_not_end_the_connection_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, server: Server, socket: Path) -> None:
        read = Connection._read

        async def broken(*_: object) -> None:
            monkeypatch.setattr(Connection, "_read", read)
            raise ValueError

        monkeypatch.setattr(Connection, "_read", broken)
        await stop(server)
        async with serving(daemon, socket):
            while Connection._read is not read:  # noqa: ASYNC110 - an attribute is no event
                await asyncio.sleep(0.01)
            await upstream.connected.wait()
            assert (await upstream.call(frame(), 5, read=True)).result == b"{}"

    run(story)


def test_a_command_with_its_key_is_sent_again_with_it_and_its_outcome_waited_for() -> None:
    """The daemon that comes back is still about the first one for a while; that is no answer."""

    async def story(daemon: SmallDaemon, upstream: Upstream, server: Server, socket: Path) -> None:
        daemon.answers["pipeline.run"] = lambda _: None
        command = frame("pipeline.run")
        command.idempotency_key = "k1"
        call = asyncio.create_task(upstream.call(command, 20, read=False))
        while not daemon.commands():  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        still = Conflict("still", code="idempotency_in_progress")
        answers: list[ReplyFrame | FlxError] = [still, still, ReplyFrame(result=b"1")]
        daemon.answers["pipeline.run"] = lambda _: answers.pop(0)
        await stop(server)
        async with serving(daemon, socket):
            assert b"1" == (await call).result
        assert ["k1"] * 4 == [sent.idempotency_key for sent in daemon.commands()]
        assert 3 == upstream.state().sent_again

    run(story)


def test_somebody_elses_command_in_progress_is_an_answer() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        daemon.answers["pipeline.run"] = lambda _: Conflict("still", code="idempotency_in_progress")
        command = frame("pipeline.run")
        command.idempotency_key = "k1"
        assert "idempotency_in_progress" == (await upstream.call(command, 5, read=False)).code
        assert 1 == len(daemon.commands())

    run(story)


def test_a_stopping_daemons_refusal_is_no_answer_while_there_is_another() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, _server: Server, _socket: Path) -> None:
        answers: list[ReplyFrame | FlxError] = [Unavailable(code="shutting_down"), ReplyFrame(result=b"1")]
        daemon.answers["pipeline.run"] = lambda _: answers.pop(0)
        assert b"1" == (await upstream.call(frame("pipeline.run"), 5, read=False)).result

    run(story)


def test_the_callers_deadline_bounds_all_attempts() -> None:
    async def story(daemon: SmallDaemon, upstream: Upstream, server: Server, _socket: Path) -> None:
        daemon.answers["pipeline.run"] = lambda _: None
        command = frame("pipeline.run")
        command.idempotency_key = "k1"
        call = asyncio.create_task(upstream.call(command, 4, read=False))
        while not daemon.commands():  # noqa: ASYNC110 - the daemon's list is no event
            await asyncio.sleep(0)
        began = asyncio.get_running_loop().time()
        await stop(server)
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await call
        assert asyncio.get_running_loop().time() - began < 6

    run(story)
