"""Admission: tokens, windows and the whole request path beside the libraries and gateways that do the same.

Strategy: first single calls (`benches.admission_calls`), then whole servers under load (`benches.admission_servers`),
then the instructions that admission adds (`benches.admission_cost`), then limits over several hosts. The rivals are
installed by `benches.peer_tools` into a folder of their own. Nothing here is timed alone: all take turns.

Rules:
- FLX_BENCH_ROUNDS (7) and FLX_BENCH_SECONDS (1, of one HTTP round) make it shorter or longer.
- What a machine lacks costs its rows, not the suite: such a row says why and has no verdict.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benches import admission_calls, admission_cost, admission_servers
from benches.peer_tools import Peers
from benches.record import Suite

ROUNDS = int(os.environ.get("FLX_BENCH_ROUNDS", "7"))
SECONDS = float(os.environ.get("FLX_BENCH_SECONDS", "1"))
REQUESTS = int(os.environ.get("FLX_BENCH_REQUESTS", "1000000"))


def main() -> int:
    """Measure all rows and write the record."""
    began = time.monotonic()
    suite = Suite("admission")
    peers = Peers()
    peers.install()
    suite.versions |= peers.versions()
    with tempfile.TemporaryDirectory(prefix="flx-bench-") as folder:
        admission_calls.measure(suite, peers, Path(folder), ROUNDS)
        admission_servers.measure(suite, peers, Path(folder), ROUNDS, SECONDS)
        admission_cost.measure(suite, peers, Path(folder))
    distributed(suite, REQUESTS)
    print(f"took {time.monotonic() - began:.0f} s")
    return suite.finish()


def distributed(suite: Suite, requests: int) -> None:
    """Limits over three gateways of four workers and a real Redis: over-admission, use, round trips.

    The load runner is the tests' own (`tests/faults/lease_load.py`): what is measured here is what is held there.
    """
    name = "distributed limit"
    try:
        runner = importlib.import_module("tests.faults.lease_load")
    except ImportError as error:
        reason = f"the load runner does not start: {error}"
        suite.unjudged(name, "over-admission, use, round trips", "requests", target="0 over, >= 97 %", reason=reason)
        return
    for mode in ("strict", "fast"):
        for load, keys, factor, least in (("overload", 40, 20.0, 200), ("mixed", 400, 1.25, 20)):
            plan = runner.Plan(mode=mode, load=load, keys=keys)
            plan.windows = max(3.0, requests / (keys * factor * plan.limit))
            found = runner.main(plan)
            row = f"{name}, {mode}, {load}, {plan.nodes} workers, {found['asked']} requests"
            suite.bound(
                row, "admitted over the limit in the worst window", "requests", found["over"], most=_bound(mode, found)
            )
            if found["use"] is not None:
                suite.bound(row, "use of the limit", "%", found["use"] * 100, least=97)
            suite.bound(row, "requests per Redis round trip", "requests", found["requests_per_call"], least=least)


def _bound(mode: str, found: dict[str, Any]) -> float | None:
    """None at all in strict mode; in fast mode what the runner says, which knows the nodes and their share."""
    return 0 if mode == "strict" else found.get("bound")


if __name__ == "__main__":
    raise SystemExit(main())
