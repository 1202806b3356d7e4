"""The command path: a command through the gateway, beside an echo, Envoy, the original stack, and no gateway at all.

Strategy: whole servers under load in turn (`benches.command_servers`), then latency in open loop and overload
(`benches.command_open_loop`), then durable commands through the real daemon (`benches.command_durable`).

The daemon behind all gateways is a compiled echo (`benches/native/src/bin/bench-daemon.rs`, Rust, tonic) that speaks
the real contract on a Unix socket. The real daemon is Python and takes longer for a command than the gateway does, so a
gateway before it would be measured waiting; and Envoy's unary calls would cost it ten times what our stream does. Its
CPU is reported apart. Only the durable rows use the real one.

Rules:
- FLX_BENCH_ROUNDS (7) and FLX_BENCH_SECONDS (1, of one part of a round) make it shorter or longer;
  FLX_BENCH_OVERLOAD_S (60) is how long the overload lasts; FLX_BENCH_PARTS names the parts that run
  (servers, latency, durable, overload), and then no record is written unless it names all.
- What a machine lacks costs its rows, not the suite: such a row says why and has no verdict.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from benches import command_durable, command_open_loop
from benches.command_servers import Session
from benches.load import Load
from benches.peer_tools import Missing, Peers
from benches.record import Suite

ROUNDS = int(os.environ.get("FLX_BENCH_ROUNDS", "7"))
SECONDS = float(os.environ.get("FLX_BENCH_SECONDS", "1"))
OVERLOAD_S = float(os.environ.get("FLX_BENCH_OVERLOAD_S", "60"))
ALL_PARTS = ("servers", "latency", "durable", "overload")
PARTS = os.environ.get("FLX_BENCH_PARTS", ",".join(ALL_PARTS)).split(",")


def main() -> int:
    """Measure all rows and write the record."""
    began = time.monotonic()
    suite = Suite("command")
    peers = Peers()
    peers.install()
    suite.versions |= peers.versions() | peers.original_versions()
    with tempfile.TemporaryDirectory(prefix="flx-bench-") as name:
        folder = Path(name)
        try:
            wrk = peers.wrk()
            load = Load(folder, *wrk)
            if {"servers", "latency"} & set(PARTS):
                _gateways(suite, peers, folder, load)
            if "durable" in PARTS:
                command_durable.measure(suite, folder, wrk, ROUNDS, SECONDS)
            if "overload" in PARTS:
                command_open_loop.overload(suite, folder, load, OVERLOAD_S)
        except Missing as missing:
            suite.unjudged("the command path", "all rows", "us", target="various", reason=str(missing))
    print(f"took {time.monotonic() - began:.0f} s")
    return suite.finish(write=set(ALL_PARTS) <= set(PARTS))


def _gateways(suite: Suite, peers: Peers, folder: Path, load: Load) -> None:
    with Session(folder, load, SECONDS) as session:
        session.start(peers)
        if "servers" in PARTS:
            session.many(suite, ROUNDS)
            session.few(suite, ROUNDS)
            session.batches(suite, min(ROUNDS, 4))
        if "latency" in PARTS:
            command_open_loop.latency(suite, session, min(ROUNDS, 4))


if __name__ == "__main__":
    raise SystemExit(main())
