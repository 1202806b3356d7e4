"""Durable commands through the whole service: gateway, real daemon, SQLite, each with an idempotency key and a commit.

Strategy: `pipeline.create` from 64 clients, whose answer comes after the commit of row, event and key. The gateway has
the server's core, the daemon both, the load runs beside them: two cores in all. A shim (`native/fsyncs.c`, LD_PRELOAD)
counts what is forced to disk and lets each of it last 5 ms longer when told to. The rival is the same daemon with one
transaction for each command.

Rules:
- A row's latency is that of the journal's write: from when the handler asks for it until it goes on, the commit within.
- What the disk of this machine does at an fsync is its own affair (a virtual disk may be quick); hence the 5 ms.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import signal
import struct
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.service import copy_project

from benches import servers
from benches.command_peers import EXECUTE
from benches.load import Load
from benches.peer_tools import FOLDER, ROOT, Missing
from benches.servers import HERE, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from benches.record import Suite
    from benches.servers import Server

RATE, P99_MS = 4_000, 10
SLOW_RATE, SLOW_FSYNCS, SLOW_US = 2_500, 0.1, 5_000
OURS, NAIVE = "ours", "one transaction for each command"
_NAME = "durable command, SQLite, 64 clients"


class Fsyncs:
    """What the shim counts, and how long it lets an fsync last."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_bytes(bytes(16))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 16)

    @property
    def count(self) -> int:
        """How many there were."""
        return int(struct.unpack_from("<Q", self._map, 0)[0])

    def last(self, longer_us: int) -> None:
        """Let each last longer from now on."""
        struct.pack_into("<Q", self._map, 8, longer_us)


class Durable:
    """A gateway before a real daemon."""

    def __init__(self, server: Server, daemon: subprocess.Popen[bytes], times: Path, fsyncs: Fsyncs) -> None:
        self.server = server
        self.daemon = daemon
        self.fsyncs = fsyncs
        self._times = times

    def row_p99_ms(self) -> float:
        """Of the writes since the last time this was asked.

        Raises:
            Unavailable: the daemon does not say.
        """
        self._times.unlink(missing_ok=True)
        self.daemon.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + 10
        while not self._times.exists():
            if time.monotonic() > deadline:
                raise Unavailable("the daemon does not tell its times")
            time.sleep(0.005)
        took = json.loads(self._times.read_text(encoding="ascii"))
        return float(took[int(0.99 * len(took))]) / 1000 if took else 0.0


class Measured(NamedTuple):
    """One round."""

    rate: float
    row_p99_ms: float
    fsyncs: float
    gateway_us: float
    daemon_us: float


def measure(
    suite: Suite, folder: Path, wrk: tuple[Sequence[str], Mapping[str, str]], rounds: int, seconds: float
) -> None:
    """All durable rows."""
    place = folder / "durable"
    place.mkdir()
    load = Load(place, *wrk, role="admin")
    with contextlib.ExitStack() as stack:
        try:
            running = {name: stack.enter_context(_service(place, naive=name == NAIVE)) for name in (OURS, NAIVE)}
        except (Missing, Unavailable) as reason:
            suite.unjudged(_NAME, "commands a second", "1/s", target=f"value >= {RATE} 1/s", reason=str(reason))
            return
        usual = _rounds(load, running, rounds, seconds, longer_us=0)
        slow = _rounds(load, running, rounds, seconds, longer_us=SLOW_US)
    _report(suite, _NAME, usual, rate=RATE, p99_ms=P99_MS)
    name = f"{_NAME}, each fsync {SLOW_US // 1000} ms longer"
    _report(suite, name, slow, rate=SLOW_RATE, fsyncs=SLOW_FSYNCS)


def _report(
    suite: Suite,
    name: str,
    found: dict[str, list[Measured]],
    *,
    rate: float,
    p99_ms: float | None = None,
    fsyncs: float | None = None,
) -> None:
    ours, naive = found[OURS], found[NAIVE]
    suite.compare(
        name,
        "commands a second on two cores",
        "1/s",
        [one.rate for one in ours],
        rival=NAIVE,
        rival_values=[one.rate for one in naive],
        target_value=rate,
        better="higher",
    )
    for metric, unit, field, target in (
        ("row latency p99", "ms", "row_p99_ms", p99_ms),
        ("fsyncs per command", "fsyncs", "fsyncs", fsyncs),
        ("CPU of the gateway per command", "us", "gateway_us", None),
        ("CPU of the daemon per command", "us", "daemon_us", None),
    ):
        suite.compare(
            name,
            metric,
            unit,
            [getattr(one, field) for one in ours],
            rival=NAIVE,
            rival_values=[getattr(one, field) for one in naive],
            target_value=target,
        )


def _rounds(
    load: Load, running: dict[str, Durable], rounds: int, seconds: float, *, longer_us: int
) -> dict[str, list[Measured]]:
    """In turn; a first round warms up and is not kept."""
    found: dict[str, list[Measured]] = {name: [] for name in running}
    for one in running.values():
        one.fsyncs.last(longer_us)
    for number in range(rounds + 1):
        for name, one in running.items():
            measured = _round(load, one, seconds, tag=f"{longer_us}-{number}")
            if number:
                found[name].append(measured)
    return found


def _round(load: Load, one: Durable, seconds: float, *, tag: str) -> Measured:
    name = f"bench-{tag}-NNNNNNNN"
    args = {"name": name, "extractor": "tap-nyc", "loader": "target-jsonl"}
    body = json.dumps({"command": "pipeline.create", "idempotency_key": name, "args": args}).encode()
    one.row_p99_ms()
    before = one.fsyncs.count
    server = one.server
    done = load.round(server.url, server.pid, seconds, body=body, beside=one.daemon.pid)
    fsyncs = one.fsyncs.count - before
    return Measured(done.rate, one.row_p99_ms(), fsyncs / done.replies, done.cpu_us, done.beside_us)


@contextlib.contextmanager
def _service(folder: Path, *, naive: bool) -> Iterator[Durable]:
    place = folder / ("naive" if naive else "ours")
    project = copy_project(place / "project", plugins=ROOT / ".demo")
    fsyncs, times, socket = Fsyncs(place / "fsyncs"), place / "times.json", place / "daemon.sock"
    shim = {"LD_PRELOAD": _shim(), "BENCH_FSYNCS": str(fsyncs.file), "BENCH_NAIVE": "1" if naive else "0"}
    echo = json.dumps({"command": "system.echo"}).encode()
    with (
        servers.lone_daemon(
            project, socket, module="benches.peers.our_daemon", words=[str(times)], FLX_FORK="never", **shim
        ) as daemon,
        servers.ours(place, str(socket), path=EXECUTE, body=echo) as server,
    ):
        yield Durable(server, daemon, times, fsyncs)


def _shim() -> str:
    """The shim, compiled.

    Raises:
        Missing: there is no C compiler.
    """
    built = FOLDER / "fsyncs.so"
    source = HERE / "native" / "fsyncs.c"
    if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
        try:
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(built), str(source), "-ldl"], check=True)
        except (OSError, subprocess.CalledProcessError):
            raise Missing("the shim that counts fsyncs: cc cannot compile benches/native/fsyncs.c") from None
    return str(built)
