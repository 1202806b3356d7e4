"""A fleet of real processes on a real Redis under load, with faults in mid-run, judged by every admission's true time.

Strategy: each node is a process with a `LeaseBook` and its `Leases`, and no HTTP. It asks on an open loop (as many
requests as its share of the plan says, whatever the answers, from when all nodes are ready) and writes every admission
into a mapped file, so that nothing is lost when it is killed. CLOCK_MONOTONIC is one clock for all processes of a
machine.

`main()` runs one plan and returns its figures; `python -m tests.faults.lease_load --help` prints them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import mmap
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from tests.redis_server import RedisServer, running

from flx_api._core import LeaseBook
from flx_api.limits.redis import Leases

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
S = 1_000_000_000
STEP_S = 0.005
RECORD = struct.Struct("<QI")
ADMITTED, REFUSED, UNKNOWN, UNAVAILABLE = range(4)


@dataclass
class Plan:
    """One run."""

    mode: str = "strict"
    limit: int = 400
    window_s: float = 6.0
    nodes: int = 12
    keys: int = 40
    load: str = "overload"
    """overload: every key at 20 times its limit; mixed: keys at 0.5 to 2 times theirs."""
    windows: float = 3.0
    durable: bool = False
    faults: list[tuple[float, str]] = field(default_factory=list)
    """(windows after the start, kill-redis | start-redis | kill-node)"""
    deadline_s: float = 0.25
    """Of a sync; more than the default, so that a busy machine does not make Redis look lost."""
    seed: int = 1

    def bound(self, *, away: bool) -> int:
        """The most over the limit in any window while Redis keeps its data; `away`: nodes went on alone in between."""
        if self.mode == "strict":
            return 0
        return self.nodes * (-(-self.limit // 64) + (max(1, self.limit // self.nodes) if away else 0))

    def factor(self, key: int) -> float:
        """How much of its limit a key is asked for."""
        return 20.0 if self.load == "overload" else 0.5 + 1.5 * key / max(1, self.keys - 1)


class Node:
    """One process."""

    def __init__(self, plan: Plan, number: int, folder: Path) -> None:
        self.plan = plan
        self.book = LeaseBook([("load", plan.limit, int(plan.window_s * 1000), plan.mode)])
        self.leases = Leases(self.book, f"unix://{folder / 'redis.sock'}", deadline_s=plan.deadline_s)
        self.verdicts = [0, 0, 0, 0]
        self.asked = [0] * plan.keys
        self.waits: list[int] = []
        self.names = [b"key-%d" % key for key in range(plan.keys)]
        self.log, self.arrivals = mapped(folder / f"node-{number}"), mapped(folder / f"asked-{number}")
        self.at = self.arrived = 0
        self.draw = random.Random(plan.seed * 1000 + number)
        self.tasks: set[asyncio.Task[None]] = set()

    def hit(self, key: int) -> int:
        """Ask the book, and log what it admits."""
        now = time.monotonic_ns()
        verdict = self.book.hit(0, self.names[key], now)[0]
        if verdict == ADMITTED:
            # The later of the two times would flatter the oracle as often as the earlier one; the book got this one.
            RECORD.pack_into(self.log, self.at, now, key)
            self.at += RECORD.size
        return verdict

    async def wait(self, key: int) -> None:
        """A strict request on a cold key."""
        began = time.monotonic_ns()
        verdict = UNKNOWN
        while verdict == UNKNOWN:
            if not await self.leases.wait() or time.monotonic_ns() - began > 50_000_000:
                verdict = UNAVAILABLE
                break
            verdict = self.hit(key)
        self.verdicts[verdict] += 1
        self.waits.append(time.monotonic_ns() - began)

    async def run(self) -> dict[str, Any]:
        """Say when leases can be had, hear when to begin, and ask until the plan is over.

        What a busy machine left no time for is asked at the end.
        """
        plan, draw = self.plan, self.draw
        self.leases.start()
        while not self.leases.ready:  # noqa: ASYNC110 - a flag, not an event
            await asyncio.sleep(STEP_S)
        print("ready", flush=True)  # noqa: T201 - what the parent reads
        begin_ns = int(await asyncio.to_thread(sys.stdin.readline))
        length_ns = int(plan.windows * plan.window_s * S)
        weights = [plan.factor(key) for key in range(plan.keys)]
        rate = sum(weights) * plan.limit / plan.window_s / plan.nodes
        await asyncio.sleep(max(0.0, (begin_ns - time.monotonic_ns()) / S))
        done, keys, passed_ns = 0, range(plan.keys), 0
        while passed_ns < length_ns:
            passed_ns = min(length_ns, time.monotonic_ns() - begin_ns)
            owing = int(passed_ns / S * rate) - done
            done += owing
            for key in draw.choices(keys, weights, k=owing):
                self.asked[key] += 1
                RECORD.pack_into(self.arrivals, self.arrived, time.monotonic_ns(), key)
                self.arrived += RECORD.size
                verdict = self.hit(key)
                if verdict == UNKNOWN:
                    task = asyncio.create_task(self.wait(key))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
                else:
                    self.verdicts[verdict] += 1
            await asyncio.sleep(STEP_S)
        await asyncio.gather(*self.tasks)
        await self.leases.close()
        self.waits.sort()
        return {
            "asked": self.asked,
            "verdicts": self.verdicts,
            "calls": self.leases.calls,
            "losses": self.leases.losses,
            "away": self.leases.times_away,
            "counts": self.book.counts,
            "waits": len(self.waits),
            "wait_p50_ms": self.waits[len(self.waits) // 2] / 1e6 if self.waits else 0.0,
            "wait_max_ms": self.waits[-1] / 1e6 if self.waits else 0.0,
        }


def mapped(file: Path) -> mmap.mmap:
    """Room for records that outlive their process."""
    with file.open("w+b") as opened:
        opened.truncate(RECORD.size * (1 << 20))
        return mmap.mmap(opened.fileno(), 0)


def central(times: Sequence[int], limit: int, window_ns: int) -> int:
    """How many of these arrivals one exact limiter admits that sees them all at once."""
    log: deque[int] = deque()
    admitted = 0
    for at in times:
        while log and log[0] <= at - window_ns:
            log.popleft()
        if len(log) < limit:
            log.append(at)
            admitted += 1
    return admitted


def worst_window(times: Sequence[int], window_ns: int) -> tuple[int, int]:
    """The most admissions that any true window held, and the time of the last of them."""
    most = left = when = 0
    for right, at in enumerate(times):
        while times[left] <= at - window_ns:
            left += 1
        if right - left + 1 > most:
            most, when = right - left + 1, at
    return most, when


def read_log(file: Path) -> list[tuple[int, int]]:
    """The (time, key) of everything that a node wrote down."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as records:
        return list(itertools.takewhile(lambda record: record[0], RECORD.iter_unpack(records)))


