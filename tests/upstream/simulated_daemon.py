"""A daemon in simulated time: servers behind one queue, callers who arrive at random and give up after a while.

Everything is in seconds of the simulation and comes from one seed, so a run is the same on any machine.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random


class Doorkeeper(Protocol):
    """What decides whether a command is sent."""

    def enter(self, *, vital: bool) -> bool:
        """Let a command pass or refuse it."""
        ...

    def leave(self, kind: str, took_s: float, now_s: float, *, vital: bool) -> None:
        """A command that passed has its reply."""
        ...


class Open:
    """Lets everything pass: shedding off."""

    def enter(self, *, vital: bool) -> bool:
        del vital
        return True

    def leave(self, kind: str, took_s: float, now_s: float, *, vital: bool) -> None:
        """Learns nothing."""


@dataclass(frozen=True)
class Work:
    """One sort of command: how often of all it is asked for, and how long a server takes for it."""

    kind: str
    share: float
    takes_s: Callable[[Random], float]


@dataclass
class Command:
    """One command: when it was sent, and whether it is vital."""

    kind: str
    sent_s: float
    takes_s: float
    vital: bool


@dataclass
class Second:
    """What happened in one second."""

    offered: int = 0
    refused: int = 0
    vital_refused: int = 0
    good: int = 0
    times_s: list[float] = field(default_factory=list)


class SimulatedDaemon:
    """Runs a load against servers.

    Args:
        random: the only chance there is.
        servers: how many commands are worked on at once.
        work: what is asked for.
        patience_s: an answer later than that is worth nothing.
    """

    def __init__(self, random: Random, servers: int, work: list[Work], patience_s: float = 1.0) -> None:
        self._random = random
        self._servers = servers
        self._work = work
        self._patience_s = patience_s

    @property
    def capacity(self) -> float:
        """Commands a second, when nothing is ever idle: found by trying."""
        tries = [self._one(0.0, vital=False).takes_s for _ in range(20_000)]
        return self._servers * len(tries) / sum(tries)

    def run(self, door: Doorkeeper, rate: Callable[[float], float], lasts_s: int, vital_every_s: float) -> list[Second]:
        """The load of `rate(now)` commands a second, and a vital one each `vital_every_s`, second by second."""
        seconds = [Second() for _ in range(lasts_s + 1)]
        ends: list[tuple[float, int, Command]] = []
        queue: deque[Command] = deque()
        busy = number = 0
        next_s, vital_s = 0.0, vital_every_s
        while True:
            now_s = min(next_s, vital_s, ends[0][0] if ends else float("inf"))
            if now_s >= lasts_s:
                return seconds
            second = seconds[int(now_s)]
            if ends and now_s == ends[0][0]:
                done = heapq.heappop(ends)[2]
                busy -= 1
                took_s = now_s - done.sent_s
                door.leave(done.kind, took_s, now_s, vital=done.vital)
                second.good += took_s <= self._patience_s
                second.times_s.append(took_s)
            else:
                vital = now_s == vital_s
                if vital:
                    vital_s += vital_every_s
                else:
                    next_s = now_s + self._random.expovariate(rate(now_s))
                    second.offered += 1
                if door.enter(vital=vital):
                    queue.append(self._one(now_s, vital=vital))
                else:
                    second.refused += not vital
                    second.vital_refused += vital
            while queue and busy < self._servers:
                command = queue.popleft()
                number += 1
                busy += 1
                heapq.heappush(ends, (now_s + command.takes_s, number, command))

    def _one(self, now_s: float, *, vital: bool) -> Command:
        work = self._random.choices(self._work, [one.share for one in self._work])[0]
        return Command(work.kind, now_s, work.takes_s(self._random), vital)
