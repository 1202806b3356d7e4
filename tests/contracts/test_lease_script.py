"""`sync.lua` on a real Redis against its naive twin, byte for byte, under random nodes, reports and times.

A test cannot set the clock of a Redis, so the script that runs here reads the time from its arguments: that one line is
replaced, and only that one.
"""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest
from tests.lease_script import Script
from tests.leased_windows import SCRIPT, resp, script_on_a_set_clock

from flx_api._core import LeaseBook

if TYPE_CHECKING:
    from redis import Redis

LIMITS = [(10, 1_000), (100, 6_400), (1000, 60_000), (7, 999)]


def random_call(draw: random.Random, node: int, number: int, now_us: int, told: dict[str, int]) -> list[bytes]:
    """The keys and the input of one call, mostly sane."""
    epoch = told["epoch"] if draw.random() < 0.95 else draw.choice([0, 1])
    step = draw.choice([0] * 20 + [-700_000, 900_000])
    blob = struct.pack(
        "<QQQIqB16sIH",
        node, number, epoch, told["clock"], step, draw.choice([0] * 16 + [1, 2] + [4] * 8),
        b"seed" * 4 if draw.random() < 0.97 else b"beef" * 4, draw.choice([0, 300_000]), len(LIMITS),
    )  # fmt: skip
    for limit, window_ms in LIMITS:
        blob += struct.pack("<IQQB", limit, window_ms * 1000, window_ms * 250, draw.randrange(2))
    keys = [b"{flx}:fleet", b"{flx}:nodes", b"{flx}:calls"]
    for key in draw.sample(range(8), draw.randint(0, 5)):
        policy = key % len(LIMITS)
        slot_us = -(-LIMITS[policy][1] * 1000 // 64)
        pairs = [
            (back, draw.randint(1, 4)) for back in sorted(draw.sample(range(65), draw.randint(0, 3)), reverse=True)
        ]
        units = sum(pair[1] for pair in pairs)
        spent = told["spent"] = told["spent"] + draw.randint(0, units)
        newest = now_us // slot_us + draw.choice([0, 0, 0, -1, -2, 1])
        blob += struct.pack(
            "<HQIIIIIQB", policy + 1, spent, units,
            draw.randint(0, 3), draw.randint(0, 6), draw.randint(0, 9), draw.choice([1, 1, 2, 3]), newest, len(pairs),
        )  # fmt: skip
        for pair in pairs:
            blob += struct.pack("<BI", *pair)
        keys.append(b"{flx}:units:" + bytes([key]) * 16)
    return [*keys, blob]


@pytest.mark.parametrize("seed", range(6))
def test_the_script_answers_as_its_twin(redis: Redis, seed: int) -> None:
    redis.flushall()
    sha = script_on_a_set_clock(redis)
    draw, twin, wall_us = random.Random(seed), Script(), 1_700_000_000_000_000
    told = {"epoch": 0, "clock": 0, "spent": 1000}
    numbers = dict.fromkeys(range(1, 6), 0)
    granted = 0
    for _ in range(400):
        # Jumps stay below the life of a key in Redis (10 s and more), which goes by Redis's real clock.
        wall_us += draw.choice([0, 1, 999, 20_000, 150_000, 150_000, 1_100_000, -400_000])
        node = draw.randint(1, 5)
        numbers[node] += draw.choice([1, 1, 1, 1, 1, 0])
        parts = random_call(draw, node, numbers[node], wall_us, told)
        count = b"%d" % (len(parts) - 1)
        expected = twin.execute(resp(b"EVALSHA", b"", count, *parts), wall_us)
        seconds, micros = divmod(wall_us, 1_000_000)
        assert expected == redis.evalsha(sha, len(parts) - 1, *parts, str(seconds), str(micros))
        told["epoch"], told["clock"] = struct.unpack_from("<QI", expected, 1)
        granted += sum(struct.unpack_from("<I", expected, at)[0] for at in range(45, len(expected), 16))
    assert granted > 100


def test_a_book_and_the_script_understand_each_other(redis: Redis) -> None:
    """Hello, a first lease, its use, and the return of the rest: on the script as it is, at Redis's own time."""
    redis.flushall()
    sha = redis.script_load(SCRIPT).encode()
    book = LeaseBook([("api", 10, 60_000, "strict")], grace_ms=0)
    wire = redis.connection_pool.get_connection()
    now = 10**9

    def sync() -> None:
        command = book.collect(now, 10, sha)
        assert command is not None
        wire.send_packed_command([command])  # type: ignore[no-untyped-call]
        book.apply(wire.read_response(disable_decoding=True), now)

    assert (2, 0) == book.hit(0, b"key", now)[:2], "a cold key is unknown"
    sync()
    assert not book.ready(0) or book.nodes == 1
    assert 2 == book.hit(0, b"key", now)[0], "the fleet's seed came: a new name, so cold again"
    sync()
    verdict, remaining, _ = book.hit(0, b"key", now)
    assert (0, 9) == (verdict, remaining)
    now += 20 * 10**9
    book.close()
    sync()
    assert book.close()
    assert 0 == redis.zcard("{flx}:nodes")
    redis.connection_pool.release(wire)
