"""Nanoseconds of one call, ours and the rivals', in turn on one core.

Strategy: a caller is a name and something that runs it COUNT times and says what one call took. Ours are timed in this
process; rivals live in an environment or a program of their own and take their turns over a pipe, a line `NAME COUNT`
for a line of nanoseconds (`benches/peers/calls.py`, `rust/core/examples/floors.rs`). `in_turn` goes round by round.

Rules:
- A turn begins with calls that are not timed, everybody's: those who had their turns before have used the caches.
- What `ready` calls a function with is made beforehand, a few hundred at a time: it is as warm as what a server has
  just read, and its making is in no figure. The loop that hands it over is.
"""

from __future__ import annotations

import os
import subprocess
import time
import timeit
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from benches.load import SERVER_CORE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# So many are made ready at once.
_AT_ONCE = 250


class Call(NamedTuple):
    """Something to be timed: `run(times)` gives the nanoseconds of one call."""

    name: str
    run: Callable[[int], float]
    times: int


def local(name: str, statement: str, names: dict[str, Any], count: int) -> Call:
    """A statement of this process, timed by `timeit`: its loop and what the statement looks up are in the figure."""
    timer = timeit.Timer(statement, globals=names)
    return Call(name, lambda times: timer.timeit(times) / times * 1e9, count)


def ready(
    name: str, function: Callable[[Any, Any], object], pairs: Callable[[int], list[tuple[Any, Any]]], count: int
) -> Call:
    """A function of this process, called with the pairs that `pairs` makes for so many calls."""

    def run(times: int) -> float:
        spent = 0
        for _ in range(times // _AT_ONCE):
            made = pairs(_AT_ONCE)
            began = time.perf_counter_ns()
            for one, other in made:
                function(one, other)
            spent += time.perf_counter_ns() - began
        return spent / (times // _AT_ONCE * _AT_ONCE)

    return Call(name, run, count)


class Elsewhere:
    """A program that times calls when asked. Use it as a context manager."""

    def __init__(self, command: Sequence[str], environ: dict[str, str] | None = None) -> None:
        self._command = list(command)
        self._environ = environ
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self._process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *self._command],
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Let it end."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def call(self, name: str, count: int, *, label: str = "") -> Call:
        """One of its calls."""
        return Call(label or name, lambda times: self._ask(name, times), count)

    def _ask(self, name: str, count: int) -> float:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{name} {count}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        try:
            return float(answer)
        except ValueError:
            raise SystemExit(f"{self._command[-1]} could not do {name}: {answer.strip() or 'it ended'}") from None


def in_turn(calls: Sequence[Call], rounds: int) -> list[list[float]]:
    """The nanoseconds of each call, round by round; a first round warms up and is not kept."""

    def turn(call: Call) -> float:
        call.run(max(_AT_ONCE, call.times // 4))
        return call.run(call.times)

    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        taken = [[turn(call) for call in calls] for _ in range(rounds + 1)][1:]
    finally:
        os.sched_setaffinity(0, everywhere)
    return [list(column) for column in zip(*taken, strict=True)]
