"""Latency and overload in open loop: requests come when they come, whatever became of those before them.

Strategy: `added` is what a gateway puts on top of the same request answered by the daemon's process itself, by the
same load in the same round, percentile by percentile. The load is 30 % of what the slower of the two did a second in
closed loop just before, so that both are asked for the same and neither for more than 30 %.
For overload there is a daemon that can do `CAPACITY` commands a second and no more (12 at once, 20 ms each), far less
than a gateway can refuse: what is overloaded is the daemon, and not the gateway's core. Three times as many are offered
for a minute, then seven tenths. `CAPACITY` is nominal: the peak is measured in closed loop just before.

Rules:
- Goodput is what was answered with 200 within the command's deadline.
- The rival of shedding is the same gateway without it; as long as there is no setting for that, the row says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benches import native, servers
from benches.command_peers import BODY, EXECUTE
from benches.command_servers import ENVOY, FACES
from benches.native import Answers, Offer
from benches.peer_tools import Missing
from benches.servers import Unavailable
from flx_api.config import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from benches.command_servers import Session
    from benches.load import Load
    from benches.record import Suite

ADDED_P50_MS, ADDED_P99_MS = 0.3, 1.0
SHARE = 0.3
LATENCY_S = 1.5
GOODPUT, SHED_MS, RECOVERY_S = 80, 10, 5
FACTOR = 3
DEADLINE_MS = 1000
WORKERS, SERVICE_US = 12, 20_000
CAPACITY = WORKERS * 1_000_000 // SERVICE_US
AFTER_S = 10.0
_AFTER = 0.7
_PEAK_S = 3
# The gateway takes 4,096 connections; a client that has more than it can use waits in its own queue.
_CONNECTIONS = 3_500
_FEW = 64
# The names under which a setting that switches shedding off would be known, and its value for that.
_SWITCHES = {"shedding": "off", "load_shedding": "off", "shed": "off"}


def latency(suite: Suite, session: Session, rounds: int) -> None:
    """Added p50 and p99 at 30 % load, ours and Envoy's."""
    for face in FACES:
        name = f"added latency at 30 % load, open loop, {face}"
        absent = session.reasons.get(face) or session.reasons.get(ENVOY)
        if absent is not None:
            suite.unjudged(name, "p50, p99", "ms", target=f"<= {ADDED_P50_MS}, <= {ADDED_P99_MS}", reason=absent)
            continue
        rate = SHARE * min(session.peak(face), session.peak(ENVOY))
        added = _added(session, (face, ENVOY), rate, rounds)
        for share, most in ((0.5, ADDED_P50_MS), (0.99, ADDED_P99_MS)):
            suite.compare(
                name,
                f"p{share * 100:.0f} above the daemon's own answer, {rate:.0f}/s",
                "ms",
                added[face][share],
                rival=ENVOY,
                rival_values=added[ENVOY][share],
                target_value=most,
            )


def _added(session: Session, names: tuple[str, ...], rate: float, rounds: int) -> dict[str, dict[float, list[float]]]:
    """What each server adds, in milliseconds, by percentile, round by round; a first round warms up and is not kept."""
    tokens = session.load.tokens[:1000]
    asked = {name: session.servers[name] for name in names}
    offers = {name: Offer(server.url, server.body or BODY, tokens) for name, server in asked.items()}
    direct = Offer(f"http://127.0.0.1:{session.daemon.http_port}{EXECUTE}", BODY, tokens)
    added: dict[str, dict[float, list[float]]] = {name: {0.5: [], 0.99: []} for name in names}
    for number in range(rounds + 1):
        floor = _offered(session.folder, direct, rate, number)
        for name, offer in offers.items():
            found = _offered(session.folder, offer, rate, number)
            for share, values in added[name].items() if number else ():
                above = found.percentile_us(share) - floor.percentile_us(share)
                # Whoever adds nothing that can be measured still divides.
                values.append(max(above, 1.0) / 1000)
    return added


