"""Everything at once: real runs that write thousands of log lines, commands, and a fleet that listens.

Strategy: eight runs of a real tap wait at a gate, so that their start costs nothing while something is measured; then
all write log lines to standard error at a fixed rate, while commands come in open loop. The same is done without any
socket first. `FOLLOWERS` clients hear the logs of all runs, the others a topic on which nothing happens.

Rules:
- Runs, daemon and clients share the load's core; the gateway has the other one. What the runs get to write a second
  is told, since Meltano itself takes most of that core.
- A first line's age counts from the moment when the tap wrote it, which stands in the line.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
from ruamel.yaml import YAML
from tests.service import ROOT, copy_project
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from benches import native, servers
from benches import realtime_servers as halls
from benches.command_peers import BODY, EXECUTE
from benches.fleet import Fleet
from benches.load import token
from benches.native import Offer
from benches.realtime_servers import SHARED, Ground, Hall
from benches.servers import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service import Service

    from benches.fleet import Report
    from benches.record import Suite

RUNS, LINES_PER_S, COMMANDS_PER_S = 8, 5000, 1000
FOLLOWERS = 100
REST_MS, FIRST_LINE_MS, FAILED_PERCENT = 10, 200, 1
_WRITE_S, _OFFER_S = 8.0, 6.0
_GATHER_S = 120.0
_NEVER_MS = _WRITE_S * 1000
_CONNECTIONS = 200
_LOGS = "execution.*"
_WRITTEN = re.compile(rb"noise at=(\d+)")

_TAP = """#!/usr/bin/env python3
import json, os, sys, time
def say(message):
    sys.stdout.write(json.dumps(message) + "\\n")
    sys.stdout.flush()
say({"type": "SCHEMA", "stream": "noise", "schema": {"properties": {"id": {"type": "integer"}}}, "key_properties": []})
say({"type": "RECORD", "stream": "noise", "record": {"id": 1}})
open(%(gate)r + "-" + str(os.getpid()), "w").close()
while not os.path.exists(%(gate)r):
    time.sleep(0.01)
