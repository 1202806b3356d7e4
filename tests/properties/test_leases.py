"""Leases in a simulated fleet: what no true window may hold, whatever the wire, the clocks and the processes do.

The books are the real ones; the script is its twin (`tests/contracts/test_lease_script.py` holds it against a real
Redis). The oracle knows the true time of every admission. The bounds are those of docs/decisions/0005: strict 0 while
Redis keeps its data; fast one debt per node; without Redis one share per node more.
"""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lease_world import MS, REFUSED, UNAVAILABLE, UNKNOWN, Node, S, Wire, World, debt

FIXED = settings(derandomize=True, database=None, max_examples=25)
WINDOW_MS = 2_000

wires = st.builds(
    Wire,
    least=st.just(MS),
    most=st.sampled_from([2 * MS, 20 * MS, 100 * MS]),
    loss=st.sampled_from([0.0, 0.0, 0.1, 0.4]),
    deadline=st.sampled_from([50 * MS, 250 * MS]),
)
sizes = st.sampled_from([1, 10, 64, 200, 1000])


def load(world: World, *, keys: int, rate: float, until: int, cost: int = 1) -> None:
    """Requests at random nodes for keys drawn by Zipf, `rate` a second in all."""
    draw = world.random
    weights = list(accumulate(1 / (rank + 1) for rank in range(keys)))

    def ask() -> None:
        living = [node for node in world.nodes if node.alive]
        if living:
            key = draw.choices(range(keys), cum_weights=weights)[0]
            world.request(draw.choice(living), 0, key, draw.randint(1, cost))
        when = world.now + int(draw.expovariate(rate) * S) + 1
        if when < until:
            world.at(when, ask)

    world.at(world.now, ask)


def start(world: World) -> None:
    """One more node."""
    world.join()


def kill(node: Node) -> None:
    """End a node without a word."""
    node.alive = False


def worst(world: World, keys: int, since: int = 0) -> int:
    """The most that any key had in any window."""
    return max(world.worst(0, key, since=since) for key in range(keys))


@given(seed=st.integers(0, 2**32), limit=sizes, nodes=st.integers(1, 12), wire=wires, cost=st.sampled_from([1, 3]))
@FIXED
def test_strict_never_over_admits_while_redis_keeps_its_data(
    seed: int, limit: int, nodes: int, wire: Wire, cost: int
) -> None:
    """Slow and lossy wires, Redis away and back with its data, nodes that die and join, a server clock that steps."""
    world = World([("p", limit, WINDOW_MS, "strict")], nodes=nodes, seed=seed, wire=wire, grace_ms=1000)
    end = 8 * S
    load(world, keys=3, rate=min(600.0, 3.0 * limit + 50), until=end, cost=min(cost, limit))
    draw = world.random
    for _ in range(draw.randint(0, 2)):
        gone = draw.randrange(end)
        world.at(gone, lambda: setattr(world, "up", False))
        world.at(gone + draw.randrange(S), lambda: setattr(world, "up", True))
    for _ in range(draw.randint(0, 2)):
        victim = draw.choice(world.nodes)
        world.at(draw.randrange(end), lambda victim=victim: kill(victim))  # type: ignore[misc]
        world.at(draw.randrange(end), lambda: start(world))
    step_us = draw.choice([0, 0, -300_000, -3_000_000, 400_000, 3_000_000])
    world.at(draw.randrange(end), lambda: setattr(world, "wall_us", world.wall_us + step_us))
    world.run(end + S)
    assert worst(world, 3) <= limit


@given(seed=st.integers(0, 2**32), limit=sizes, nodes=st.integers(1, 12), wire=wires, cost=st.sampled_from([1, 3]))
@FIXED
def test_fast_owes_no_more_than_one_debt_per_node_and_waits_for_nothing(
    seed: int, limit: int, nodes: int, wire: Wire, cost: int
) -> None:
    """As long as no node takes Redis for lost."""
    wire.loss, wire.deadline = 0.0, 250 * MS
    world = World([("p", limit, WINDOW_MS, "fast")], nodes=nodes, seed=seed, wire=wire, grace_ms=0)
    load(world, keys=3, rate=min(600.0, 3.0 * limit + 50), until=6 * S, cost=min(cost, limit))
    world.run(7 * S)
    assert 0 == world.verdicts[UNKNOWN] + world.verdicts[UNAVAILABLE]
    assert worst(world, 3) <= limit + nodes * debt(limit)


