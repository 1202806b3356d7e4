"""Rows about limits: what an idle connection and an event cost, who stops reading, who comes back, the portable faces.

Rules:
- Every row has servers and fleets of its own: what was driven to its limit is not used again.
- Memory is the proportional set of the server's process tree; the kernel's part is the growth
  of its slab, of both ends.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from tests.service import ROOT, copy_project

from benches import realtime_servers as halls
from benches import servers
from benches.callers import in_turn, local
from benches.fleet import Fleet
from benches.load import token
from benches.peer_tools import Missing
from benches.realtime_fanout import EVENT_BYTES, OURS, SLICES, WINDOW_MS, series, shared
from benches.realtime_servers import BARE, CENTRIFUGE, GRANIAN, SHARED, WSE, Ground, Hall
from benches.servers import Unavailable
from flx_api import _core

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.service import Service

    from benches.realtime_fanout import Plan
    from benches.record import Suite

IDLE_KIB = 0.5
STALLED_SHARE, STALL_PER_S = 0.1, 500
STALL_MIB, STALL_RATIO = 16, 1.1
BASE_S = 4.0
STORM_S = 3.0
FACE_CONNECTIONS, FACE_PER_S, FACE_P99_MS, FACE_MIB = 5000, 200, 183, 16
PUBLISH_US = 1
_BATCH = 100
_JOURNALLED = "pipeline_events"
_STORM_LIMIT_S = 60.0


def idle(suite: Suite, ground: Ground, connections: int) -> None:
    """Memory of a connection that is subscribed and hears nothing.

    What is kept of a token and of its subject's limits is there once for all its connections, and no rival has it: each
    token is shown to ours before, and what that costs is a row of its own.
    """
    name = f"{connections:,} idle subscribed connections"
    everybody: dict[str, Callable[[], AbstractContextManager[Hall]]] = {
        f"{OURS}, {ground.transport}": lambda: halls.ours(ground),
        BARE: halls.bare,
        CENTRIFUGE: lambda: halls.centrifuge(ground.peers),
        WSE: lambda: halls.wse(ground.peers),
        GRANIAN: lambda: halls.granian(ground.folder),
    }
    for who, start in everybody.items():
        most = IDLE_KIB if who.startswith(OURS) else None
        try:
            with start() as hall:
                # The first connections bring what is there once.
                with Fleet(ground.folder, hall.target, 10, [SHARED]):
                    pass
                empty = hall.rss_kib()
                known = _introduce(hall)
                before, slab = hall.rss_kib(), _slab_kib()
                with Fleet(ground.folder, hall.target, connections, [SHARED]):
                    user, kernel = hall.rss_kib() - before, _slab_kib() - slab
        except (Unavailable, Missing) as reason:
            target = f"value <= {most}" if most is not None else "reported"
            suite.unjudged(f"{name}, {who}", "user memory each", "KiB", target=target, reason=str(reason))
            continue
        suite.bound(f"{name}, {who}", "user memory each", "KiB", user / connections, most=most)
        if known:
            suite.bound(f"{name}, {who}", "user memory of each subject", "KiB", (before - empty) / known)
        suite.bound(f"{name}, {who}", "kernel memory each, both ends", "KiB", kernel / connections)


def _introduce(hall: Hall) -> int:
    """Let the gateway judge every token of the fleet once; how many there are."""
    if not hall.target.tokens or hall.http is None:
        return 0
    connection = servers.dial(hall.http, 10.0)
    for one in hall.target.tokens:
        connection.request("GET", "/v1/auth/whoami", headers={"Authorization": f"Bearer {one}"})
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise Unavailable(f"a token was answered with {answer.status}")
    connection.close()
    return len(hall.target.tokens)


def stalled(suite: Suite, ground: Ground, connections: int, stall_s: float) -> None:
    """A tenth of the clients stops reading while events go on; then it reads again."""
    at = f"a tenth stalled for {stall_s:.0f} s at {STALL_PER_S} events/s"
    name = f"{ground.transport}, {connections:,} connections, {at}"
    try:
        with (
            halls.ours(ground) as hall,
            Fleet(ground.folder, hall.target, connections, [SHARED], stallable=STALLED_SHARE) as fleet,
        ):
            series(hall, fleet, *shared(connections, STALL_PER_S, 1.0))
            healthy = connections - int(connections * STALLED_SHARE)
            before = series(hall, fleet, *shared(connections, STALL_PER_S, BASE_S))
            memory = hall.rss_kib()
            fleet.begin()
            stopped = fleet.stall()
            hall.publish(f"shared {STALL_PER_S} {stall_s} {EVENT_BYTES} {WINDOW_MS} {SLICES}")
            # Those that are healthy get all of it; those that are stalled nothing more than what was on its way.
            during = fleet.wait(healthy * int(STALL_PER_S * stall_s), 5.0)
            grown = hall.rss_kib() - memory
            fleet.release()
            after = fleet.wait(1 << 62, 10.0)
    except Unavailable as reason:
        for metric, unit, target in (
            ("growth of memory", "MiB", f"value <= {STALL_MIB}"),
            ("p99 age of the healthy", "ms", f"ratio <= {STALL_RATIO}"),
            ("stalled clients that were told their gap", "clients", "all"),
        ):
            suite.unjudged(name, metric, unit, target=target, reason=str(reason))
        return
    suite.bound(name, "growth of memory", "MiB", grown / 1024, most=STALL_MIB)
    suite.compare(
        name,
        "p99 age of the healthy",
        "ms",
        [during.ages.p99_us / 1000],
        rival="the same, nobody stalled",
        rival_values=[max(1e-3, before.report.ages.p99_us / 1000)],
        target_ratio=STALL_RATIO,
    )
    suite.count(
        name,
        "stalled clients that were told their gap",
        after.stallable_told,
        rival="stalled",
        rival_value=stopped,
        target=stopped,
    )
    untold = after.holes + after.duplicates + after.disorder + after.unreadable
    suite.bound(name, "faults that nobody told", "events", untold, most=0)


def storm(suite: Suite, elsewhere: Ground, connections: int) -> None:
    """The gateway dies and is back: all clients come back, authenticate and resume on a journalled topic."""
    name = f"{elsewhere.transport}, {connections:,} clients come back and resume"
    metric = "until all have subscribed again, from the listener being back"
    port = servers.free_port()
    try:
        halls.check(elsewhere.transport)
        with contextlib.ExitStack() as stack:
            service = stack.enter_context(
                servers.service(copy_project(elsewhere.folder / "storm", plugins=ROOT / ".demo"), FLX_FORK="never")
            )
            ground = elsewhere._replace(daemon=str(service.endpoints["daemon_socket"]))
            first = stack.enter_context(contextlib.ExitStack())
            hall = first.enter_context(halls.ours(ground, port=port))
            fleet = stack.enter_context(Fleet(ground.folder, hall.target, connections, [_JOURNALLED]))
            fleet.begin()
            _pipelines(service, "before", 3)
            fleet.wait(3 * connections, 20.0)
            fleet.lose()
            halls.end(hall)
            first.close()
            _pipelines(service, "meanwhile", 4)
            stack.enter_context(halls.ours(ground, port=port))
            took_s = fleet.returned(_STORM_LIMIT_S)
            if took_s is None:
                suite.bound(f"{name} (not all did)", metric, "s", _STORM_LIMIT_S, most=STORM_S)
                return
            _pipelines(service, "after", 3)
            report = fleet.wait(10 * connections, 20.0)
    except Unavailable as reason:
        suite.unjudged(name, metric, "s", target=f"value <= {STORM_S}", reason=str(reason))
        return
    suite.bound(name, metric, "s", took_s, most=STORM_S)
    suite.bound(name, "events lost", "events", max(0, 10 * connections - report.events), most=0)
    again = max(report.duplicates, report.events - 10 * connections)
    suite.bound(name, "events that came twice", "events", again, most=0)
    suite.bound(name, "holes, disorder and gaps", "events", report.holes + report.disorder + report.gaps, most=0)


def face(suite: Suite, ground: Ground, plan: Plan) -> None:
    """A portable face beside an application on Granian that packs events itself.

    Memory is to be flat: what grows after the first series counts. In the first, which warms up, Granian's WebSocket
    keeps a write buffer for each connection, as large as the longest message: reported, beside the rival's.
    """
    connections = min(FACE_CONNECTIONS, plan.connections)
    name = f"{ground.transport} face, {connections:,} connections, {FACE_PER_S} events/s"
    line, expected = shared(connections, FACE_PER_S, plan.seconds)
    packed = line.replace(f" {WINDOW_MS} {SLICES}", f" {halls.BATCH_MS} 1")
    ages: tuple[list[float], list[float]] = ([], [])
    faults = 0
    try:
        with contextlib.ExitStack() as stack:
            sides = []
            for start in (lambda: halls.ours(ground), lambda: halls.granian(ground.folder)):
                hall = stack.enter_context(start())
                sides.append((hall, stack.enter_context(Fleet(ground.folder, hall.target, connections, [SHARED]))))
            memory = [[hall.rss_kib() for hall, _ in sides]]
            for number in range(plan.rounds + 1):
                for (hall, fleet), found, command in zip(sides, ages, (line, packed), strict=True):
                    done = series(hall, fleet, command, expected)
                    if hall is sides[0][0]:
                        faults += done.faults
                    if number:
                        found.append(done.p99_ms)
                memory.append([hall.rss_kib() for hall, _ in sides])
    except (Unavailable, Missing) as reason:
        suite.unjudged(name, "p99 age", "ms", target=f"value <= {FACE_P99_MS} ms", reason=str(reason))
        return
    suite.compare(name, "p99 age", "ms", ages[0], rival=GRANIAN, rival_values=ages[1], target_value=FACE_P99_MS)
    suite.bound(name, "faults on all connections", "events", faults, most=0)
    (before, packed_before), (warm, packed_warm), *_, (after, _) = memory
    suite.compare(
        name,
        "growth of memory in the first series",
        "MiB",
        [max(0, warm - before) / 1024],
        rival=GRANIAN,
        rival_values=[max(1, packed_warm - packed_before) / 1024],
    )
    suite.bound(name, "growth of memory after the first series", "MiB", (after - warm) / 1024, most=FACE_MIB)


def publish(suite: Suite, rounds: int) -> None:
    """What the hub takes for an event that Python gives it, a hundred at a time."""
    name, metric = "publish from Python into the hub, batch of 100", "one event"
    # Named by a string: a version without a native hub has no such class.
    hub: Any = getattr(_core, "Hub", None)
    if hub is None:
        reason = "there is no native hub in this version"
        suite.unjudged(name, metric, "us", target=f"value <= {PUBLISH_US} us", reason=reason)
        return
    data = b'{"at":1,"n":1,"data":"%b"}' % (b"x" * (EVENT_BYTES - 24))
    batch = [("default", SHARED, 0, 0, 1, data)] * _BATCH
    call = local("append", "append(batch, 1)", {"append": hub("bench").append, "batch": batch}, 500)
    (taken,) = in_turn([call], rounds)
    suite.measure(name, metric, "us", [ns / _BATCH / 1000 for ns in taken], target_value=PUBLISH_US)


def _pipelines(service: Service, name: str, count: int) -> None:
    """Make pipelines, through another gateway than the one that is measured: each is one journalled event."""
    headers = {"Authorization": f"Bearer {token('maker', role='admin')}"}
    for number in range(count):
        body: dict[str, Any] = {"name": f"storm-{name}-{number}", "extractor": "tap-nyc", "loader": "target-jsonl"}
        answer = httpx.post(f"{service.url}/v1/commands/pipeline.create", json=body, headers=headers)
        if answer.status_code != 200:
            raise Unavailable(f"a pipeline was answered with {answer.status_code}: {answer.text[:200]}")


def _slab_kib() -> int:
    """The kernel's slab, when it has come to rest."""
    time.sleep(0.5)
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Slab:"))
