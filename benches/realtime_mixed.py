"""Everything at once: real runs that write thousands of log lines, commands, and a fleet that listens.

Strategy: eight runs of a real tap wait at a gate, so that their start costs nothing while something is measured; then
all write log lines to standard error at a fixed rate, while commands come in open loop. The same is done with one
socket only, in turn. `FOLLOWERS` clients hear the logs of all runs, the others a topic on which nothing happens.

Rules:
- There is one gateway with one worker, and the daemon behind it; runs are started and waited for through them too.
- Runs, daemon and clients share the load's core; the gateway has the other one. What the runs get to write a second
  is told, since Meltano itself takes most of that core.
- The gateway goes before strangers on its core, where its user may ask for that: an agent of the machine that takes the
  core for 30 ms every three seconds is the whole p99 of commands that take one.
- A first line's age counts from the moment when the tap wrote it, which stands in the line, until the last of those who
  follow has it; in a run of which one of them hears none it is as old as all of this takes.
- A command counts from when it was due until the kernel has the answer (`benches.native`). In life clients are
  elsewhere and do not wait for the core of runs; so this one goes before all others there, where its user may ask for
  that. How late it was to send is in the figure all the same, and told.
"""

from __future__ import annotations

import contextlib
import time
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
from ruamel.yaml import YAML
from tests.service import ROOT, copy_project

from benches import native, servers
from benches import realtime_servers as halls
from benches.command_peers import BODY, EXECUTE
from benches.fleet import Fleet
from benches.load import LOAD_CORE, token
from benches.native import Offer
from benches.realtime_servers import SHARED, Ground
from benches.servers import Unavailable

if TYPE_CHECKING:
    from benches.fleet import Report
    from benches.record import Suite

RUNS, LINES_PER_S, COMMANDS_PER_S = 8, 5000, 1000
FOLLOWERS = 100
REST_MS, FIRST_LINE_MS, FAILED_PERCENT = 10, 200, 1
ROUNDS = 3
_WRITE_S, _OFFER_S = 8.0, 6.0
# Of its session among the sessions of the machine, as `nice` has it.
_BEFORE_STRANGERS = "-15"
_GATHER_S = 120.0
_NEVER_MS = _WRITE_S * 1000
_CONNECTIONS = 200
_LOGS = "execution.*"
_MARK = "noise at="

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
        sys.stderr.write("%(mark)s%%d %%s\\n" %% (time.time_ns() // 1000, "x" * 60))
    sys.stderr.flush()
    written = due
    time.sleep(0.005)
say({"type": "STATE", "value": {"bookmarks": {}}})
"""


class Noise(NamedTuple):
    """What one go came to: the commands, the age of the oldest first line, and what the followers got."""

    rest_p99_ms: float
    late_p99_ms: float
    failed_percent: float
    first_line_ms: float
    report: Report


def measure(suite: Suite, elsewhere: Ground, connections: int, rounds: int) -> None:
    """The rows of this module."""
    name = f"{elsewhere.transport}, {connections:,} sockets, {RUNS} runs, {COMMANDS_PER_S:,} commands/s"
    try:
        halls.check(elsewhere.transport)
        project = copy_project(elsewhere.folder / "mixed", plugins=ROOT / ".demo")
        gate = _noisy(project)
        socket = elsewhere.folder / "mixed.sock"
        taskset = ["taskset", "-c", str(LOAD_CORE)]
        with servers.lone_daemon(project, socket, prefix=taskset, FLX_MAX_RUNS=str(RUNS)):
            ground = elsewhere._replace(daemon=str(socket))
            goes = [(_go(ground, gate, 1), _go(ground, gate, connections)) for _ in range(min(rounds, ROUNDS))]
    except Unavailable as reason:
        suite.unjudged(name, "p99 of a command", "ms", target=f"value <= {REST_MS} ms", reason=str(reason))
        return
    for metric, unit, figure, most in (
        ("p99 of a command", "ms", attrgetter("rest_p99_ms"), REST_MS),
        ("of which the client was late to send, p99", "ms", attrgetter("late_p99_ms"), None),
        ("commands that were not answered with 200", "%", attrgetter("failed_percent"), FAILED_PERCENT),
        ("oldest first line of a run", "ms", attrgetter("first_line_ms"), FIRST_LINE_MS),
    ):
        quiet, crowded = ([figure(noise) for noise in column] for column in zip(*goes, strict=True))
        # Of nothing at all there is no share.
        floor = [max(1e-3, value) for value in quiet]
        rival = "the same with one socket"
        suite.compare(name, metric, unit, crowded, rival=rival, rival_values=floor, target_value=most)
    reports = [crowded.report for _, crowded in goes]
    # How many events should have come is not known: of runs that write as they can.
    wrong = sum(report.faults(report.events) for report in reports)
    suite.bound(name, f"faults{''.join(report.told() for report in reports)}", "events", wrong, most=0)
    lines = [report.marked / report.live / max(1e-3, report.marked_us / 1e6) for report in reports]
    suite.measure(name, f"log lines heard a second (of {LINES_PER_S:,} wanted)", "1/s", lines)
    ages = [report.ages.p99_us / 1000 for report in reports]
    suite.measure(name, "p99 age of a log line, from the daemon having read it", "ms", ages)


def _go(ground: Ground, gate: Path, connections: int) -> Noise:
    heard = min(FOLLOWERS, max(1, connections // 2))
    with contextlib.ExitStack() as stack:
        hall = stack.enter_context(halls.ours(ground))
        with contextlib.suppress(OSError):
            Path(f"/proc/{hall.pid}/autogroup").write_text(_BEFORE_STRANGERS, encoding="ascii")
        followers = stack.enter_context(Fleet(ground.folder, hall.target, heard, [_LOGS], mark=_MARK))
        if connections > heard:
            stack.enter_context(Fleet(ground.folder, hall.target, connections - heard, [SHARED]))
        bearer = {"Authorization": f"Bearer {token('maker', role='admin')}"}
        maker = stack.enter_context(httpx.Client(base_url=f"http://{hall.http}", headers=bearer))
        executions = [_start(maker, number) for number in range(RUNS)]
        _gathered(gate, maker, executions)
        followers.begin()
        gate.touch()
        offer = Offer(f"http://{hall.http}{EXECUTE}", BODY, hall.target.tokens)
        phases, seed = [(COMMANDS_PER_S, _OFFER_S)], len(executions)
        answers = native.offer(ground.folder, offer, phases, connections=_CONNECTIONS, seed=seed, punctual=True)
        ends = [_end(maker, execution) for execution in executions]
        if not set(ends) <= {"succeeded", "succeeded_with_warnings"}:
            raise Unavailable(f"the runs ended {ends}")
        report = followers.wait(1 << 62, 1.0)
    for file in gate.parent.glob(gate.name + "*"):
        file.unlink()
    good = answers.of(200)
    failed = 100 - 100 * len(good) / max(1, len(answers))
    first = report.firsts_ms(heard)
    # One that was never heard counts as if it had taken all the time that there was.
    first += [_NEVER_MS] * (RUNS - len(first))
    rest_ms = good.percentile_us(0.99) / 1000 if good else _NEVER_MS
    return Noise(rest_ms, answers.lateness_us(0.99) / 1000, failed, max(first), report)


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
    gaps = {"gate": str(gate), "mark": _MARK, "lines": int(per_s * _WRITE_S), "per_s": per_s}
    tap.write_text(_TAP % gaps, encoding="ascii")
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
