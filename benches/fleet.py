"""A fleet of WebSocket clients on the load's core, each of which is judged (`ws-load`, benches/native).

Rules:
- What the fleet says is only believed whole: a fleet in which somebody was not let in is `Unavailable`.
- Nothing is waited for without a limit; a program that does not answer ends the benchmark.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from benches import native
from benches.load import LOAD_CORE
from benches.servers import Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_READY_S = 180.0
_ANSWER_S = 30.0


class Target(NamedTuple):
    """Where a fleet goes: `{}` in the path stands for a client's number; `dialect` as `ws-load` names it.

    With `ca`, the file of an authority, it goes there by TLS.
    """

    address: str
    path: str
    dialect: str
    tokens: Sequence[str] = ()
    ca: str | None = None


class Ages(msgspec.Struct):
    """How old events were on arrival, in microseconds."""

    count: int
    p50_us: float
    p99_us: float
    max_us: float


class Report(msgspec.Struct):
    """What all clients saw since the figures were cleared."""

    live: int
    stalled: int
    flx_v1: int
    closed: dict[str, int]
    complaint: str | None
    seconds: float
    events: int
    frames: int
    bytes: int
    least_events: int | None
    most_events: int | None
    holes: int
    duplicates: int
    disorder: int
    unreadable: int
    gaps: int
    gap_reasons: dict[str, int]
    ages: Ages
    ages_stallable: Ages
    stallable_told: int
    stallable_resumed: int
    lasts_us: list[tuple[int, int]] | None
    marked: int
    marked_us: int
    firsts_us: list[tuple[int, int]]

    def faults(self, expected: int) -> int:
        """Everything that was not as it should be, when so many events in all should have come."""
        wrong = self.holes + self.duplicates + self.disorder + self.unreadable + self.gaps
        return wrong + abs(expected - self.events) + sum(self.closed.values())

    def told(self) -> str:
        """What was not as it should be, in words; empty when all was."""
        counts = {"holes": self.holes, "repeated": self.duplicates, "disorder": self.disorder}
        counts |= {"unreadable": self.unreadable} | {f"gaps: {why}": count for why, count in self.gap_reasons.items()}
        counts |= {f"closed with {code}": count for code, count in self.closed.items()}
        said = [f"{count} {what}" for what, count in counts.items() if count]
        return f" ({', '.join([*said, *([self.complaint] if self.complaint else [])])})" if said else ""

    def lasts_ms(self, clients: int) -> list[float]:
        """For each event that reached all clients, when the last of them had it."""
        return [age / 1000 for age, count in self.lasts_us or () if count >= clients]

    def firsts_ms(self, clients: int) -> list[float]:
        """For each topic of which all clients heard a line with the mark: the first one's age where it came last."""
        return [age / 1000 for age, count in self.firsts_us if count >= clients]


class Fleet:
    """Clients that are connected and subscribed. Use it as a context manager.

    Args:
        folder: where its plan goes.
        target: whom they connect to.
        connections: how many.
        topics: what each subscribes to; `{}` stands for its number.
        stallable: the share of them that `stall` stops.
        mark: what stands in a line before the microseconds at which it was written.

    Raises:
        Unavailable: not all were let in.
        Missing: the program cannot be built.
    """

    def __init__(
        self,
        folder: Path,
        target: Target,
        connections: int,
        topics: Sequence[str],
        *,
        stallable: float = 0.0,
        mark: str = "",
    ) -> None:
        self.connections = connections
        self._plan = folder / f"fleet-{target.address.rpartition(':')[2]}-{time.monotonic_ns()}.json"
        plan = target._asdict() | {"connections": connections, "topics": list(topics), "stallable": stallable}
        plan |= {"mark": mark}
        self._plan.write_text(json.dumps(plan), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""

    def __enter__(self) -> Self:
        """Connect and subscribe all."""
        command = ["taskset", "-c", str(LOAD_CORE), native.program("ws-load"), str(self._plan)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        try:
            self._all_in(self._answer(_READY_S))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _all_in(self, ready: dict[str, Any]) -> None:
        if ready.get("live") != self.connections:
            reason = ready.get("reason") or ready.get("complaint") or ready.get("closed")
            raise Unavailable(f"{ready.get('live', 0)} of {self.connections} clients were let in ({reason})")

    def __exit__(self, *_: object) -> None:
        """Let all go."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def begin(self, *, lone: bool = False) -> None:
        """Clear the figures; `lone`: keep when each event had reached how many."""
        self._ask("begin lone" if lone else "begin")

    def wait(self, events: int, limit_s: float) -> Report:
        """The figures, as soon as so many events have come or the time is up."""
        self._say(f"await {events} {int(limit_s * 1000)}")
        return msgspec.convert(self._answer(limit_s + _ANSWER_S), Report)

    def stall(self) -> int:
        """Those that can be stalled stop reading; how many."""
        return int(self._ask("stall")["stalled"])

    def release(self) -> None:
        """They go on."""
        self._ask("release")

    def lose(self) -> None:
        """From here on who is closed comes back; `returned` waits for it."""
        self._ask("lose")

    def returned(self, limit_s: float) -> float | None:
        """Seconds from the server being back until all had subscribed again; None when not all do in time."""
        try:
            return float(self._answer(limit_s)["took_ms"]) / 1000
        except TimeoutError:
            return None

    def _ask(self, line: str) -> dict[str, Any]:
        self._say(line)
        return self._answer(_ANSWER_S)

    def _say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def _answer(self, limit_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        self._read, line = read_line(self._process.stdout.fileno(), self._read, limit_s)
        answer: dict[str, Any] = json.loads(line)
        return answer


def read_line(descriptor: int, held: bytes, limit_s: float) -> tuple[bytes, bytes]:
    """The next line of a pipe, and what was read beyond it.

    Raises:
        TimeoutError: there is none in time.
        SystemExit: the program at the other end is gone.
    """
    deadline = time.monotonic() + limit_s
    while b"\n" not in held:
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        chunk = os.read(descriptor, 65_536)
        if not chunk:
            raise SystemExit("a program of the benchmark ended by itself")
        held += chunk
    line, _, rest = held.partition(b"\n")
    return rest, line
