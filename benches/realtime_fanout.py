"""Fan-out rows: a topic that all share, a topic for each, a lone event; ours beside the bare sender and the rivals.

Strategy: everybody's fleet is connected before anything is measured, and stays; the servers take turns, a short series
each, round by round. A value is the median over the rounds; a ratio that of the per-round ratios.

Rules:
- A series is over when its last event has reached everybody, or `_DRAIN_S` after it was published; what has not come
  by then counts among the faults, and ours may have none.
- CPU is that of the server and of the kernel's thread that works off what the server's core could not receive at once:
  who sends in larger pieces would only look cheaper without it.
- A rival whose limit is known to lie below ours is offered what it can carry, and its row says how much.
- What a frame costs depends on the traffic, for the bare sender too: at a pace half as much again as without a pause.
  So the `write` loop is beside both: a topic for each at its pace, and lone events, which go out the way it writes.
- Events of the shared topic and lone ones are made by Python and published by it. Those of a topic for each are made
  where the hub is (`event.publish` with `native`), and go the same way from there; a row says what they cost made by
  Python.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from benches import realtime_servers as halls
from benches.fleet import Fleet
from benches.load import server_cpu_s
from benches.peer_tools import Missing
from benches.peers.packed import NATIVE
from benches.realtime_servers import BARE, CENTRIFUGE, OWN, SHARED, WSE, Ground, Hall
from benches.servers import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from benches.fleet import Report
    from benches.record import Suite

OURS, BY_PYTHON = "ours", "ours, events made by Python"
EVENT_BYTES = 128
SHARED_PER_S, OWN_PER_S = 1000, 5
WINDOW_MS, SLICES = 150, 30
# What a rival's own measurements say it carries to 10,000 (realtime.md, section 11).
CARRIES = {WSE: 500, CENTRIFUGE: 36}
LONE, LONE_EVERY_MS = 3, 500
# Where CPU is measured, which is counted in hundredths of a second. Everybody has one before the next.
SPREAD, SPREAD_EVERY_MS = 10, 150
TO_BARE, TO_WRITE, TO_BARE_LONE = 1.25, 0.85, 1.2
OWN_P99_MS, ONE_P50_MS = 50, 0.5
_DRAIN_S = 6.0
_NAME_SHARED, _NAME_OWN, _NAME_LONE = "shared topic", "a topic for each", "lone event to all"
_WRITE, _PER_CPU = "bare write loop", "frames per second of CPU"


class Series(NamedTuple):
    """What one series came to: the fleet's figures, the server's CPU, and what was not as it should be."""

    report: Report
    cpu_s: float
    expected: int

    @property
    def faults(self) -> int:
        """What was not as it should be."""
        return self.report.faults(self.expected)

    @property
    def frame_us(self) -> float:
        """CPU of the server for one frame, in microseconds."""
        return self.cpu_s / max(1, self.report.frames) * 1e6

    @property
    def p99_ms(self) -> float:
        """The age that 99 % of the events do not exceed; what never came is as old as it was waited for."""
        never = self.expected - self.report.events > self.expected // 100
        return max(self.report.ages.p99_us / 1000, _DRAIN_S * 1000 if never else 0.0)


def series(hall: Hall, fleet: Fleet, line: str, expected: int, *, lone: bool = False) -> Series:
    """Publish a series and wait until everybody has it; `expected` events in all."""
    fleet.begin(lone=lone)
    before = server_cpu_s(hall.pid)
    hall.publish(line)
    report = fleet.wait(expected, _DRAIN_S)
    return Series(report, server_cpu_s(hall.pid) - before, expected)


def shared(connections: int, per_s: int, seconds: float) -> tuple[str, int]:
    """The command of a series on the shared topic, and how many events it makes."""
    return f"shared {per_s} {seconds} {EVENT_BYTES} {WINDOW_MS} {SLICES}", connections * int(per_s * seconds)


def measure(suite: Suite, ground: Ground, plan: Plan) -> None:
    """All rows of this module by one transport."""
    with contextlib.ExitStack() as stack:
        session = Session(stack, ground, plan)
        session.start(OURS, lambda: halls.ours(ground))
        if OURS in session.reasons:
            session.unjudged(suite)
            return
        session.start(BARE, halls.bare)
        session.start(WSE, lambda: halls.wse(ground.peers))
        session.start(CENTRIFUGE, lambda: halls.centrifuge(ground.peers))
        if BARE in session.reasons:
            session.unjudged(suite)
            return
        session.shared(suite)
        session.own(suite)
        session.lone(suite)
        session.spread(suite)


class Plan(NamedTuple):
    """How much is measured: `seconds` of one series, `idle` connections that hear nothing, `stall_s` of not reading."""

    connections: int
    rounds: int
    seconds: float
    idle: int
    stall_s: float


class Session:
    """The running servers with their fleets, by name, and why others do not run."""

    def __init__(self, stack: contextlib.ExitStack, ground: Ground, plan: Plan) -> None:
        self._stack = stack
        self._folder = ground.folder
        self._plan = plan
        self._running: dict[str, tuple[Hall, Fleet]] = {}
        self.reasons: dict[str, str] = {}
        self._name = f"{ground.transport}, {plan.connections:,} connections, "

    def start(self, name: str, hall: Callable[[], AbstractContextManager[Hall]]) -> None:
        """Start a server and connect its fleet, where that is possible."""
        with contextlib.ExitStack() as tentative:
            try:
                running = tentative.enter_context(hall())
                fleet = Fleet(self._folder, running.target, self._plan.connections, [SHARED, OWN])
                tentative.enter_context(fleet)
            except (Unavailable, Missing) as reason:
                self.reasons[name] = str(reason)
                return
            self._stack.enter_context(tentative.pop_all())
        self._running[name] = running, fleet

    def unjudged(self, suite: Suite) -> None:
        """All rows, with the reason why nothing can be said."""
        reason = self.reasons.get(OURS) or self.reasons[BARE]
        for name, metric, unit, target in (
            (_NAME_SHARED, "p99 age", "ms", f"ratio <= {TO_BARE}"),
            (_NAME_SHARED, "faults", "events", "value <= 0"),
            (_NAME_OWN, "p99 age", "ms", f"value <= {OWN_P99_MS} ms"),
            (_NAME_OWN, "server CPU per frame", "us", f"ratio <= {TO_BARE}"),
            (_NAME_OWN, "faults", "events", "value <= 0"),
            (_NAME_OWN, _PER_CPU, "1/s", f"ratio >= {TO_WRITE}"),
            (_NAME_LONE, "last byte received, p99", "ms", f"ratio <= {TO_BARE_LONE}"),
            (f"{_NAME_LONE}, one after the other", _PER_CPU, "1/s", f"ratio >= {TO_WRITE}"),
        ):
            suite.unjudged(self._name + name, metric, unit, target=target, reason=reason)

    def shared(self, suite: Suite) -> None:
        """1,000 events a second to all."""
        plan = self._plan
        rates = {name: CARRIES.get(name, SHARED_PER_S) for name in self._running}
        done = self._in_turn(
            {name: shared(plan.connections, per_s, plan.seconds) for name, per_s in rates.items()},
        )
        name = f"{self._name}{_NAME_SHARED}, {SHARED_PER_S:,} events/s"
        ages = {one: [found.p99_ms for found in all_of] for one, all_of in done.items()}
        self._compare(suite, name, "p99 age", "ms", ages, {BARE: TO_BARE}, rates)
        for one in done:
            if one != OURS:
                self.faults(suite, f"{name}: {one} at {rates[one]}/s", done[one], judged=False)
        self.faults(suite, name, done[OURS], judged=True)
        costs = {
            one: [found.cpu_s / max(1, found.report.events) * 1e6 for found in all_of] for one, all_of in done.items()
        }
        self._compare(suite, name, "server CPU per delivered event", "us", costs, {}, rates)
        coalesced = [found.report.events / max(1, found.report.frames) for found in done[OURS]]
        suite.measure(name, "events per frame", "events", coalesced)

    def own(self, suite: Suite) -> None:
        """Each client hears a topic of its own, five events a second."""
        plan = self._plan
        per_s = plan.connections * OWN_PER_S
        line = f"unshared {per_s} {plan.seconds} {EVENT_BYTES} {plan.connections}"
        lines = dict.fromkeys([*self._running, BY_PYTHON], line) | {OURS: f"{line} {NATIVE}"}
        done = self._in_turn({who: (its, int(per_s * plan.seconds)) for who, its in lines.items()})
        by_python = done.pop(BY_PYTHON)
        name = f"{self._name}{_NAME_OWN}, {OWN_PER_S} events/s each, made natively"
        suite.measure(name, "p99 age", "ms", [found.p99_ms for found in done[OURS]], target_value=OWN_P99_MS)
        ages = {one: [found.p99_ms for found in all_of] for one, all_of in done.items()}
        self._compare(suite, name, "p99 age", "ms", ages, {}, {})
        costs = {one: [found.frame_us for found in all_of] for one, all_of in done.items()}
        self._compare(suite, name, "server CPU per frame", "us", costs, {BARE: TO_BARE}, {})
        suite.compare(
            name,
            "server CPU per frame, events made by Python",
            "us",
            [found.frame_us for found in by_python],
            rival=BARE,
            rival_values=costs[BARE],
        )
        self.faults(suite, name, [*done[OURS], *by_python], judged=True)
        self._frames(suite, name, {who: [1e6 / found.frame_us for found in done[who]] for who in (OURS, BARE)})

    def lone(self, suite: Suite) -> None:
        """One event to all, while nothing else happens: when the last client has it."""
        clients = self._plan.connections
        line = f"lone {LONE} {LONE_EVERY_MS} {EVENT_BYTES}"
        lasts: dict[str, list[float]] = {name: [] for name in self._running}
        for number in range(self._plan.rounds + 1):
            for name, (hall, fleet) in self._running.items():
                found = series(hall, fleet, line, LONE * clients, lone=True).report.lasts_ms(clients)
                if number:
                    # One that did not reach everybody counts as if it had come at the end of the waiting.
                    lasts[name].append(max(found) if len(found) == LONE else _DRAIN_S * 1000)
        self._compare(suite, self._name + _NAME_LONE, "last byte received, p99", "ms", lasts, {BARE: TO_BARE_LONE}, {})

    def _frames(self, suite: Suite, name: str, values: dict[str, list[float]]) -> None:
        """Frames per second of CPU beside the bare `write` loop, on as many sockets; ours, and the bare sender's."""
        written = [self._written() for _ in values[OURS]]
        for who, whose, target in ((OURS, "", TO_WRITE), (BARE, f"{BARE}: ", None)):
            suite.compare(
                name,
                whose + _PER_CPU,
                "1/s",
                values[who],
                rival=_WRITE,
                rival_values=written,
                target_ratio=target,
                better="higher",
            )

    def _written(self) -> float:
        """Frames that the bare `write` loop sends in a second of CPU."""
        hall, fleet = self._running[BARE]
        fleet.begin()
        before = server_cpu_s(hall.pid)
        hall.publish(f"write {self._plan.seconds} {EVENT_BYTES}")
        # It is not known before how many fit.
        frames = fleet.wait(1 << 62, 1.0).frames
        return frames / max(1e-9, server_cpu_s(hall.pid) - before)

    def spread(self, suite: Suite) -> None:
        """One event after the other to all, and their CPU: the work of the `write` loop, a frame to each socket."""
        command = (f"lone {SPREAD} {SPREAD_EVERY_MS} {EVENT_BYTES}", SPREAD * self._plan.connections)
        done: dict[str, list[float]] = {OURS: [], BARE: [], _WRITE: []}
        for number in range(self._plan.rounds + 1):
            found = {who: 1e6 / series(*self._running[who], *command).frame_us for who in (OURS, BARE)}
            found[_WRITE] = self._written()
            if number:
                for who, frames in found.items():
                    done[who].append(frames)
        name = f"{self._name}{_NAME_LONE}, one after the other"
        for rival, target in ((_WRITE, TO_WRITE), (BARE, None)):
            suite.compare(
                name,
                _PER_CPU,
                "1/s",
                done[OURS],
                rival=rival,
                rival_values=done[rival],
                target_ratio=target,
                better="higher",
            )

    def _in_turn(self, lines: dict[str, tuple[str, int]]) -> dict[str, list[Series]]:
        """A series of everybody, round by round; a first round warms up and is not kept."""
        done: dict[str, list[Series]] = {name: [] for name in lines}
        for number in range(self._plan.rounds + 1):
            for name, (line, expected) in lines.items():
                found = series(*self._running[OURS if name == BY_PYTHON else name], line, expected)
                if number:
                    done[name].append(found)
        return done

    def _compare(  # noqa: PLR0917 - a row is what it is
        self,
        suite: Suite,
        name: str,
        metric: str,
        unit: str,
        values: dict[str, list[float]],
        targets: dict[str, float],
        rates: dict[str, int],
    ) -> None:
        for rival in (BARE, WSE, CENTRIFUGE):
            if rival in values:
                at = f" at {rates[rival]}/s" if rates.get(rival, SHARED_PER_S) != SHARED_PER_S else ""
                suite.compare(
                    name,
                    metric,
                    unit,
                    values[OURS],
                    rival=rival + at,
                    rival_values=[max(1e-6, value) for value in values[rival]],
                    target_ratio=targets.get(rival),
                )
            else:
                suite.unjudged(name, metric, unit, target="reported", reason=self.reasons[rival])

    @staticmethod
    def faults(suite: Suite, name: str, done: list[Series], *, judged: bool) -> None:
        """Holes, repetitions, disorder, losses and gaps of all connections in all rounds."""
        said = next((found.report.told() for found in done if found.report.told()), "")
        total = sum(found.faults for found in done)
        suite.bound(name, f"faults on all connections{said}", "events", total, most=0 if judged else None)