def main(plan: Plan) -> dict[str, Any]:
    """Run a plan; the figures."""
    with tempfile.TemporaryDirectory(prefix="flx-") as name:
        folder = Path(name)
        with running(folder, durable=plan.durable) as server:
            return _run(plan, folder, server)


def _run(plan: Plan, folder: Path, server: RedisServer) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.faults.lease_load", "--node"]
    processes = []
    for number in range(plan.nodes):
        job = json.dumps({"plan": asdict(plan), "number": number, "folder": str(folder)})
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen([*command, job], cwd=ROOT, stdin=pipe, stdout=pipe))
    try:
        begin_ns = _begin(processes)
        return _judge(plan, folder, begin_ns, _tell(plan, server, processes, begin_ns))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _begin(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all nodes, however long their interpreters and a new fleet's grace take, and let them begin together.

    In the grace each node admits its share: it has bounds of its own, and is not what a plan is about.
    """
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    begin_ns = time.monotonic_ns() + S // 4
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"%d\n" % begin_ns)
        process.stdin.flush()
    return begin_ns


def _tell(
    plan: Plan, server: RedisServer, processes: list[subprocess.Popen[bytes]], begin_ns: int
) -> list[dict[str, Any]]:
    """Do the faults in their time, and hear what the nodes have to tell in the end."""
    killed: list[subprocess.Popen[bytes]] = []
    for windows, fault in sorted(plan.faults):
        time.sleep(max(0.0, (begin_ns + windows * plan.window_s * S - time.monotonic_ns()) / S))
        if fault == "kill-redis":
            server.kill()
        elif fault == "start-redis":
            server.start()
        else:
            assert fault == "kill-node"
            victim = processes[len(killed)]
            victim.kill()
            killed.append(victim)
    told = []
    for process in processes:
        out, _ = process.communicate(timeout=60 + plan.windows * plan.window_s)
        if process not in killed:
            assert process.returncode == 0
            told.append(json.loads(out))
    return told


def _merged(plan: Plan, folder: Path, name: str) -> dict[int, list[int]]:
    """What all nodes wrote down, by key and in order of time."""
    times: dict[int, list[int]] = {key: [] for key in range(plan.keys)}
    for number in range(plan.nodes):
        for at, key in read_log(folder / f"{name}-{number}"):
            times[key].append(at)
    for found in times.values():
        found.sort()
    return times


def _judge(plan: Plan, folder: Path, begin_ns: int, told: list[dict[str, Any]]) -> dict[str, Any]:
    window_ns = int(plan.window_s * S)
    times, arrivals = (_merged(plan, folder, name) for name in ("node", "asked"))
    worst = {}
    for key, found in times.items():
        worst[key] = worst_window(found, window_ns)
    over, where, key = max((most - plan.limit, when, key) for key, (most, when) in worst.items())
    # Use: of what an exact central limiter would have admitted of the same arrivals;
    # more than that for a key adds nothing.
    could = {key: central(found, plan.limit, window_ns) for key, found in arrivals.items()}
    used = sum(min(len(times[key]), most) for key, most in could.items())
    away = sum(node["away"] for node in told)
    asked_total = sum(sum(node["asked"]) for node in told)
    calls = sum(node["calls"] for node in told)
    after = begin_ns + (max((at for at, _ in plan.faults), default=0.0) + 1.0) * window_ns
    later = max(worst_window([at for at in found if at >= after], window_ns)[0] for found in times.values())
    return {
        "asked": asked_total,
        "bound": plan.bound(away=away > 0),
        "admitted": sum(len(found) for found in times.values()),
        "over": over,
        "over_at": (where - begin_ns) / window_ns,
        "over_key": key,
        "over_later": later - plan.limit,
        "use": used / sum(could.values()),
        "calls": calls,
        "requests_per_call": asked_total / max(1, calls),
        "losses": sum(node["losses"] for node in told),
        "away": away,
        "verdicts": [sum(node["verdicts"][which] for node in told) for which in range(4)],
        "owed": sum(node["counts"][2] for node in told),
        "alone": sum(node["counts"][3] for node in told),
        "waits": sum(node["waits"] for node in told),
        "wait_p50_ms": max(node["wait_p50_ms"] for node in told),
        "wait_max_ms": max(node["wait_max_ms"] for node in told),
    }


def _command_line() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", help="(internal) be one node")
    for name, value in asdict(Plan()).items():
        if name == "faults":
            parser.add_argument("--faults", default="[]", help="JSON: [[windows, fault], …]")
        elif isinstance(value, bool):
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=type(value), default=value)
    given = vars(parser.parse_args())
    node = given.pop("node")
    if node is None:
        given["faults"] = [tuple(fault) for fault in json.loads(given["faults"])]
        print(json.dumps(main(Plan(**given)), indent=1))  # noqa: T201 - a command line
        return
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    job = json.loads(node)
    process = Node(Plan(**job["plan"]), job["number"], Path(job["folder"]))
    print(json.dumps(asyncio.run(process.run())))  # noqa: T201 - what the parent reads


if __name__ == "__main__":
    _command_line()
