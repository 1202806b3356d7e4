"""The compiled programs of the benchmarks (`benches/native/`): built when they are needed, and run.

Strategy: `daemon` is a daemon that costs a few microseconds for a command, so that it is never what a gateway waits
for; `offer` is load in open loop, whose every request is looked at here. The fleet of WebSocket clients has a module of
its own (`benches.fleet`).

Rules:
- A latency counts from when a request was due, so a slow answer hides nothing behind it (no coordinated omission),
  until the kernel had the answer: the client may wait for its core, and that is no time of the server's. How late the
  client was to send is in the latency, and told beside it.
- Where cargo cannot build them, what needs them is `Missing`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket as sockets
import struct
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

from benches.load import LOAD_CORE
from benches.peer_tools import FOLDER, ROOT, Missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_TARGET = FOLDER / "native"
_RECORD = struct.Struct("<IIIHxx")
_START_S = 10.0
_BEFORE_ALL = ("chrt", "--fifo", "1")


def program(name: str) -> str:
    """The path of a program, built now when it is not up to date.

    Raises:
        Missing: cargo cannot build it.
    """
    manifest = ROOT / "benches" / "native" / "Cargo.toml"
    command = ["cargo", "build", "--release", "--quiet", "--locked", "--manifest-path", str(manifest)]
    try:
        subprocess.run(command, env={**os.environ, "CARGO_TARGET_DIR": str(_TARGET)}, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise Missing("the benchmark's own programs: cargo cannot build benches/native") from None
    return str(_TARGET / "release" / name)


def prove() -> None:
    """Run the programs' own tests: a judge that cannot find a fault would find none.

    Raises:
        Missing: cargo cannot build them.
        SystemExit: a test fails.
    """
    program("ws-load")
    manifest = ROOT / "benches" / "native" / "Cargo.toml"
    command = ["cargo", "test", "--release", "--quiet", "--locked", "--lib", "--manifest-path", str(manifest)]
    done = subprocess.run(
        command, env={**os.environ, "CARGO_TARGET_DIR": str(_TARGET)}, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"the benchmark's own programs fail their tests:\n{done.stdout}{done.stderr}")


class BenchDaemon(NamedTuple):
    """A running daemon of the benchmark: its socket, its process, and a port where there is nothing before it."""

    socket: str
    pid: int
    http_port: int


@contextlib.contextmanager
def daemon(folder: Path, *, workers: int = 0, service_us: int = 0) -> Iterator[BenchDaemon]:
    """The daemon, on the load's core.

    Args:
        folder: where its socket goes.
        workers: how many commands it does at once; 0: as many as come, at once.
        service_us: how long it takes for each.

    Raises:
        Missing: it cannot be built.
    """
    place = folder / f"bench-{workers}.sock"
    place.unlink(missing_ok=True)
    with sockets.create_server(("127.0.0.1", 0)) as found:
        port = int(found.getsockname()[1])
    command = ["taskset", "-c", str(LOAD_CORE), program("bench-daemon"), str(place), str(port)]
    if workers:
        command += [str(workers), str(service_us)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + _START_S
        while not place.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Missing("the benchmark's daemon does not start")
            time.sleep(0.01)
        yield BenchDaemon(str(place), process.pid, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Answer(NamedTuple):
    """What became of one request, in microseconds; status 0: no answer.

    It was due, and took so long, of which the client was late to send it.
    """

    due_us: int
    took_us: int
    late_us: int
    status: int


class Answers(list[Answer]):
    """All requests of a run, in the order of their answers."""

    def of(self, *statuses: int) -> Answers:
        """Those with one of these statuses."""
        return Answers(answer for answer in self if answer.status in statuses)

    def between(self, start_s: float, end_s: float) -> Answers:
        """Those that were due in this part of the run."""
        return Answers(answer for answer in self if start_s * 1e6 <= answer.due_us < end_s * 1e6)

    def percentile_us(self, share: float) -> float:
        """The latency that this share (0 to 1) of the answers does not exceed."""
        return _percentile([answer.took_us for answer in self], share)

    def lateness_us(self, share: float) -> float:
        """The same of how late the client was."""
        return _percentile([answer.late_us for answer in self], share)

    def statuses(self) -> dict[int, int]:
        """How many there are of each."""
        found: dict[int, int] = {}
        for answer in self:
            found[answer.status] = found.get(answer.status, 0) + 1
        return found


class Offer(NamedTuple):
    """Requests of a kind, offered in open loop."""

    url: str
    body: bytes
    tokens: Sequence[str]

    def requests(self) -> bytes:
        """As the program reads them."""
        host, _, path = self.url.removeprefix("http://").partition("/")
        whole = []
        for token in self.tokens:
            head = (
                f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n\r\n"
            )
            request = head.encode() + self.body
            whole.append(struct.pack("<I", len(request)) + request)
        return b"".join(whole)


def offer(
    folder: Path,
    kind: Offer,
    phases: Sequence[tuple[float, float]],
    *,
    connections: int,
    seed: int,
    punctual: bool = False,
) -> Answers:
    """Offer requests at random moments; the answers.

    Args:
        folder: where the requests go.
        kind: what is asked.
        phases: so many a second for so many seconds, one after the other.
        connections: how many requests can be under way; the next ones wait, and that counts.
        seed: of the moments.
        punctual: it comes before whatever else is on its core, where this user may ask for that. For few requests: for
            many it would take all of that core.

    Raises:
        Missing: the program cannot be built.
    """
    file = folder / "requests"
    file.write_bytes(kind.requests())
    address = kind.url.removeprefix("http://").partition("/")[0]
    rates = ",".join(f"{rate:.3f}:{seconds:.3f}" for rate, seconds in phases)
    before = _BEFORE_ALL if punctual and _may_go_before_all() else ()
    command = ["taskset", "-c", str(LOAD_CORE), *before, program("open-loop"), address, rates]
    done = subprocess.run([*command, str(connections), str(seed), str(file)], check=True, capture_output=True)
    return Answers(Answer(*fields) for fields in _RECORD.iter_unpack(done.stdout))


def _may_go_before_all() -> bool:
    return subprocess.run([*_BEFORE_ALL, "true"], check=False, capture_output=True).returncode == 0


def _percentile(values: list[int], share: float) -> float:
    return float(sorted(values)[min(len(values) - 1, int(share * len(values)))])


def recovery_s(answers: Answers, after_s: float, limit_us: int) -> float:
    """Seconds from `after_s` until every answer is good and quick again and stays so."""
    bad = [answer.due_us / 1e6 for answer in answers if answer.status != 200 or answer.took_us > limit_us]
    return max((due - after_s for due in bad if due >= after_s), default=0.0)
