"""The sync task on a real Redis: readiness, waiting, losses, NOSCRIPT, cancellation, goodbye."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from tests.redis_server import RedisServer, running

from flx_api._core import LeaseBook
from flx_api.limits.redis import Leases

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

ADMITTED, REFUSED, UNKNOWN, UNAVAILABLE = range(4)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path) as server:
        yield server


def leases(server: RedisServer, *, mode: str = "strict", limit: int = 100) -> Leases:
    """A node that has not started yet; no grace, and time enough for a busy machine."""
    book = LeaseBook([("api", limit, 60_000, mode)], grace_ms=0)
    return Leases(book, server.url, deadline_s=2.0, wait_s=5.0)


def hit(node: Leases) -> int:
    """The verdict about one request."""
    return node.book.hit(0, b"key", time.monotonic_ns())[0]


async def until(what: Callable[[], bool]) -> None:
    """Wait for something that a task does."""
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110 - what changes belongs to others
            await asyncio.sleep(0.005)


async def waited(node: Leases) -> int:
    """The verdict about one request that waits if it has to."""
    verdict = hit(node)
    while verdict == UNKNOWN:
        assert await node.wait()
        verdict = hit(node)
    return verdict


def run(node: Leases, story: Callable[[Leases], Awaitable[None]]) -> None:
    """A story about a running node."""

    async def told() -> None:
        node.start()
        try:
            await story(node)
        finally:
            await node.close()

    asyncio.run(told())


def test_a_strict_request_waits_for_its_lease(server: RedisServer) -> None:
    node = leases(server)

    async def story(node: Leases) -> None:
        assert not node.ready
        await until(lambda: node.ready)
        assert "" == node.reason
        assert UNKNOWN == hit(node)
        assert ADMITTED == await waited(node)
        assert node.waits >= 1

    run(node, story)
    assert server.ask(b"ZCARD", b"{flx}:nodes").startswith(b":0"), "it said goodbye"


def test_two_nodes_share_one_limit(server: RedisServer) -> None:
    async def story(first: Leases) -> None:
        second = leases(server, limit=10)
        second.start()
        await until(lambda: first.ready and second.ready and first.book.nodes == second.book.nodes == 2)
        verdicts = [await waited(node) for _ in range(10) for node in (first, second)]
        assert 10 == verdicts.count(ADMITTED)
        assert 10 == verdicts.count(REFUSED)
        await second.close()

    run(leases(server, limit=10), story)


def test_flushed_scripts_are_loaded_again(server: RedisServer) -> None:
    async def story(node: Leases) -> None:
        await until(lambda: node.ready)
        server.ask(b"SCRIPT", b"FLUSH")
        assert ADMITTED == await waited(node)
        assert 0 == node.losses

    run(leases(server), story)


def test_without_redis_strict_is_unavailable_and_fast_goes_on(server: RedisServer) -> None:
    async def story(strict: Leases) -> None:
        fast = leases(server, mode="fast")
        fast.start()
        await until(lambda: strict.ready and fast.ready)
        server.kill()
        await until(lambda: strict.book.away and fast.book.away)
        assert not strict.ready
        assert "ConnectionError" in strict.reason
        assert str(server.socket) not in strict.reason
        assert UNAVAILABLE == hit(strict)
        assert ADMITTED == hit(fast)
        assert 1 == fast.times_away
        server.start()
        await until(lambda: strict.ready and fast.ready)
        assert ADMITTED == await waited(strict)
        await fast.close()

    run(leases(server), story)


def test_a_node_that_was_held_up_itself_does_not_blame_redis(server: RedisServer) -> None:
    node = Leases(LeaseBook([("api", 100, 60_000, "strict")], grace_ms=0), server.url, deadline_s=0.05, wait_s=5.0)

    async def story(node: Leases) -> None:
        await until(lambda: node.ready)
        for _ in range(5):
            calls, losses = node.calls, node.losses
            server.freeze()
            hit(node)
            await until(lambda calls=calls: node.calls > calls)  # type: ignore[misc]
            # The answer comes while the loop does something else for longer than a call may take.
            server.thaw()
            held_until = time.monotonic() + 0.2
            while time.monotonic() < held_until:
                pass
            await until(lambda: node.book.counts[0] >= node.calls)
            assert losses == node.losses

    run(node, story)


def test_a_redis_that_hangs_is_left_after_the_deadline(server: RedisServer) -> None:
    node = Leases(LeaseBook([("api", 100, 60_000, "strict")], grace_ms=0), server.url)

    async def story(node: Leases) -> None:
        await until(lambda: node.ready)
        server.freeze()
        began = time.monotonic()
        assert UNKNOWN == hit(node)
        await node.wait()
        assert time.monotonic() - began < 5
        await until(lambda: node.book.away)
        server.thaw()
        await until(lambda: node.ready)

    run(node, story)


def test_a_cancelled_call_leaves_no_answer_behind(server: RedisServer) -> None:
    """The next call gets its own answer, on a connection of its own."""

    async def story() -> None:
        node = leases(server)
        await node._call()
        first = node._connection
        server.freeze()
        assert UNKNOWN == hit(node)
        call = asyncio.create_task(node._call())
        await until(lambda: node.calls == 2)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        server.thaw()
        assert node._connection is None
        assert UNKNOWN == hit(node)
        await node._call()
        assert node._connection is not first
        assert 3 == node.calls
        assert ADMITTED == hit(node)
        assert 0 == node.losses
        await node.close()

    asyncio.run(story())