began, written = time.monotonic(), 0
while written < %(lines)d:
    due = min(%(lines)d, int((time.monotonic() - began) * %(per_s)f) + 1)
    for _ in range(written, due):
        sys.stderr.write("noise at=%%d %%s\\n" %% (time.time_ns() // 1000, "x" * 60))
    sys.stderr.flush()
    written = due
    time.sleep(0.005)
say({"type": "STATE", "value": {"bookmarks": {}}})
"""


class Noise(NamedTuple):
    """What one go came to: the commands, the ages of the first lines, and what the followers got."""

    rest_p99_ms: float
    failed_percent: float
    first_lines_ms: list[float]
    report: Report | None
    lines_per_s: float


def measure(suite: Suite, elsewhere: Ground, connections: int) -> None:
    """The rows of this module."""
    name = f"{elsewhere.transport}, {connections:,} sockets, {RUNS} runs, {COMMANDS_PER_S:,} commands/s"
    try:
        halls.check(elsewhere.transport)
        project = copy_project(elsewhere.folder / "mixed", plugins=ROOT / ".demo")
        gate = _noisy(project)
        with servers.service(project, FLX_MAX_RUNS=str(RUNS)) as service:
            ground = elsewhere._replace(daemon=str(service.endpoints["daemon_socket"]))
            alone = _go(ground, service, gate, 0)
            crowded = _go(ground, service, gate, connections)
    except Unavailable as reason:
        suite.unjudged(name, "p99 of a command", "ms", target=f"value <= {REST_MS} ms", reason=str(reason))
        return
    suite.compare(
        name,
        "p99 of a command",
        "ms",
        [crowded.rest_p99_ms],
        rival="the same without sockets",
        rival_values=[alone.rest_p99_ms],
        target_value=REST_MS,
    )
    suite.compare(
        name,
        "commands that were not answered with 200",
        "%",
        [crowded.failed_percent],
        rival="the same without sockets",
        rival_values=[max(1e-3, alone.failed_percent)],
        target_value=FAILED_PERCENT,
    )
    suite.compare(
        name,
        "oldest first line of a run",
        "ms",
        [max(crowded.first_lines_ms)],
        rival="the same without sockets",
        rival_values=[max(alone.first_lines_ms)],
        target_value=FIRST_LINE_MS,
    )
    report = crowded.report
    assert report is not None
    wrong = report.holes + report.duplicates + report.disorder + report.unreadable + report.gaps
    suite.bound(name, f"faults{report.told()}", "events", wrong + sum(report.closed.values()), most=0)
    suite.bound(name, f"log lines heard a second (of {LINES_PER_S:,} wanted)", "1/s", crowded.lines_per_s)
    suite.bound(name, "p99 age of a log line, from the daemon having read it", "ms", report.ages.p99_us / 1000)


def _go(ground: Ground, service: Service, gate: Path, connections: int) -> Noise:
    with contextlib.ExitStack() as stack:
        hall = stack.enter_context(halls.ours(ground))
        followers = None
        if connections:
            heard = min(FOLLOWERS, connections // 2)
            followers = stack.enter_context(Fleet(ground.folder, hall.target, heard, [_LOGS]))
            stack.enter_context(Fleet(ground.folder, hall.target, connections - heard, [SHARED]))
        maker = stack.enter_context(
            httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {token('maker', role='admin')}"})
        )
        executions = [_start(maker, number) for number in range(RUNS)]
        _gathered(gate, maker, executions)
        listening = stack.enter_context(_first_lines(hall))
        if followers is not None:
            followers.begin()
        gate.touch()
        offer = Offer(f"http://{hall.http}{EXECUTE}", BODY, hall.target.tokens)
        answers = native.offer(
            ground.folder, offer, [(COMMANDS_PER_S, _OFFER_S)], connections=_CONNECTIONS, seed=len(executions)
        )
        ends = [_end(maker, execution) for execution in executions]
        if not set(ends) <= {"succeeded", "succeeded_with_warnings"}:
            raise Unavailable(f"the runs ended {ends}")
        report = followers.wait(1 << 62, 1.0) if followers is not None else None
        first, lines_per_s = listening()
    for file in gate.parent.glob(gate.name + "*"):
        file.unlink()
    good = answers.of(200)
    failed = 100 - 100 * len(good) / max(1, len(answers))
    # One that was never heard counts as if it had taken all the time that there was.
    first += [_NEVER_MS] * (RUNS - len(first))
    return Noise(good.percentile_us(0.99) / 1000 if good else _NEVER_MS, failed, first, report, lines_per_s)


@contextlib.contextmanager
def _first_lines(hall: Hall) -> Iterator[Any]:
    """Listen as one more client; what it yields gives the ages of the first lines, and the lines a second."""
    first: dict[str, float] = {}
    seen = [0, 0.0, 0.0]
    bearer = {"Authorization": f"Bearer {token('listener')}"}
    with connect(f"ws://{hall.target.address}/ws/listener", additional_headers=bearer, max_queue=None) as socket:
        socket.recv()
        socket.send(json.dumps({"type": "subscribe", "event": _LOGS}))
        socket.recv()

        def listen() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    message = socket.recv(decode=False)
                    written = _WRITTEN.search(message)
                    if written is None:
                        continue
                    now = time.time()
                    seen[0], seen[1], seen[2] = seen[0] + 1, seen[1] or now, now
                    topic = str(json.loads(message)["event"])
                    first.setdefault(topic, now * 1000 - int(written[1]) / 1000)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield lambda: (list(first.values()), seen[0] / max(1e-3, seen[2] - seen[1]))
    thread.join(5)


def _start(maker: httpx.Client, number: int) -> str:
    answer = maker.post(f"/v1/pipelines/noisy-{number}/run", json={})
    if answer.status_code != 202:
        raise Unavailable(f"a run was answered with {answer.status_code}: {answer.text[:200]}")
    return answer.headers["location"].rsplit("/", 1)[1]


def _end(maker: httpx.Client, execution: str) -> str:
    """How a run ended."""
    limit_ms = int(_GATHER_S * 1000)
    url = f"/v1/executions/{execution}/wait?timeout_ms={limit_ms}"
    return str(maker.get(url, timeout=2 * _GATHER_S).json().get("status"))


def _gathered(gate: Path, maker: httpx.Client, executions: list[str]) -> None:
    """Wait until all runs are at the gate."""
    deadline = time.monotonic() + _GATHER_S
    while len(list(gate.parent.glob(gate.name + "-*"))) < RUNS:
        states = [maker.get(f"/v1/executions/{execution}").json() for execution in executions]
        ended = [f"{state.get('status')} {state.get('error') or ''}" for state in states if state.get("finished_us")]
        if ended or time.monotonic() > deadline:
            raise Unavailable(f"not all runs come to the point where they write (ended: {ended})")
        time.sleep(0.2)


def _noisy(project: Path) -> Path:
    """Jobs `noisy-0`... of a project, each with a tap of its own; the gate before which they wait."""
    gate = project / "gate"
    tap = project / "tap-noisy.py"
    per_s = LINES_PER_S / RUNS
    tap.write_text(_TAP % {"gate": str(gate), "lines": int(per_s * _WRITE_S), "per_s": per_s}, encoding="ascii")
    tap.chmod(0o755)
    yaml, file = YAML(), project / "meltano.yml"
    document = yaml.load(file)
    extractors = document["plugins"]["extractors"]
    known = {"namespace": "tap_noisy", "executable": "./tap-noisy.py", "capabilities": ["state"]}
    extractors.append({"name": "tap-noisy", **known})
    for number in range(RUNS):
        extractors.append({"name": f"tap-noisy-{number}", "inherit_from": "tap-noisy"})
        document["jobs"].append({"name": f"noisy-{number}", "tasks": [f"tap-noisy-{number} target-jsonl"]})
    yaml.dump(document, file)
    return gate