@given(seed=st.integers(0, 2**32), limit=sizes, nodes=st.integers(2, 12), keeps=st.booleans())
@FIXED
def test_without_redis_fast_goes_on_within_its_share(seed: int, limit: int, nodes: int, keeps: bool) -> None:
    """Redis dies and comes back, with its data or empty: the bound with shares holds, and later the other one."""
    world = World([("p", limit, WINDOW_MS, "fast")], nodes=nodes, seed=seed, grace_ms=1000)
    load(world, keys=3, rate=min(600.0, 3.0 * limit + 50), until=12 * S)

    def die() -> None:
        world.up = False
        if not keeps:
            world.script.wipe()

    world.at(4 * S, die)
    world.at(6 * S, lambda: setattr(world, "up", True))
    world.run(13 * S)
    share = nodes * max(1, limit // nodes)
    assert worst(world, 3) <= limit + share + nodes * debt(limit)
    # Back at 6 s, known to all within half a second, then the grace; one window later everything is as before.
    assert worst(world, 3, since=6 * S + 1500 * MS + WINDOW_MS * MS) <= limit + nodes * debt(limit)


@given(seed=st.integers(0, 2**32), limit=sizes, nodes=st.integers(1, 12))
@FIXED
def test_strict_holds_even_when_redis_forgets(seed: int, limit: int, nodes: int) -> None:
    """As long as the nodes live: in the grace of the new epoch each tells what it spent."""
    world = World([("p", limit, WINDOW_MS, "strict")], nodes=nodes, seed=seed, grace_ms=1000)
    load(world, keys=3, rate=min(600.0, 3.0 * limit + 50), until=9 * S)
    world.at(4 * S, world.script.wipe)
    world.run(10 * S)
    assert worst(world, 3) <= limit


def test_the_limit_is_used() -> None:
    """20 times overload on 12 nodes: at least 97 of 100 allowed units are used, and few calls are made."""
    for mode in ("strict", "fast"):
        world = World([("p", 1000, 6_000, mode)], nodes=12, seed=1)
        load(world, keys=1, rate=20 * 1000 / 6, until=26 * S)
        world.run(26 * S)
        used = world.units(0, 0, 8 * S)
        assert used >= 0.97 * 1000 * 3
        assert world.asked / world.calls > 40


@pytest.mark.parametrize("mode", ["fast", "strict"])
@pytest.mark.parametrize(
    ("limit", "cost", "nodes", "rate"),
    [(10, 10, 3, 10.0), (5, 5, 8, 40.0), (10, 7, 4, 20.0), (16, 4, 8, 60.0), (50, 50, 4, 5.0)],
)
def test_leases_are_never_too_small_for_a_request(mode: str, limit: int, cost: int, nodes: int, rate: float) -> None:
    """Requests that cost much of the limit, after some that did not: what is leased can be spent, so it is used."""
    window_s = 5
    world = World([("p", limit, window_s * 1000, mode)], nodes=nodes, seed=5)
    load(world, keys=1, rate=rate, until=5 * S, cost=2)

    def ask() -> None:
        world.request(world.random.choice(world.nodes), 0, 0, cost)
        when = world.now + int(world.random.expovariate(rate) * S) + 1
        if when < 45 * S:
            world.at(when, ask)

    world.at(5 * S, ask)
    world.run(45 * S)
    assert world.units(0, 0, 15 * S) >= 0.6 * (30 / window_s) * (limit // cost) * cost
    # Behind the grace of a fleet that begins, in which fast goes on within its share.
    assert worst(world, 1, since=10 * S) <= limit + (0 if mode == "strict" else nodes * debt(limit))


def test_a_costly_request_that_comes_seldom_is_admitted() -> None:
    """In fast it costs more than may be owed: the first is refused for want of a lease, those after it find one."""
    world = World([("p", 1000, 60_000, "fast")], nodes=1, seed=1)
    world.run(2 * S)
    for number in range(1, 11):
        world.at(20 * number * S, lambda: world.request(world.nodes[0], 0, 0, 50))
    world.run(210 * S)
    assert 9 == len(world.admitted[0, 0])


def test_a_key_below_its_limit_is_never_refused() -> None:
    """Half its limit, thinly spread over 12 nodes: strict admits all, fast all that it may owe or holds."""
    for mode, most in (("strict", 0.0), ("fast", 0.02)):
        world = World([("p", 100, 10_000, mode)], nodes=12, seed=2)
        world.run(2 * S)
        load(world, keys=1, rate=5.0, until=42 * S)
        world.run(43 * S)
        assert world.verdicts[REFUSED] + world.verdicts[UNAVAILABLE] <= most * world.asked


def test_a_lost_answer_counts_nothing_twice() -> None:
    """Every second answer is lost; what is told again is counted once, so the limit is still used."""
    world = World([("p", 200, WINDOW_MS, "strict")], nodes=3, seed=3, wire=Wire(loss=0.3))
    load(world, keys=1, rate=500.0, until=12 * S)
    world.run(13 * S)
    assert 200 >= worst(world, 1)
    assert world.units(0, 0, 2 * S) >= 0.8 * 200 * 5


def test_what_a_dead_node_held_comes_back() -> None:
    """Its lease counts until its expiry and one window longer, then the others have it."""
    world = World([("p", 10, WINDOW_MS, "strict")], nodes=2, seed=4)
    world.run(2 * S)
    dying, living = world.nodes
    for _ in range(10):
        world.request(dying, 0, 0)
    world.run(2 * S + 200 * MS)
    kill(dying)
    world.request(living, 0, 0)
    world.run(2 * S + 400 * MS)
    assert 10 == len(world.admitted[0, 0])
    world.run(2 * S + 200 * MS + (WINDOW_MS * 5 // 4) * MS + 200 * MS)
    world.request(living, 0, 0)
    world.run(world.now + 100 * MS)
    assert 11 == len(world.admitted[0, 0])