def by_tls(suite: Suite, ground: Ground, plan: Plan) -> None:
    """A shared topic and a topic for each, by TLS; ours alone, and told only."""
    whole = f"{ground.transport}, {plan.connections:,} connections, TLS, "
    per_s = plan.connections * OWN_PER_S
    lines = {
        f"{whole}{_NAME_SHARED}, {SHARED_PER_S:,} events/s": shared(plan.connections, SHARED_PER_S, plan.seconds),
        f"{whole}{_NAME_OWN}, {OWN_PER_S} events/s each, made natively": (
            f"unshared {per_s} {plan.seconds} {EVENT_BYTES} {plan.connections} {NATIVE}",
            int(per_s * plan.seconds),
        ),
    }
    try:
        with (
            halls.ours(ground, tls=True) as hall,
            Fleet(ground.folder, hall.target, plan.connections, [SHARED, OWN]) as fleet,
        ):
            for name, line in lines.items():
                done = [series(hall, fleet, *line) for _ in range(plan.rounds + 1)][1:]
                suite.measure(name, "p99 age", "ms", [found.p99_ms for found in done])
                suite.measure(name, "server CPU per frame", "us", [found.frame_us for found in done])
                Session.faults(suite, name, done, judged=False)
    except Unavailable as reason:
        for name in lines:
            suite.unjudged(name, "p99 age", "ms", target="reported", reason=str(reason))


def one_client(suite: Suite, ground: Ground, events: int) -> None:
    """The age of a lone event at one client, from `event.publish` in the same process."""
    name, metric = f"{ground.transport}, lone event to one client", "age from event.publish, p50"
    try:
        with halls.ours(ground) as hall, Fleet(ground.folder, hall.target, 1, [SHARED]) as fleet:
            series(hall, fleet, f"lone {events} 5 {EVENT_BYTES}", events)
            found = series(hall, fleet, f"lone {events} 5 {EVENT_BYTES}", events)
    except Unavailable as reason:
        suite.unjudged(name, metric, "ms", target=f"value <= {ONE_P50_MS} ms", reason=str(reason))
        return
    suite.bound(name, metric, "ms", found.report.ages.p50_us / 1000, most=ONE_P50_MS)
    suite.bound(name, "age from event.publish, p99", "ms", found.p99_ms)
