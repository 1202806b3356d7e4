"""Windows that are leased from a real Redis, at a time that the test says: strict policies of a fleet's nodes.

Strategy: each window is a node's own `LeaseBook`; the script is the product's, but for the one line that reads Redis's
clock, which a test cannot set. The calls that are due are made before each question, as the task beside the requests
makes them (`flx_api.limits.redis`), and one more where a strict request waits for it.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

from flx_api._core import LeaseBook

if TYPE_CHECKING:
    from redis import Redis
    from redis.connection import Connection

CLOCK: Final = 'redis.call("TIME")'
SCRIPT: Final = resources.files("flx_api.limits").joinpath("lua", "sync.lua").read_text("utf-8")
ADMITTED, REFUSED, UNKNOWN, UNAVAILABLE = range(4)
_BEGAN_US: Final = 1_700_000_000_000_000
_MOST_CALLS: Final = 8


def script_on_a_set_clock(redis: Redis) -> str:
    """The hash of the script that takes seconds and microseconds as its last arguments."""
    assert SCRIPT.count(CLOCK) == 1
    sha: str = redis.script_load(SCRIPT.replace(CLOCK, "{ ARGV[2], ARGV[3] }"))
    return sha


def resp(*parts: bytes) -> bytes:
    """A RESP command."""
    return b"*%d\r\n" % len(parts) + _bulk(parts)


def _bulk(parts: tuple[bytes, ...]) -> bytes:
    return b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def lease_ms(window_ms: int) -> int:
    """How long units are leased."""
    return max(200, min(window_ms // 4, 30_000))


class LeasedWindow:
    """One node's window. All windows of one `fleet` share a limit."""

    def __init__(self, fleet: list[LeasedWindow], redis: Redis, sha: bytes, limit: int, window_ms: int) -> None:
        self._fleet = fleet
        self._wire: Connection = redis.connection_pool.get_connection()
        self._sha = sha
        self._book = LeaseBook([("api", limit, window_ms, "strict")], grace_ms=0)
        fleet.append(self)

    def hit(self, key: bytes, now_ns: int, cost: int = 1) -> tuple[bool, int, int]:
        """As `SlidingWindow.hit`."""
        for node in self._fleet:
            for _ in range(_MOST_CALLS):
                if node._book.due_in(now_ns) != 0:
                    break
                node._sync(now_ns)
        for _ in range(_MOST_CALLS):
            verdict, remaining, reset_ns = self._book.hit(0, key, now_ns, cost)
            if verdict != UNKNOWN:
                assert verdict != UNAVAILABLE
                return verdict == ADMITTED, remaining, reset_ns
            self._sync(now_ns)
        msg = "a strict request waits in vain"
        raise AssertionError(msg)

    def _sync(self, now_ns: int) -> None:
        """One call at this time of both clocks, and its answer."""
        command = self._book.collect(now_ns, 256, self._sha)
        assert command is not None
        count, _, rest = command.partition(b"\r\n")
        clock = tuple(b"%d" % part for part in divmod(_BEGAN_US + now_ns // 1000, 1_000_000))
        self._wire.send_packed_command([b"*%d\r\n%b%b" % (int(count[1:]) + 2, rest, _bulk(clock))])  # type: ignore[no-untyped-call]
        self._book.apply(self._wire.read_response(disable_decoding=True), now_ns)

    def close(self, redis: Redis) -> None:
        """Give the connection back."""
        redis.connection_pool.release(self._wire)


def fleet(redis: Redis, limit: int, window_ms: int, nodes: int) -> list[LeasedWindow]:
    """The windows of this many nodes, on a Redis without memory of others."""
    redis.flushall()
    sha, made = script_on_a_set_clock(redis).encode(), list[LeasedWindow]()
    for _ in range(nodes):
        LeasedWindow(made, redis, sha, limit, window_ms)
    return made
