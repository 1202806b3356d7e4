"""What token check, limits and metrics add to a request, in instructions, which a noisy machine cannot hide.

Strategy: the gateway runs under valgrind's cachegrind, once with and once without them, each for a short and a long
load; the difference of the two, over the difference of their replies, is a request without its share of the start.
Virtual machines rarely offer counters of their own to `perf stat`, and CPU time is too coarse for three hundredths.

Rules:
- Server and worker are those of production, Granian's supervisor included; the worker's count is what is read.
- Instructions of the worker's user space, all threads. What the kernel does is not counted, nor the reading of clocks,
  which valgrind turns into calls of the kernel.
- Without them, the route is open as a probe is and no phase is timed; the request's own counters, a few instructions
  of the core, are on both sides.
- Ten clients, so that tokens are remembered: the steady state of a gateway.
"""

from __future__ import annotations

import re
import shutil
from functools import partial
from typing import TYPE_CHECKING

from benches import servers
from benches.load import Load, tree_of
from benches.peer_tools import Missing
from benches.peers.routes import REPLY

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benches.peer_tools import Peers
    from benches.record import Suite

    Start = Callable[..., AbstractContextManager[servers.Server]]

RATIO = 1.03
SHORT_S, LONG_S = 1, 6
_BARE: tuple[servers.Bare, ...] = ("0", "1", "headers")
_NAME = "cost of JWT, limits and metrics"
_METRIC = "instructions per request, counted by valgrind in Granian's worker (user space, all threads)"


def measure(suite: Suite, peers: Peers, folder: Path) -> None:
    """The row, and what of it is the server's for two headers more."""
    valgrind = shutil.which("valgrind")
    (folder / "cost").mkdir()
    target = f"ratio <= {RATIO}"
    if valgrind is None:
        reason = "no valgrind on PATH, and perf counts no instructions in a virtual machine"
        suite.unjudged(_NAME, _METRIC, "thousand", target=target, reason=reason)
        return
    try:
        load = Load(folder, *peers.wrk())
        with servers.daemon(folder / "cost") as daemon:
            start = partial(servers.ours, folder, daemon)
            counted = [_instructions(load, folder, start, bare=bare) / 1000 for bare in _BARE]
    except (Missing, servers.Unavailable) as reason:
        suite.unjudged(_NAME, _METRIC, "thousand", target=target, reason=str(reason))
        return
    rivals = ("the same route without them", RATIO), ("the same route without them, two fixed headers in place", None)
    for (rival, ratio), value in zip(rivals, counted[1:], strict=True):
        suite.compare(_NAME, _METRIC, "thousand", counted[:1], rival=rival, rival_values=[value], target_ratio=ratio)


def _instructions(load: Load, folder: Path, start: Start, *, bare: servers.Bare) -> float:
    """Instructions of one request."""
    runs = [_run(load, folder, start, seconds=seconds, bare=bare) for seconds in (SHORT_S, LONG_S)]
    (few, first), (many, second) = runs
    return (second - first) / (many - few)


def _run(load: Load, folder: Path, start: Start, *, seconds: float, bare: servers.Bare) -> tuple[int, int]:
    """How many were answered by a gateway in all its life, and the instructions that took."""
    outcome = folder / f"cachegrind-{seconds}-{bare}"
    prefix = ["valgrind", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={outcome}-%p", "--quiet"]
    with start(path=REPLY, bare=bare, prefix=prefix) as server:
        worker = tree_of(server.pid)[-1]
        done = load.round(server.url, server.pid, seconds, tokens="few")
    try:
        text = (folder / f"{outcome.name}-{worker}").read_text(encoding="ascii", errors="replace")
    except OSError:
        raise servers.Unavailable("the worker left no count behind under valgrind") from None
    found = re.search(r"^summary: *(\d+)", text, re.MULTILINE)
    if found is None:
        raise servers.Unavailable("valgrind counted nothing")
    return done.replies, int(found[1])
