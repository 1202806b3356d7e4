"""Realtime: fleets of WebSocket clients that are judged one by one, on ours, on a bare sender, and on the rivals.

Strategy: fan-out with everybody in turn (`benches.realtime_fanout`), then the limits, each with servers of its own
(`benches.realtime_limits`), then everything at once beside real runs (`benches.realtime_mixed`). The clients are one
process on the load's core (`benches.fleet`), the server has the other core to itself.

Rules:
- FLX_BENCH_ROUNDS (5), FLX_BENCH_SECONDS (1, of one series), FLX_BENCH_CONNECTIONS (10000), FLX_BENCH_IDLE (15000) and
  FLX_BENCH_STALL_S (60) make it shorter or smaller. FLX_BENCH_PARTS names the parts that run (fanout, idle, stalled,
  publish, storm, faces, mixed). Only at full size and with all parts is a record written.
- FLX_BENCH_TRANSPORT (native) is the transport of ours in all rows but those of the portable faces: native, asgi, rsgi.
- What a machine or this version lacks costs its rows, not the suite: such a row says why and has no verdict.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from benches import native, realtime_fanout, realtime_limits, realtime_mixed, servers
from benches.load import LOAD_CORE
from benches.peer_tools import Missing, Peers
from benches.realtime_fanout import Plan
from benches.realtime_servers import Ground
from benches.record import Suite

ROUNDS = int(os.environ.get("FLX_BENCH_ROUNDS", "5"))
SECONDS = float(os.environ.get("FLX_BENCH_SECONDS", "1"))
CONNECTIONS, IDLE, STALL_S = 10_000, 15_000, 60.0
ALL_PARTS = ("fanout", "idle", "stalled", "publish", "storm", "faces", "mixed")
PARTS = os.environ.get("FLX_BENCH_PARTS", ",".join(ALL_PARTS)).split(",")
TRANSPORT = os.environ.get("FLX_BENCH_TRANSPORT", "native")
_ONE_CLIENT_EVENTS = 200


def main() -> int:
    """Measure all rows and write the record."""
    began = time.monotonic()
    plan = Plan(
        int(os.environ.get("FLX_BENCH_CONNECTIONS", CONNECTIONS)),
        ROUNDS,
        SECONDS,
        int(os.environ.get("FLX_BENCH_IDLE", IDLE)),
        float(os.environ.get("FLX_BENCH_STALL_S", STALL_S)),
    )
    suite = Suite("realtime")
    peers = Peers()
    peers.install()
    suite.versions |= peers.realtime_versions()
    with tempfile.TemporaryDirectory(prefix="flx-bench-") as name:
        folder = Path(name)
        try:
            native.prove()
            # What starts servers and programs says where they run; the suite itself stays off the server's core.
            os.sched_setaffinity(0, {LOAD_CORE})
            with servers.daemon(folder) as daemon:
                _parts(suite, Ground(folder, daemon, peers, TRANSPORT), plan)
            if "storm" in PARTS:
                realtime_limits.storm(suite, Ground(folder, "", peers, TRANSPORT), plan.idle)
            if "mixed" in PARTS:
                realtime_mixed.measure(suite, Ground(folder, "", peers, TRANSPORT), plan.connections, plan.rounds)
        except Missing as missing:
            suite.unjudged("realtime", "all rows", "ms", target="various", reason=str(missing))
    print(f"took {time.monotonic() - began:.0f} s")
    whole = (plan.connections, plan.idle, plan.stall_s) == (CONNECTIONS, IDLE, STALL_S) and set(ALL_PARTS) <= set(PARTS)
    return suite.finish(write=whole and TRANSPORT == "native")


def _parts(suite: Suite, ground: Ground, plan: Plan) -> None:
    if "fanout" in PARTS:
        realtime_fanout.measure(suite, ground, plan)
        realtime_fanout.one_client(suite, ground, _ONE_CLIENT_EVENTS)
        realtime_fanout.by_tls(suite, ground, plan)
    if "idle" in PARTS:
        realtime_limits.idle(suite, ground, plan.idle)
    if "stalled" in PARTS:
        realtime_limits.stalled(suite, ground, plan.connections, plan.stall_s)
    if "publish" in PARTS:
        realtime_limits.publish(suite, ROUNDS)
    if "faces" in PARTS:
        for interface in ("asgi", "rsgi"):
            realtime_limits.face(suite, ground._replace(transport=interface), plan._replace(rounds=min(3, ROUNDS)))


if __name__ == "__main__":
    raise SystemExit(main())