def _offered(folder: Path, offer: Offer, rate: float, number: int) -> Answers:
    """The answers of one round, all of them good."""
    found = native.offer(folder, offer, [(rate, LATENCY_S)], connections=_FEW, seed=number + 1)
    if set(found.statuses()) != {200}:
        raise SystemExit(f"{offer.url} answered {found.statuses()} in open loop")
    return found


def overload(suite: Suite, folder: Path, load: Load, seconds: float) -> None:
    """Three times what the daemon can do, with shedding and without it."""
    name = f"overload {FACTOR}x for {seconds:.0f} s, open loop, a daemon of {CAPACITY}/s"
    switch = next((known for known in _SWITCHES if known in Settings.__struct_fields__), None)
    try:
        ours = _overloaded(folder, load, seconds, {})
        off = None if switch is None else {f"FLX_{switch.upper()}": _SWITCHES[switch]}
        rival = None if off is None else _overloaded(folder, load, seconds, off)
    except (Missing, Unavailable) as reason:
        suite.unjudged(name, "goodput, shed answers, recovery", "%", target=f">= {GOODPUT} %", reason=str(reason))
        return
    suite.bound(name, "goodput, of the peak in closed loop", "%", ours.goodput, least=GOODPUT)
    if ours.shed_p99_ms is not None:
        suite.bound(name, "p99 of shed answers", "ms", ours.shed_p99_ms, most=SHED_MS)
    suite.bound(name, "recovery: no refusal any more, no answer after 250 ms", "s", ours.recovery_s, most=RECOVERY_S)
    suite.bound(name, "p50 of good answers", "ms", ours.good_p50_ms)
    suite.bound(name, "requests with another answer than 200 and 503, or none", "%", ours.strange)
    if rival is None:
        absent = "this version has no setting that turns shedding off; above is what its bounded queue does"
        suite.unjudged(name, "goodput, the same gateway without shedding", "%", target="reported", reason=absent)
        return
    suite.bound(name, "goodput, the same gateway without shedding", "%", rival.goodput)
    suite.bound(name, "p50 of good answers, the same gateway without shedding", "ms", rival.good_p50_ms)
    suite.bound(name, "recovery, the same gateway without shedding", "s", rival.recovery_s)


class _Overload:
    """What an overload and the time after it came to.

    Args:
        answers: of the overload and of what follows.
        seconds: how long it lasted.
        peak: answers a second in closed loop.
    """

    def __init__(self, answers: Answers, seconds: float, peak: float) -> None:
        # The first tenth fills queues that were empty: what they hold is not sustained.
        settled = answers.between(seconds * 0.1, seconds)
        good = Answers(answer for answer in settled.of(200) if answer.took_us <= DEADLINE_MS * 1000)
        shed = settled.of(503)
        self.goodput = len(good) / (seconds * 0.9) / peak * 100
        self.shed_p99_ms = shed.percentile_us(0.99) / 1000 if shed else None
        self.good_p50_ms = good.percentile_us(0.5) / 1000 if good else float(DEADLINE_MS)
        self.recovery_s = native.recovery_s(answers, seconds, 250_000)
        self.strange = (len(settled) - len(settled.of(200, 503))) / len(settled) * 100


def _overloaded(folder: Path, load: Load, seconds: float, settings: dict[str, str]) -> _Overload:
    own = {"FLX_DEADLINE_MS": str(DEADLINE_MS), **settings}
    with (
        native.daemon(folder, workers=WORKERS, service_us=SERVICE_US) as daemon,
        servers.ours(folder, daemon.socket, path=EXECUTE, body=BODY, settings=own) as server,
    ):
        peak = load.round(server.url, server.pid, _PEAK_S, body=BODY).rate
        offer = Offer(server.url, BODY, load.tokens[:1000])
        phases = [(FACTOR * peak, seconds), (_AFTER * peak, AFTER_S)]
        answers = native.offer(folder, offer, phases, connections=_CONNECTIONS, seed=1)
    return _Overload(answers, seconds, peak)
