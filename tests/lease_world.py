"""A simulated fleet: real `LeaseBook`s, the script's twin, and a wire that is slow, loses and dies.

Strategy: events in true time on a heap. Each node has a monotonic clock of its own (offset and rate); the server has a
wall clock that may step. Every admission is logged in true time, and the oracle asks what the worst true window held.

Rules: the node's task here makes the same choices as `flx_api.limits.redis` (one call at a time, a least gap between
calls, a deadline, away after some losses), without its sockets.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.lease_script import Script

from flx_api._core import LeaseBook

if TYPE_CHECKING:
    from collections.abc import Callable

MS = 1_000_000
S = 1_000 * MS
ADMITTED, REFUSED, UNKNOWN, UNAVAILABLE = range(4)
SHA = b"0" * 40


@dataclass
class Wire:
    """How calls travel, in nanoseconds."""

    least: int = MS
    most: int = 10 * MS
    loss: float = 0.0
    deadline: int = 50 * MS


@dataclass
class Node:
    """One process of the fleet."""

    book: LeaseBook
    offset: int
    drift: float
    alive: bool = True
    call: int = 0
    answered: int = 0
    last_call: int = -S
    failures: int = 0
    waiting: list[tuple[int, int, int, int]] = field(default_factory=list)
    wake_at: int = 0


class World:
    """The fleet."""

    def __init__(
        self,
        policies: list[tuple[str, int, int, str]],
        *,
        nodes: int,
        seed: int = 0,
        wire: Wire | None = None,
        gap_ms: int = 25,
        grace_ms: int = 1000,
        wait_ms: int = 50,
    ) -> None:
        self.random = random.Random(seed)
        self.policies = policies
        self.script = Script()
        self.wire = wire or Wire()
        self.gap, self.grace_ms, self.wait = gap_ms * MS, grace_ms, wait_ms * MS
        self.up = True
        self.wall_us = 1_700_000_000_000_000
        self.now = 0
        self.calls = 0
        self.asked = 0
        self.admitted: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        self.verdicts = [0, 0, 0, 0]
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.nodes: list[Node] = []
        for _ in range(nodes):
            self.join()

    def join(self) -> Node:
        """Start one more node."""
        draw = self.random
        book = LeaseBook(
            self.policies,
            max_bytes=4_000_000,
            grace_ms=self.grace_ms,
            node=draw.getrandbits(64),
            seed=(draw.getrandbits(64), draw.getrandbits(64)),
        )
        node = Node(book, draw.randrange(10**6 * S), 1 + draw.uniform(-50e-6, 50e-6))
        self.nodes.append(node)
        self._wake(node, self.now)
        return node

    def at(self, when: int, event: Callable[[], None]) -> None:
        """Do something at a true time."""
        heapq.heappush(self._events, (max(when, self.now), next(self._order), event))

    def run(self, until: int) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until

    def clock(self, node: Node) -> int:
        """The node's own time."""
        return node.offset + int(self.now * node.drift)

    def request(self, node: Node, policy: int, key: int, cost: int = 1) -> None:
        """A request comes in."""
        if node.alive:
            self.asked += 1
            self._decide(node, policy, key, cost, self.now + self.wait)

    def _decide(self, node: Node, policy: int, key: int, cost: int, until: int) -> None:
        verdict, _, _ = node.book.hit(policy, b"%d" % key, self.clock(node), cost)
        if verdict == ADMITTED:
            self.admitted[policy, key].append((self.now, cost))
        if verdict == UNKNOWN and self.now < until:
            node.waiting.append((policy, key, cost, until))
            self.at(until, lambda: self._give_up(node, (policy, key, cost, until)))
            self._wake(node, self.now)
        else:
            self.verdicts[UNAVAILABLE if verdict == UNKNOWN else verdict] += 1
        due = node.book.due_in(self.clock(node))
        if due is not None:
            self._wake(node, self.now + due)

    def _give_up(self, node: Node, waiter: tuple[int, int, int, int]) -> None:
        if node.alive and waiter in node.waiting:
            node.waiting.remove(waiter)
            self.verdicts[UNAVAILABLE] += 1

    def _wake(self, node: Node, when: int) -> None:
        when = max(when, node.last_call + self.gap)
        if node.wake_at <= self.now or when < node.wake_at:
            node.wake_at = when
            self.at(when, lambda: self._tick(node, when))

    def _tick(self, node: Node, when: int) -> None:
        if not node.alive or node.wake_at != when:
            return
        node.wake_at = 0
        command = node.book.collect(self.clock(node), 256, SHA)
        if command is None:
            due = node.book.due_in(self.clock(node))
            if due is not None:
                self._wake(node, self.now + max(due, MS))
            return
        self.calls += 1
        node.call += 1
        node.last_call = self.now
        call, wire = node.call, self.wire
        there, back = (self.random.randint(wire.least // 2, wire.most // 2) for _ in range(2))
        lost_there, lost_back = (self.random.random() < wire.loss for _ in range(2))
        self.at(self.now + wire.deadline, lambda: self._lose(node, call))

        def arrive() -> None:
            if self.up and not lost_there:
                answer = self.script.execute(command, self.wall_us + self.now // 1000)
                if not lost_back:
                    self.at(self.now + back, lambda: self._answer(node, call, answer))

        self.at(self.now + there, arrive)

    def _answer(self, node: Node, call: int, answer: bytes) -> None:
        if node.alive and node.answered < call == node.call:
            node.answered = call
            node.failures = 0
            node.book.apply(answer, self.clock(node))
            self._after(node)

    def _lose(self, node: Node, call: int) -> None:
        if node.alive and node.answered < call == node.call:
            node.answered = call
            node.failures += 1
            node.book.lost(self.clock(node), node.failures >= 3)
            self._after(node)

    def _after(self, node: Node) -> None:
        waiting, node.waiting = node.waiting, []
        for policy, key, cost, until in waiting:
            self._decide(node, policy, key, cost, until)
        due = node.book.due_in(self.clock(node))
        if due is not None:
            self._wake(node, self.now + due)

    def worst(self, policy: int, key: int, *, since: int = 0, until: int | None = None) -> int:
        """The most units that any true window of the policy held."""
        window = self.policies[policy][2] * MS
        times = [(when, cost) for when, cost in self.admitted[policy, key] if since <= when < (until or self.now + 1)]
        most = total = left = 0
        for when, cost in times:
            total += cost
            while times[left][0] <= when - window:
                total -= times[left][1]
                left += 1
            most = max(most, total)
        return most

    def units(self, policy: int, key: int, since: int) -> int:
        """Units admitted from a time on."""
        return sum(cost for when, cost in self.admitted[policy, key] if when >= since)


def debt(limit: int) -> int:
    """What a fast node may owe per key and window."""
    return -(-limit // 64)
